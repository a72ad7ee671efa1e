"""LookupViT (arXiv 2407.12753): vision transformers that run at many token budgets."""

from importlib import import_module
from sys import modules
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
    "load_model": "lookupvit.model.loading",
    "load_weights": "lookupvit.model.weights",
    "save_weights": "lookupvit.model.weights_file",
    "warm_start": "lookupvit.model.warm_start",
    "export_model": "lookupvit.export",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lookupvit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "timm" in modules:  # timm.create_model("lookupvit_...") works after both imports, in either order
    import_module("lookupvit.model.timm_registry")
else:
    import_module("lookupvit.after_timm").install()
