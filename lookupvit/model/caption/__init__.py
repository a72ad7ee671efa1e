"""A text decoder over compressed tokens."""
