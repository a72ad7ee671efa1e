"""What `predict` writes, one row for each input, and the same answers as pictures for the loggers."""
