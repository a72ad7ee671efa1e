"""Dense prediction: maps of features from a backbone, and the heads that read them."""
