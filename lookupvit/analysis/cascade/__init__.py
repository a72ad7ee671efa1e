"""Cascades of compressed sizes: calibration, thresholds, search, study."""
