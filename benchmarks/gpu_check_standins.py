"""For `gpu_check.py`: stand-ins for packages that are not installed, and a callback that notes a training's figures.

Lightning is imported before any stand-in is there, so that it does not take one for the package.
"""

import statistics
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonargparse  # noqa: F401
import lightning.pytorch.cli  # noqa: F401
import omegaconf  # noqa: F401
import torch
import torchmetrics  # noqa: F401
import torchvision  # noqa: F401
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

# Dependencies of the project that training on images can do without.
OPTIONAL = ("av", "faster_coco_eval", "huggingface_hub", "matplotlib", "pycocoevalcap", "pycocotools", "pytorchvideo",
            "rich", "safetensors", "sentencepiece", "tensorboard", "timm", "webdataset")  # fmt: skip


class _Nested(type):
    """`av.container.InputContainer`, in an annotation, where `av.container` is a stand-in already."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or cls.__module__.partition(".")[0] not in OPTIONAL:
            raise AttributeError(name)
        return _Nested(name, (Missing,), {"__module__": cls.__module__})


class Missing(metaclass=_Nested):
    """In place of a class or function of a package that is not installed; only its use is an error."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An error, but for a class of the project that has a stand-in among its parents."""
        if cls.__module__.partition(".")[0] in OPTIONAL:
            raise ImportError(f"{cls.__module__}.{cls.__qualname__} is needed here, but is not installed")
        return super().__new__(cls)


class _Console:
    """The part of rich's Console that a log needs."""

    is_terminal = False

    def __init__(self, stderr: bool = False, **kwargs: Any) -> None:
        self.file = sys.stderr if stderr else sys.stdout

    def print(self, *parts: Any, **kwargs: Any) -> None:
        print(*(part for part in parts if isinstance(part, str)), file=self.file)


class _IgnoredClass(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Ignored()


class _Ignored(metaclass=_IgnoredClass):
    """A panel or a table: it takes everything and shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return _Ignored()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Ignored()


_KNOWN: dict[str, dict[str, Any]] = {
    "rich.console": {"Console": _Console},
    "rich.table": {"Table": _Ignored},
    "rich.panel": {"Panel": _Ignored},
    "rich.progress": {"track": lambda items, *args, **kwargs: items},
}


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = _KNOWN.get(self.__name__, {})
        value = known[name] if name in known else type(name, (Missing,), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


class _Finder(MetaPathFinder, Loader):
    """Makes a stand-in for each optional package that no other finder found."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in OPTIONAL:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Puts stand-ins in place of what is missing, and the project on the path."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.meta_path.append(_Finder())
    import lookupvit  # noqa: F401

    # Its own finder registers models with timm, which a stand-in has no use for.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_AfterTimm"]


def half_on_cpu() -> MixedPrecision:
    """16-mixed with a gradient scaler on a CPU, where Lightning would take bfloat16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


class Lora(nn.Module):
    """A low-rank adapter beside a frozen linear layer, with `weight` and `bias` as peft's adapters have them."""

    def __init__(self, base_layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_a = nn.Parameter(torch.randn(rank, base_layer.in_features) / base_layer.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base_layer.out_features, rank))
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The linear layer's."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The linear layer's."""
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        return self.base_layer(x) + nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)


class Watch(Callback):
    """Notes a training's figures in `Watch.figures`."""

    figures: dict[str, float] = {}

    def __init__(self) -> None:
        self._times: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the time and the loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        Watch.figures["last loss"] = float(outputs["loss"])
        self.losses.append(Watch.figures["last loss"])
        self._batch = len(batch[0])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums up."""
        steps = [b - a for a, b in zip(self._times, self._times[1:], strict=False)][-8:]
        if steps:
            Watch.figures["ms/step"] = 1000 * statistics.median(steps)
            Watch.figures["images/s"] = self._batch / statistics.median(steps)
        if "val/top1" in trainer.callback_metrics:
            Watch.figures["val top-1"] = float(trainer.callback_metrics["val/top1"])
        if torch.cuda.is_available():
            Watch.figures["peak GB"] = torch.cuda.max_memory_allocated() / 2**30
