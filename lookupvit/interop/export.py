"""Exports a trained model as a program for other runtimes: ONNX, or torch.export's own format (`.pt2`).

The batch size is dynamic; image size and compressed sizes are fixed when the program is written. Every program is
compared with the model after it was written.

Letters: B batch, C classes, (Y, X) pixels.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit.checkpoints.contents import DESCRIPTION
from lookupvit.checks import check_choice
from lookupvit.grid import Size, check_compressed_size, grid_of, to_2tuple
from lookupvit.interop.program import Preprocessing, Program
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.weights.file import contents_of_model
from lookupvit.writing import whole_files

FORMATS = ("onnx", "torch-export")
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
ONE_FILE = 1_500_000_000  # bytes of weights that go into an .onnx file itself, whose limit is 2 GiB
TOLERANCE = 1e-5  # largest difference between program and model, relative to the largest output


def export_model(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    compressed_sizes: Sequence[Size] | None = None,
    img_size: int | tuple[int, int] | None = None,
    head: str | None = None,
    preprocessing: Preprocessing | None = None,
    attention: str = "auto",
    dynamic_size: bool = False,
) -> float:
    """Writes a model as a program with a dynamic batch, and compares the program with the model.

    Inputs are `images` and, with several compressed sizes in one file, `size`: the index of one, in the order given;
    only that one is computed. The output is `logits`, or `probabilities` with fused preprocessing. A segmenter's logits
    are those of the pixels, `(B, C, Y, X)`.

    Args:
        model: `LookupViT`, `ViT` or a segmenter (or a video model, without preprocessing), in any mode, on any device.
        path: File to write.
        format: "onnx" (`.onnx`, weights inside) or "torch-export" (`.pt2`, for `torch.export.load`, ExecuTorch or
            AOTInductor); by the file's ending by default.
        compressed_sizes: One or several; the model's own by default.
        img_size: Image size of the program; the model's own by default.
        head: The only head to run, such as "compressed", which saves the end of the last block.
        preprocessing: Preprocessing to fuse: the program takes uint8 `(B, Y, X, 3)` and returns probabilities.
        attention: Order of the cross-attention's products, as the model's `path`: "auto", "plain" or "absorbed".
        dynamic_size: Whether the program takes images of any size that the patch divides and the compressed sizes fit
            into. "auto" is then "plain", because the choice depends on the size.

    Returns:
        The largest difference between program and model over several batches, relative to the largest output.

    Raises:
        ValueError: For options that do not fit, a missing package, or a program that differs too much; in one line.
    """
    path = Path(path)
    format = check_choice("format", _format_of(path) if format is None else format, FORMATS)
    check_choice("attention", attention, ("auto", "plain", "absorbed"))
    pixels = to_2tuple(model.img_size if img_size is None else img_size)
    _check(model, pixels, compressed_sizes, head, preprocessing, dynamic_size)
    if dynamic_size and attention == "auto":
        attention = "plain"
    program = Program(model, compressed_sizes, head, preprocessing, attention)
    with torch.no_grad(), _quiet():
        exported = _trace(program, pixels, dynamic_size)
        described = {DESCRIPTION: json.dumps(described_program(program))}
        with whole_files(path.parent) as folder:  # several files, because ONNX puts large weights into one of their own
            if format == "onnx":
                _write_onnx(exported, folder / path.name, described)
            else:
                torch.export.save(exported, folder / path.name, extra_files=described)
            seen = [pixels, *(_other_sizes(program, pixels) if dynamic_size else ())]
            return max(_largest_difference(program, load_program(folder / path.name), size, path) for size in seen)


def load_program(path: str | Path) -> Callable[..., Tensor]:
    """Loads a program as a function of the tensors `images` and, with several compressed sizes, `size`.

    A program is code: load only files that you trust. (`load_weights` and `load_model` run nothing, whoever wrote the
    file.)

    Raises:
        ValueError: For another ending than `.onnx` and `.pt2`, or if onnxruntime is not installed.
    """
    path = Path(path)
    if _format_of(path) == "torch-export":
        return torch.export.load(path).module()
    runtime = _package("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*arguments: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def described_program(program: Program) -> dict[str, Any]:
    """The description to write into the file: that of the model, and the sizes and the head that the program runs."""
    described = contents_of_model(program.model).description()
    sizes = [list(size) for size in program.sizes if size is not None]
    return {**described, "compressed_sizes": sizes, "head": program.head, "fused": program.preprocessing is not None}


def _trace(program: Program, pixels: tuple[int, ...], dynamic_size: bool) -> torch.export.ExportedProgram:
    sides = {0: torch.export.Dim("batch")}
    if dynamic_size:
        first = 1 if program.preprocessing is not None else 2  # the axis of the rows
        least = [max(2, *(size[axis] if size else 2 for size in program.sizes)) for axis in (0, 1)]
        cells = [torch.export.Dim(name, min=m) for name, m in zip(("rows", "columns"), least, strict=True)]
        sides |= {first + axis: program.model.patch_size[axis] * cells[axis] for axis in (0, 1)}
        pixels = _other_sizes(program, pixels)[0]  # not the native size, for which nothing would be resized
    for index in range(len(program.sizes)):  # fills the cache of resize matrices: constants for the tracer
        program.direct(program.example(pixels, 2)[0], index)
    arguments = program.example(pixels, 2)
    return torch.export.export(program, arguments, dynamic_shapes=(sides, None)[: len(arguments)])


def _other_sizes(program: Program, pixels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Image sizes to trace and test a dynamic program with: wider, and higher, than its native one."""
    y, x = program.model.patch_size
    return [(pixels[0] + y, pixels[1] + 3 * x), (pixels[0] + 2 * y, pixels[1])]


def _write_onnx(exported: torch.export.ExportedProgram, path: Path, described: dict[str, str]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _package(name)
    named = any(value.dtype == torch.uint8 for value in exported.example_inputs[0])
    program = torch.onnx.export(
        exported,
        dynamo=True,
        input_names=("images", "size")[: len(exported.example_inputs[0])],
        output_names=["probabilities" if named else "logits"],
        verbose=False,
    )
    passes = import_module("onnx_ir.passes.common")  # of onnxscript
    # Each compressed size has its own copy of the weights, and each node a stack trace with this machine's paths.
    passes.DeduplicateInitializersPass(size_limit=2**32)(program.model)
    passes.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(described)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(path, external_data=size > ONE_FILE)


def _largest_difference(program: Program, run: Callable[..., Tensor], pixels: tuple[int, ...], path: Path) -> float:
    """The largest difference between program and model, relative to the largest output; an error if it is too large."""
    largest = 0.0
    for index in range(len(program.sizes)):
        for batch in (1, 3):
            arguments = program.example(pixels, batch, index)
            expected = program.direct(arguments[0], index)
            difference = (run(*arguments) - expected).abs().max() / expected.abs().max().clamp(min=1.0)
            largest = max(largest, difference.item())
    if not largest <= TOLERANCE:
        raise ValueError(f"{path} differs from the model by {largest:.2g}, more than {TOLERANCE:g}: do not use it")
    return largest


def _check(
    model: nn.Module,
    pixels: tuple[int, int],
    sizes: Sequence[Size] | None,
    head: str | None,
    preprocessing: Preprocessing | None,
    dynamic_size: bool,
) -> None:
    grid = grid_of(pixels, tuple(model.patch_size))
    video = hasattr(model, "num_frames")
    if dynamic_size and not isinstance(model, Segmenter):
        raise ValueError("dynamic_size is of segmenters: a classifier's program has one image size, leave it out")
    if dynamic_size and model.features.compressed_stride is not None and not sizes:
        raise ValueError("this model's compressed size follows the image, a program's does not: give compressed_sizes")
    if model.compressed_size is None and (sizes or head):
        raise ValueError("a plain ViT has no compressed tokens: leave compressed_sizes and head out")
    for size in () if video else sizes or ():
        check_compressed_size(size, grid)
    if preprocessing is not None and (video or model.num_classes == 0):
        raise ValueError("only image classifiers have fused preprocessing: leave it out for videos and features")


def _format_of(path: Path) -> str:
    for format, ending in ENDINGS.items():
        if path.suffix == ending:
            return format
    raise ValueError(f"{path}: the ending {path.suffix!r} is unknown: choose {' or '.join(ENDINGS.values())}")


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"ONNX needs {name}: pip install 'lookupvit[export]', or choose torch-export") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch and onnxscript say about their own deprecations during an export."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
