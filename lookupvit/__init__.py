"""LookupViT (arXiv 2407.12753): vision transformers that run at many token budgets."""

from lookupvit.model.backbone import LookupViT, Tokens
from lookupvit.model.baseline import ViT
from lookupvit.model.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = ["LookupViT", "Tokens", "ViT", "__version__", "create_model", "list_models"]
