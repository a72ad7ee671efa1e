"""LookupViViT and ViViT."""
