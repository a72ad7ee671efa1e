"""Reading, resizing, loading and sharing weights; knows no class of model."""
