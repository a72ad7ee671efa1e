"""To and from other libraries and file formats."""
