"""Clips of videos."""
