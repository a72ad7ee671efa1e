"""LookupViT (arXiv 2407.12753): vision transformers that run at many token budgets."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported at first use, so that `lookupvit --help` need not wait for torch.
_WHERE = {
    "LookupViT": "lookupvit.model.backbone",
    "LookupViViT": "lookupvit.model.video",
    "Tokens": "lookupvit.model.backbone",
    "ViT": "lookupvit.model.baseline",
    "ViViT": "lookupvit.model.video_baseline",
    "create_model": "lookupvit.model.zoo",
    "list_models": "lookupvit.model.zoo",
}
__all__ = ["LookupViT", "LookupViViT", "Tokens", "ViT", "ViViT", "__version__", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lookupvit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
