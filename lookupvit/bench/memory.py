"""Memory of a training step: the activations that autograd keeps for the backward pass, and the peak."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from lookupvit.analysis.cost import backbone_of


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between the forward and the backward pass.

    Counted are distinct storages (two views of one tensor count once, at its full size) that are not parameters.

    Args:
        forward: Computes a loss with gradients.
        parameters: Tensors that exist anyway: parameters and buffers.
    """
    known = {StorageWeakRef(p.untyped_storage()) for p in parameters}
    kept = {}  # holds the storages themselves: a freed one could lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = StorageWeakRef(storage)
        if key not in known:
            kept[key] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    assert loss.requires_grad, "a loss without a graph keeps nothing"
    return sum(storage.nbytes() for storage in kept.values())


def activation_counter(model: nn.Module, device: str = "cpu") -> Callable[..., int]:
    """Counts the bytes that autograd keeps in a training step of an image model, on torch's fake tensors: without data.

    The step is in fp32 without autocast and ends with the logits. Parameters, their gradients and the optimiser's
    state are not activations.

    Args:
        model: `LookupViT`, `ViT`, a segmenter or a detector; it may lie anywhere, also on the meta device.
        device: Where the step would run, "cpu" or "cuda", which has to be there: its kernels decide what is kept.

    Returns:
        A function of the images per step, their (height, width) in pixels, the compressed grid and the path; where one
        of the last three is None, the model's own is taken.

    Raises:
        ValueError: For a model with gradient checkpointing.
    """
    backbone = backbone_of(model)
    if getattr(backbone, "vit", backbone).grad_checkpointing:
        raise ValueError("the activation memory is that of a model without checkpointing: set grad_checkpointing=False")
    mode, twin = FakeTensorMode(allow_non_fake_inputs=True), deepcopy(model).to("meta").train()
    with mode:
        twin.to_empty(device=device)
    call = getattr(twin, "forward_fixed", twin)  # of a detector

    def count(
        batch: int = 1,
        img_size: tuple[int, int] | None = None,
        compressed_size: tuple[int, ...] | None = None,
        path: str | None = None,
    ) -> int:
        if path is not None:
            twin.set_path(path)
        options = {} if compressed_size is None else {"compressed_size": compressed_size}
        with mode:
            images = torch.empty(batch, 3, *(img_size or model.img_size), device=device)
            return saved_bytes(lambda: call(images, **options).sum(), [*twin.parameters(), *twin.buffers()])

    return count


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes that one call has allocated at a time, above what was there before.

    Args:
        step: For example a training step. Called once; on CUDA warm it up first.
        device: "cpu" or "cuda...".

    Returns:
        Bytes, from CUDA's allocator statistics or, on a CPU, from the allocations that torch's profiler records.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        already = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - already
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
