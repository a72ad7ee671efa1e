"""Reading batches: exact resume, workers, retries."""
