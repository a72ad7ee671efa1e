"""Faster orders of the same matrix products."""
