"""Registers the names of the image models with timm, for `timm.create_model("lookupvit_...")`.

`import lookupvit` imports this file if timm is imported already. At any other time
`import lookupvit.interop.timm_registry` does it. Only names are registered; the models are imported when one is built.
"""

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from lookupvit.sizes import image_models
from lookupvit.weights.timm_config import pretrained_config

__all__: list[str] = []  # `register_model` adds each name


def _entry(name: str, defaults: dict[str, Any]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from lookupvit.interop.timm_model import build  # it needs all of timm, which may be importing this very file

        return build(name, defaults, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"`{name}` of lookupvit, see `lookupvit.interop.timm_model.build`."
    return entry


# `register_model` finds it by this name.
default_cfgs = generate_default_cfgs(
    {name: pretrained_config(name, args) for name, args in image_models("lookupvit").items()}
)

for _name, _defaults in image_models("lookupvit").items():
    globals()[_name] = register_model(_entry(_name, _defaults))
