"""Dense labels: semantic masks, and boxes with instance masks."""
