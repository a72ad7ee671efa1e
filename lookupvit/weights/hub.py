"""Models as folders: weights, configuration, image processor and model card, on disk or on the Hugging Face Hub."""

import json
import os
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import hf_hub_download
from torch import nn

from lookupvit.checkpoints.contents import (
    CONFIG,
    DESCRIPTION,
    MODEL_TYPE,
    PROCESSOR,
    SAFETENSORS,
    Contents,
    read_contents,
)
from lookupvit.checkpoints.files import read_json
from lookupvit.checkpoints.pixels import RESAMPLE, Pixels
from lookupvit.grid import Size, size_name
from lookupvit.trust import check_plain, printable
from lookupvit.weights.claims import check_parameters
from lookupvit.weights.load import load_weights
from lookupvit.weights.timm_config import timm_config

PREPROCESSOR = PROCESSOR
_CARD = """\
---
{{ card_data }}
---

# {{ name }}

LookupViT ([arXiv 2407.12753](https://arxiv.org/abs/2407.12753)): {{ parameters }} M parameters, images of
{{ img_size }} pixels, compressed tokens {{ compressed_size }}.

```python
from lookupvit import {{ name }}

model = {{ name }}.from_pretrained("FOLDER_OR_REPOSITORY")
logits = model(images)  # (B, 3, height, width), normalised as preprocessor_config.json says, to (B, {{ num_classes }})
```

Class names are `id2label` in `config.json`, where they are known.
{{ measured }}
"""


class HubMixin(
    PyTorchModelHubMixin,
    library_name="lookupvit",
    license="apache-2.0",
    pipeline_tag="image-classification",
    tags=["lookupvit", "vision-transformer"],
    paper_url="https://arxiv.org/abs/2407.12753",
    model_card_template=_CARD,
):
    """`save_pretrained(folder)`, `from_pretrained(folder or repository)` and `push_to_hub(repository)` for a model.

    A folder holds `model.safetensors`, `config.json` (the arguments that built the model), `README.md` (the model card)
    and, where `set_preprocessing` was called, `preprocessor_config.json`.
    """

    architecture: str | None = None  # the class to name in a folder, if it is not the model's own class
    preprocessing: dict[str, Any] | None = None
    class_names: list[str] | None = None
    # These are written with the weights in every format, see docs/CHECKPOINTS.md.
    pixels: Pixels | None = None
    trained_sizes: list[Size] | None = None
    scores: dict[str, float] = {}
    task_options: dict[str, Any] = {}

    def set_preprocessing(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        class_names: list[str] | None = None,
    ) -> None:
        """Sets how images are prepared and the names of the classes, which `save_pretrained` writes.

        Args:
            mean: Mean of each channel, for pixels from 0 to 1.
            std: Standard deviation of each channel.
            crop_pct: Fraction of the resized image's side that the centre crop keeps.
            interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
            class_names: Name of each class, in the order of the logits.

        Raises:
            ValueError: For an interpolation that does not exist, or another number of names than classes.
        """
        if class_names is not None and len(class_names) != self.num_classes:
            raise ValueError(
                f"{len(class_names)} class names for {self.num_classes} classes: give one for each class, or none"
            )
        self.preprocessing = image_processor(self.img_size, mean, std, crop_pct, interpolation)
        self.pixels = Pixels(tuple(mean), tuple(std), interpolation, crop_pct)
        self.class_names = None if class_names is None else list(class_names)

    def note_processor(self) -> None:
        """Writes `pixels` into `preprocessing` as transformers expects it, if it has that interpolation."""
        options = {"crop_pct": self.pixels.crop_pct, "interpolation": self.pixels.interpolation}
        given = {key: value for key, value in options.items() if value is not None}
        if given.get("interpolation", "bicubic") in RESAMPLE:
            self.preprocessing = image_processor(self.img_size, self.pixels.mean, self.pixels.std, **given)

    def _save_pretrained(self, save_directory: Path) -> None:
        from lookupvit.weights.file import contents_of_model, save_weights  # imported here because it imports this file

        save_weights(self, save_directory / SAFETENSORS)
        config: dict[str, Any] = {"architectures": [self.architecture or type(self).__name__], **self._hub_mixin_config}
        if "LookupViT" in config["architectures"]:
            config |= timm_config(self._hub_mixin_config, self.pixels, self.class_names)
        if self.class_names is not None:
            config["id2label"] = {str(i): name for i, name in enumerate(self.class_names)}
        if len(self.img_size) == 2 and not hasattr(self, "num_frames"):
            config["model_type"] = MODEL_TYPE
        config[DESCRIPTION] = contents_of_model(self).description()
        _write_json(save_directory / CONFIG, config)
        if self.preprocessing is not None:
            _write_json(save_directory / PREPROCESSOR, self.preprocessing)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        verbose: bool = False,
        **model_kwargs: Any,
    ) -> Self:

        def find(name: str) -> Path:
            if os.path.isdir(model_id):
                return Path(model_id) / name
            where = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download, "token": token}
            return Path(hf_hub_download(model_id, name, local_files_only=local_files_only, **where))

        config = _read_json(find(CONFIG))
        kind = (config.get("architectures") or [cls.__name__])[0]
        if kind not in [known.__name__ for known in cls.__mro__]:
            raise ValueError(f"{model_id} holds a {kind}, not a {cls.__name__}: use {kind}.from_pretrained")
        weights = find(SAFETENSORS)
        check_plain(dict(model_kwargs), f"{model_id}: its config.json")
        check_parameters(lambda: cls(**model_kwargs), weights.stat().st_size if weights.is_file() else 0, str(model_id))
        model = cls(**model_kwargs)
        load_weights(model, weights, verbose=verbose)
        try:
            processor = find(PREPROCESSOR)
        except EntryNotFoundError:
            processor = None
        describe(model, read_contents(find(SAFETENSORS).parent))
        if processor is not None and processor.is_file():
            model.preprocessing = _read_json(processor)
            if Pixels.of_processor(model.preprocessing) is None:  # raises for values that cannot be
                raise ValueError(f"{processor} is damaged: it has no image_mean and image_std")
        names = config.get("id2label")
        if isinstance(names, dict) and names.keys() == {str(i) for i in range(model.num_classes)}:
            model.class_names = [printable(names[str(i)]) for i in range(model.num_classes)]
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any):
        """The model card: what the model is, how to load it, what it expects."""
        facts = {
            "name": self.architecture or type(self).__name__,
            "parameters": f"{sum(p.numel() for p in self.parameters()) / 1e6:.1f}",
            "img_size": size_name(self.img_size),
            "compressed_size": size_name(self.compressed_size or ()) or "none (a plain ViT)",
            "num_classes": self.num_classes,
            "measured": "",
        }
        return super().generate_model_card(*args, **{**facts, **kwargs})


def image_processor(
    img_size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
) -> dict[str, Any]:
    """A `preprocessor_config.json` as transformers reads it (`AutoImageProcessor`).

    A square image is resized by its shorter side and cropped. For any other shape the whole picture is resized to it:
    transformers has no resize that covers a rectangle.

    Args:
        img_size: (height, width) that the model takes.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        crop_pct: Fraction of the resized image's side that the centre crop keeps.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".

    Raises:
        ValueError: For an interpolation that does not exist.
    """
    if interpolation not in RESAMPLE:
        raise ValueError(f"interpolation={interpolation!r} is not known: choose one of {', '.join(RESAMPLE)}")
    height, width = img_size
    square = height == width
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(height / crop_pct)} if square else {"height": height, "width": width},
        "resample": RESAMPLE[interpolation],
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: give a folder that save_pretrained wrote") from None


# Hyper-parameters of a task that are kept with the model's arguments when the model is written again.
_TASK_OPTIONS = ("loss", "eval_head")


def describe(model: nn.Module, contents: Contents) -> None:
    """Sets on a model what its file says of it, so that it is written again in every format."""
    if contents.class_names is not None and len(contents.class_names) == model.num_classes:
        model.class_names = contents.class_names
    model.pixels, model.trained_sizes, model.scores = contents.pixels, contents.trained_sizes, contents.scores
    options = {key: contents.hyper_parameters.get(key) for key in _TASK_OPTIONS}
    model.task_options = {key: value for key, value in options.items() if value is not None}
    if contents.pixels is not None and isinstance(model, HubMixin):
        model.note_processor()
