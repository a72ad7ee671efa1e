"""The compared models: LookupViT at several compressed sizes, timm's ViT, ToMe on it, and vit-pytorch's LookViT."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.analysis.cost import count_macs
from lookupvit.bench.tome import ToMe
from lookupvit.grid import check_compressed_size
from lookupvit.model.flops import count_call_macs
from lookupvit.model.zoo import create_model, list_models

BASELINE = "ViT (timm)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How to run a case.

    Attributes:
        device: "cpu" or "cuda".
        dtype: "fp32" or "bf16": of weights and inputs at inference; in training, bf16 is autocast over fp32 weights.
        precision: The argument of `torch.set_float32_matmul_precision`.
        compile: None, or torch.compile's mode: "default", "reduce-overhead" or "max-autotune".
        threads: CPU threads; None leaves torch's choice.
        quick: Measure the machine with small products and copies, for trials.
    """

    device: str = "cpu"
    dtype: str = "fp32"
    precision: str = "highest"
    compile: str | None = None
    threads: int | None = None
    quick: bool = False

    def apply(self) -> None:
        """Sets what is global: threads, precision, the seed."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        torch.manual_seed(0)

    def describe(self) -> dict:
        """For a report's settings."""
        how = {"dtype": self.dtype, "mode": f"compiled ({self.compile})" if self.compile else "eager"}
        return how | ({"float32_matmul_precision": self.precision} if self.dtype == "fp32" else {})

    def autocast(self, enabled: bool = True) -> AbstractContextManager:
        """bf16 autocast, if bf16 is asked for and `enabled`; else nothing."""
        if not enabled or self.dtype != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def wrap(self, function: Callable) -> Callable:
        """`function`, compiled if that is asked for, one compilation for each shape."""
        if not self.compile:
            return function
        # every compressed size is a compilation of the same code; torch's default of 8 is soon used up
        torch._dynamo.config.recompile_limit = 256
        return torch.compile(function, mode=self.compile, dynamic=False)


@dataclass
class Case:
    """One model in the comparison.

    Attributes:
        name: Name in the table.
        model: The model, which several cases may share.
        macs: Multiply-adds of one image.
        kwargs: Arguments of its forward call.
        autocast: Its weights must stay in fp32, and bf16 reaches it through autocast at inference too.
    """

    name: str
    model: nn.Module
    macs: int
    kwargs: dict = field(default_factory=dict)
    autocast: bool = False

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the model's heads."""
        if hasattr(self.model, "forward_logits"):
            logits = self.model.forward_logits(self.model.forward_features(images, **self.kwargs)).values()
        else:
            logits = [self.model(images, **self.kwargs)]
        return torch.stack([F.cross_entropy(z.float(), targets) for z in logits]).mean()

    def inference(self, images: Tensor, settings: Settings) -> Callable[[], Tensor]:
        """A forward pass under `inference_mode`; the model must be on the device, in the dtype and in eval mode."""
        call = settings.wrap(lambda x: self.model(x, **self.kwargs))
        graphs = settings.compile == "reduce-overhead"

        def run() -> Tensor:
            if graphs:  # what the last call returned may be overwritten
                torch.compiler.cudagraph_mark_step_begin()
            with torch.inference_mode(), settings.autocast(self.autocast):
                return call(images)

        return run

    def forward_loss(self, images: Tensor, targets: Tensor, settings: Settings) -> Callable[[], Tensor]:
        """The loss of a training step, with its graph."""
        call = settings.wrap(self.loss)

        def run() -> Tensor:
            with settings.autocast():
                return call(images, targets)

        return run


def check_model(model: str) -> None:
    """Raises a one-line ValueError unless there is a ViT of this size with patches of 16 pixels."""
    known = [name.split("_")[1] for name in list_models("vit_*_patch16_224")]
    if model not in known:
        raise ValueError(f"unknown model {model!r}: choose one of {', '.join(known)}")


def image_cases(
    model: str = "base",
    img_size: int = 224,
    sizes: tuple[int, ...] = (3, 5, 7, 10),
    tome: tuple[int, ...] = (8, 13, 16),
    compressed_head: bool = False,
    look_vit: bool = True,
    **overrides,
) -> tuple[list[Case], list[str]]:
    """The competitors at one image size, with random weights, the baseline first.

    Args:
        model: "tiny", "small", "base", "large" or "huge", all with patches of 16 pixels.
        img_size: Pixels; every model is built for it, so that none resizes its positions in each call.
        sizes: Compressed sizes, s for a grid of s x s.
        tome: Numbers r of merged pairs, a ToMe case for each.
        compressed_head: LookupViT also with the compressed head alone.
        look_vit: Whether vit-pytorch's LookViT is compared too, if it is installed.
        **overrides: Any argument of both `LookupViT` and `ViT`, such as depth.

    Returns:
        The cases, and notes on what was left out.

    Raises:
        ValueError: For an unknown model, or a size that does not fit.
    """
    check_model(model)
    names = {family: f"{family}_{model}_patch16_224" for family in ("vit", "lookupvit")}
    grid = (img_size // 16, img_size // 16)
    sizes = tuple(sizes)
    for size in sizes:
        check_compressed_size(size, grid)
    vit = create_model(names["vit"], img_size=img_size, **overrides)
    cases = [Case(BASELINE, vit, count_macs(vit, img_size))]
    if sizes:
        lookup = create_model(names["lookupvit"], img_size=img_size, compressed_size=sizes[0], **overrides)
    for size in sizes:
        pair = (size, size)
        name = f"LookupViT {size}x{size}"
        cases.append(Case(name, lookup, count_macs(lookup, img_size, pair), {"compressed_size": pair}))
        if compressed_head:
            macs = count_macs(lookup, img_size, pair, "compressed")
            kwargs = {"compressed_size": pair, "head": "compressed"}
            cases.append(Case(f"{name}, compressed head", lookup, macs, kwargs))
    image = torch.zeros(1, 3, img_size, img_size)
    for r in tome:
        merged = ToMe(vit.vit, r).eval()
        with torch.no_grad():
            cases.append(Case(f"ToMe r={r}", merged, count_call_macs(lambda merged=merged: merged(image))))
    if not look_vit:
        return cases, []
    extra, note = _look_vit(vit, img_size, sizes)
    return cases + extra, [note] if note else []


def _look_vit(vit: nn.Module, img_size: int, sizes: tuple[int, ...]) -> tuple[list[Case], str]:
    try:
        from vit_pytorch.look_vit import LookViT
    except ImportError:
        return [], "vit-pytorch's LookViT was left out: not installed (pip install vit-pytorch)"
    # it builds its low-resolution grid from a patch size that must divide the image
    sizes = tuple(size for size in sizes if img_size % size == 0 and img_size // size > 16)
    if not sizes:
        return [], f"vit-pytorch's LookViT was left out: it has none of these grids at {img_size} px"
    block = vit.vit.blocks[0]
    image = torch.zeros(1, 3, img_size, img_size)
    cases = []
    for size in sizes:
        model = LookViT(
            dim=vit.embed_dim,
            image_size=img_size,
            num_classes=vit.num_classes,
            depth=vit.depth,
            patch_size=img_size // size,
            heads=block.attn.num_heads,
            dim_head=block.attn.head_dim,
            highres_patch_size=16,
            highres_mlp_factor=0.5,
            cross_attn_heads=block.attn.num_heads,
            cross_attn_dim_head=block.attn.head_dim,
            patch_conv_kernel_size=1,  # a plain patch embedding, like the others'
            dropout=0.0,
        ).eval()
        with torch.no_grad():
            macs = count_call_macs(lambda model=model: model(image))
        # its positions are made in fp32 in each call
        cases.append(Case(f"LookViT {size}x{size} (vit-pytorch)", model, macs, autocast=True))
    return cases, ""
