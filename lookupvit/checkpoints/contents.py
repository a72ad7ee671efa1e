"""Reads what a checkpoint or a file of weights holds: the one answer to "which model is this?".

Files are read without running anything in them, and their content is checked before it is used. docs/CHECKPOINTS.md
lists the keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

from lookupvit.checkpoints.files import check_type, parsed, read_json, read_onnx, read_safetensors, read_torch
from lookupvit.checkpoints.packaged import known, located
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.grid import Size, size_name
from lookupvit.sizes import MODELS, name_for
from lookupvit.trust import printable

SAFETENSORS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
MODEL_TYPE = "lookupvit"  # of config.json, by which transformers finds its classes
DESCRIPTION = "lookupvit"  # the key of config.json, of safetensors' metadata and of ONNX's metadata_props
# Keys of a checkpoint, and of the description in files of other formats.
TASK, HYPER, CLASS_NAMES = "task", "hyper_parameters", "class_names"
PREPROCESSING, TRAINED_SIZES, SCORES, DATA = "preprocessing", "trained_sizes", "scores", "data_config"
SEGMENTATION = "SegmentationTask"  # the last part of the task of a segmenter
DETECTION = "DetectionTask"  # of a detector
# Accuracies in 0..1: names without the stage, and how they are written.
MEASURES = {"top1": "top-1", "miou": "mIoU", "ap": "AP", "true_captions": "true"}
# Entries of config.json for timm and transformers, which are no arguments of the model.
_OF_OTHERS = ("architecture", "label_names", "model_args", "pretrained_cfg", "model_type")
# Arguments of a model that are arguments of its task, too; the others are the task's `args`.
OWN_ARGUMENTS = ("num_classes", "img_size", "num_frames", "compressed_size")


@dataclass
class Contents:
    """What a file says of the model in it. An attribute is None or empty if the file does not say.

    Attributes:
        source: What to call the file in messages.
        content: Everything in the file, tensors included, unchanged.
        facts: Metadata of safetensors, with the token grid and the number of heads as text.
        task: Dotted path of the task's class.
        hyper_parameters: Hyper-parameters of the task; `name`, `args` and the sizes build the model.
        data: Configuration of the training data, `{"class_path": ..., "init_args": {...}}`.
        pixels: How the images were prepared.
        class_names: Names of the classes, in the order of the logits.
        trained_sizes: Compressed sizes that the model was trained at.
        scores: Scores of the validation before it was saved, by the name under which they were logged.
    """

    source: str
    content: dict[str, Any] = field(default_factory=dict, repr=False)
    facts: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    pixels: Pixels | None = None
    class_names: list[str] | None = None
    trained_sizes: list[Size] | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """The model's name."""
        return self.hyper_parameters.get("name")

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Image size (height, width) that was given to the model; None if it has that of its name."""
        size = self.hyper_parameters.get("img_size") or self.arguments.get("img_size")
        size = (size, size) if isinstance(size, int) else tuple(size or ())
        return size if len(size) == 2 else None

    @property
    def arguments(self) -> dict[str, Any]:
        """The model's further arguments."""
        return dict(self.hyper_parameters.get("args") or {})

    def score(self, size: Size | None) -> tuple[str, float] | None:
        """Name and value of the accuracy at a compressed size; None if it is not known."""
        alone = size is None or self.trained_sizes == [tuple(size)]
        names = [f"val/{measure}@{size_name(size)}" for measure in MEASURES if size is not None]
        names += [f"val/{measure}" for measure in MEASURES if alone]
        return next(((name, self.scores[name]) for name in names if name in self.scores), None)

    def untrained(self, sizes: Iterable[Size | None]) -> list[Size]:
        """Those of some compressed sizes that the model was not trained at; none if its trained sizes are not known.

        A trained size (h', w') of a factorised video model stands for every number of time indices.
        """
        if self.trained_sizes is None:
            return []
        chosen = [tuple(size) for size in dict.fromkeys(sizes) if size is not None]
        return [size for size in chosen if not any(size[-len(own) :] == own for own in self.trained_sizes)]

    def about(self, size: Size) -> str:
        """Says whether the model was trained at a compressed size, and its score there if it is known."""
        if self.trained_sizes is None:
            return "the checkpoint does not say whether it was trained at that size"
        if self.untrained([size]):
            own = ", ".join(map(size_name, self.trained_sizes))
            return f"the model was not trained at that size (trained: {own}), so expect wrong answers"
        known = self.score(size)
        return "trained, its score is not known" if known is None else f"trained, {known[0]} {100 * known[1]:.2f} %"

    def description(self) -> dict[str, Any]:
        """The description for a file of another format, as plain data; `contents_of` reads it."""
        values = {
            TASK: self.task,
            HYPER: self.hyper_parameters or None,
            CLASS_NAMES: self.class_names,
            PREPROCESSING: None if self.pixels is None else self.pixels.as_dict(),
            TRAINED_SIZES: None if self.trained_sizes is None else [list(size) for size in self.trained_sizes],
            SCORES: self.scores or None,
        }
        return {key: value for key, value in values.items() if value is not None}


def read_contents(path: str | Path) -> Contents:
    """Reads what a file holds.

    Args:
        path: A checkpoint of `lookupvit fit` or of others, safetensors, a program in ONNX's format, or a folder that
            `save_pretrained` wrote, or the name of a model that comes along (`list_pretrained`).

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged, holds more than plain data and tensors, or has impossible values; in one line.
    """
    path = located(path)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist: check the path{known()}")
    with path.open("rb") as stream:
        is_safetensors = stream.read(9)[8:] == b"{"
    if is_safetensors:
        content, metadata = read_safetensors(path)
        contents = contents_of(parsed(metadata.get(DESCRIPTION, "{}"), path), path)
        contents.content, contents.facts = content, metadata
        return contents
    if path.suffix == ".onnx":
        return contents_of(parsed(read_onnx(path).get(DESCRIPTION, "{}"), path), path)
    return contents_of(read_torch(path), path)


def contents_of(content: dict[str, Any], source: str | Path) -> Contents:
    """What a checkpoint holds that was already read, or the description from a file of another format.

    Raises:
        ValueError: If the value of a key is impossible; in one line.
    """
    hyper, data = (_mapping(content, key, source) for key in (HYPER, DATA))
    task, names, scores = content.get(TASK), content.get(CLASS_NAMES), _mapping(content, SCORES, source)
    check_type(task is None or isinstance(task, str), source, TASK, "text", task)
    check_type(isinstance(hyper.get("name", ""), str), source, "hyper_parameters.name", "text", hyper.get("name"))
    args = hyper.get("args")
    check_type(args is None or isinstance(args, dict), source, "hyper_parameters.args", "a mapping", args)
    fits = names is None or (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names))
    check_type(fits, source, CLASS_NAMES, "a list of text", names)
    for key, value in scores.items():
        check_type(isinstance(value, (int, float)), source, f"{SCORES}.{key}", "a number", value)
    pixels, given = None, _mapping(content, PREPROCESSING, source)
    if given:
        try:
            pixels = Pixels(**{key: given.get(key) for key in ("mean", "std", "interpolation", "crop_pct")})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    sizes = content.get(TRAINED_SIZES)
    return Contents(
        str(source),
        content,
        task=task,
        hyper_parameters=hyper,
        data=data,
        pixels=pixels,
        class_names=None if names is None else [printable(name) for name in names],
        trained_sizes=_sizes_of(hyper) if sizes is None else _sizes(sizes, source, TRAINED_SIZES),
        scores=_scores(content) if SCORES not in content else {k: float(v) for k, v in scores.items() if isfinite(v)},
    )


def is_exported(path: str | Path) -> bool:
    """Whether a path is a folder that `save_pretrained` wrote, or a file of safetensors."""
    path = Path(path)
    return (path / CONFIG).is_file() if path.is_dir() else path.suffix == ".safetensors" and path.is_file()


def _of_folder(path: Path) -> Contents:
    """Reads a folder; older ones without a description are translated into one."""
    file = path / SAFETENSORS
    if not file.is_file():
        raise FileNotFoundError(
            f"weights {file} do not exist (a folder of weights holds {SAFETENSORS}): check the path"
        )
    content, metadata = read_safetensors(file)
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    described = _mapping(config, DESCRIPTION, path) or parsed(metadata.get(DESCRIPTION, "{}"), path)
    contents = contents_of(described or _old_description(config, path), path)
    processor = path / PROCESSOR
    if contents.pixels is None and processor.is_file():
        try:
            contents.pixels = Pixels.of_processor(read_json(processor))
        except ValueError as error:
            raise ValueError(f"{processor}: {error}") from error
    contents.content, contents.facts = content, metadata
    return contents


def _old_description(config: dict[str, Any], path: Path) -> dict[str, Any]:
    config = dict(config)
    kinds, labels = config.pop("architectures", None), _mapping(config, "id2label", path)
    for key in ("id2label", *_OF_OTHERS):
        config.pop(key, None)
    if not (isinstance(kinds, list) and kinds and isinstance(kinds[0], str)):
        return {}
    name = name_for([kinds[0]], config)
    if name is None:
        raise ValueError(f"{path} holds a {kinds[0][:80]}, which is no model of this project")
    given = {key: config.pop(key) for key in OWN_ARGUMENTS if key in config}
    described: dict[str, Any] = {TASK: task_of(given), HYPER: {"name": name, **given, "args": config}}
    if labels:
        described[CLASS_NAMES] = [labels.get(str(place), str(place)) for place in range(len(labels))]
    return described


def task_of(hyper_parameters: Mapping[str, Any]) -> str:
    """Dotted path of the task for a classifier, of images or of videos."""
    kind = "video.VideoTask" if "num_frames" in hyper_parameters else "classification.ClassificationTask"
    return f"lookupvit.tasks.{kind}"


def _sizes_of(hyper: dict[str, Any]) -> list[Size] | None:
    """Trained sizes from the hyper-parameters, for checkpoints from before the key "trained_sizes"."""
    several = hyper.get("compressed_sizes")
    if several:
        return _sizes(several, "the checkpoint", "compressed_sizes")
    if hyper.get("budget_gmacs") is not None or "name" not in hyper:
        return None
    size = hyper.get("compressed_size") or (hyper.get("args") or {}).get("compressed_size")
    if size is None:
        size = MODELS.get(hyper["name"], ("", {}))[1].get("compressed_size")
    return None if size is None else _sizes([size], "the checkpoint", "compressed_size")


def _sizes(values: Any, source: str | Path, key: str) -> list[Size]:
    fits = isinstance(values, (list, tuple))
    sizes = [(value, value) if isinstance(value, int) else value for value in (values if fits else ())]
    for size in sizes:
        fits = fits and isinstance(size, (list, tuple)) and 1 <= len(size) <= 3
        fits = fits and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**20 for n in size)
    check_type(fits, source, key, "a list of compressed sizes", values)
    return sorted((tuple(size) for size in sizes), key=prod)


def _scores(content: dict[str, Any]) -> dict[str, float]:
    """Scores that Lightning's ModelCheckpoint stored, for checkpoints from before the key "scores"."""
    scores = {}
    states = content.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("monitor"), str):
            value = state.get("current_score")
            if isinstance(value, torch.Tensor) and value.numel() == 1 and torch.isfinite(value).all():
                scores[state["monitor"]] = float(value)
    return scores


def _mapping(content: dict[str, Any], key: str, source: str | Path) -> dict[str, Any]:
    value = content.get(key)
    check_type(value is None or (isinstance(value, dict) and all(isinstance(k, str) for k in value)), source, key,
           "a mapping", value)  # fmt: skip
    return dict(value or {})
