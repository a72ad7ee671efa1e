"""The cells of `gpu_check.py` that need no data set: precisions, the three tasks, LoRA and graph capture.

Each trains on one batch of random tensors again and again, so that its loss has to fall.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from gpu_check_standins import Lora, Watch, half_on_cpu
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset

STEPS, WARM, REPLAYS = 12, 4, 5


class OneBatch(Dataset):
    """The same batch `STEPS` times."""

    def __init__(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self.batch


def build(task: str, quick: bool, lr: float = 1e-3, **options: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """A task and a batch that it learns by heart."""
    from lookupvit import tasks

    seed_everything(0, verbose=False)
    batch, side = (4, 48) if quick else (64, 224)
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8} if quick else {}
    common = {"lr": lr, "weight_decay": 0.0, **options}
    images, labels = torch.randn(batch, 3, side, side), torch.arange(batch) % 10
    if task == "image":
        name = "lookupvit_small_patch16_224"
        model = tasks.ClassificationTask(name, 10, side, compressed_size=(3, 3), args=small, **common)
        return model, (images, labels)
    if task == "video":
        frames, side = (4, 16) if quick else (8, 224)
        small.pop("patch_size", None)
        name = "lookupvivit_tiny_joint_patch8x2_32" if quick else "lookupvivit_small_joint_patch16x2_224"
        args = {"num_frames": frames, "compressed_size": (2, 1, 1) if quick else (2, 5, 5), "args": small}
        clips = torch.randn(max(batch // 8, 2), 3, frames, side, side)
        sizes = {"num_classes": 10, "img_size": side}
        return tasks.VideoTask(name, **sizes, **args, **common), (clips, labels[: len(clips)])
    decoder = {"depth": 1 if quick else 6, "num_heads": 3, "context_length": 16}
    args = {"args": small, "decoder": decoder, "vocab_size": 100, "freeze_encoder": False}
    model = tasks.CaptioningTask("lookupvit_small_patch16_224", side, compressed_size=(3, 3), **args, **common)
    model.tokenizer = SimpleNamespace(vocab_size=100)  # it is asked for nothing else in training
    tokens = torch.randint(4, 100, (batch, 12))
    return model, (images, tokens, torch.full((batch,), 12))


def train(model: Any, batch: tuple[torch.Tensor, ...], precision: str, device: str) -> dict[str, float]:
    """Trains, checks that the loss falls, and returns the figures."""
    on_cpu = device == "cpu"
    half = on_cpu and precision == "16-mixed"  # which Lightning turns into bfloat16 there
    watch = Watch()
    trainer = Trainer(
        accelerator=device,
        devices=1,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        plugins=half_on_cpu() if half else None,
        precision=None if half else precision,
        limit_val_batches=0,
        callbacks=[watch, *_guards()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(OneBatch(batch), batch_size=None))
    losses = watch.losses
    if not losses[-1] < losses[0] or not all(p.isfinite().all() for p in model.parameters()):
        raise RuntimeError(f"Error: the loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
    return {**Watch.figures, "steps": trainer.global_step}


def lora(quick: bool, device: str) -> dict[str, float]:
    """Adapters beside every linear layer of the blocks learn, and nothing else does."""
    model, batch = build("image", quick)
    adapters: list[Lora] = []
    for parent in list(model.model.blocks.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not isinstance(parent, Lora):
                adapters.append(Lora(layer))
                setattr(parent, name, adapters[-1])
    for name, parameter in model.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    before = [layer.base_layer.weight.detach().clone() for layer in adapters]
    figures = train(model, batch, "bf16-mixed", device)
    still = [str(place) for place, layer in enumerate(adapters) if not layer.lora_b.any()]
    if still:
        raise RuntimeError(
            f"Error: {len(still)} of {len(adapters)} adapters got no gradient: numbers {', '.join(still)}"
        )
    if any(not torch.equal(layer.base_layer.weight.cpu(), was) for layer, was in zip(adapters, before, strict=True)):
        raise RuntimeError("Error: a frozen weight has changed")
    return figures


def graph(quick: bool, device: str) -> dict[str, float]:
    """A captured forward pass (on a CPU: a traced one) gives the same outputs for new images as the model."""
    model, (images, _) = build("image", quick)
    model = model.model.eval()
    new = torch.randn_like(images)
    with torch.inference_mode():
        if device == "cpu":
            replay = _traced(model, images)
        else:
            model, images, new = model.cuda(), images.cuda(), new.cuda()
            replay = _captured(model, images)
        got, want = replay(new), model(new)
        difference = float((got - want).abs().max())
        begun = time.perf_counter()
        for _ in range(REPLAYS):
            replay(new)
        if device != "cpu":
            torch.cuda.synchronize()
    if difference > 1e-4 * max(1.0, float(want.abs().max())):
        raise RuntimeError(f"Error: replay and model differ by {difference:.3g}")
    return {"difference": difference, "ms/step": 1000 * (time.perf_counter() - begun) / REPLAYS}


def _captured(model: nn.Module, images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            model(images)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = model(images)

    def replay(new: torch.Tensor) -> torch.Tensor:
        images.copy_(new)
        captured.replay()
        return out

    return replay


def _traced(model: nn.Module, images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The operators, recorded with tensors without values: reading a value on the host fails, as in a capture."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda x: model(x), tracing_mode="fake", _allow_non_fake_inputs=True)(images)


def run(cell: dict[str, Any], device: str, quick: bool) -> dict[str, float]:
    """The figures of a cell; an error if it does not hold."""
    if cell["kind"] == "lora":
        return lora(quick, device)
    if cell["kind"] == "graph":
        return graph(quick, device)
    model, batch = build(cell["task"], quick, compile=cell["compile"])
    return train(model, batch, cell["precision"], device)


def _guards() -> list[Any]:
    from lookupvit.callbacks import SkipNonFinite

    return [SkipNonFinite()]
