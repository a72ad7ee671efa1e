"""Corrupted and shifted test sets."""
