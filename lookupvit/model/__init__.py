"""Pure-torch models: nothing of Lightning, nothing of data."""
