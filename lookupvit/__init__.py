"""LookupViT (arXiv 2407.12753): vision transformers that run at many token budgets."""

from importlib import import_module
from sys import modules
from typing import Any

__version__ = "0.1.0"

# Imported at first use, so that `lookupvit --help` need not wait for torch.
_WHERE = {
    "LookupViT": "lookupvit.model.lookupvit",
    "LookupViViT": "lookupvit.model.video.lookupvivit",
    "Tokens": "lookupvit.model.lookupvit",
    "ViT": "lookupvit.model.vit",
    "ViViT": "lookupvit.model.video.vivit",
    "create_model": "lookupvit.model.zoo",
    "list_models": "lookupvit.model.zoo",
    "list_pretrained": "lookupvit.checkpoints.packaged",
    "load_model": "lookupvit.interop.load_model",
    "load_weights": "lookupvit.weights.load",
    "save_weights": "lookupvit.weights.file",
    "warm_start": "lookupvit.interop.warm_start",
    "export_model": "lookupvit.interop.export",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lookupvit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# timm.create_model("lookupvit_...") works after `import timm` and then `import lookupvit`. In the other order timm's
# registry is not there yet, and importing timm here would make `lookupvit --help` wait for torch: see docs/LIBRARY.md.
if "timm" in modules:
    import_module("lookupvit.interop.timm_registry")
