"""Every shipped configuration parses, instantiates and runs one step; tiny sizes, tiny data on disk."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TREE_CLASSES, write_tree
from PIL import Image

from datamodules.demos.dense_scenes import render_dense_scenes
from datamodules.demos.motion import render_motion
from datamodules.images.cifar10 import CLASSES
from lookupvit import ViT, create_model, save_weights
from lookupvit.cli.common.includes import expand_includes
from lookupvit.cli.common.loaded import instantiate_data
from lookupvit.cli.main import main

CONFIGS = Path(__file__).parents[1] / "configs"
PIECES = sorted((CONFIGS / "base").glob("*.yaml"))
TESTS = sorted((CONFIGS / "robustness").glob("*.yaml"))
WHOLE = sorted({*CONFIGS.rglob("*.yaml")} - {*PIECES, *TESTS})
# The first of each family, written out; every other experiment says only how it differs from one of the others.
FIRST = {
    *("demo_segment", "demo_detect"),
    *("demo", "demo_caption", "demo_caption_pairs", "demo_video_joint", "cifar10_lookupvit_3x3"),
    *("imagenet1k_base", "imagenet1k_small_deit"),
    *("imagenet21k_base", "imagefolder_224", "imagenet21k_base_to_1k", "coco_base"),
    *("kinetics400_base_joint", "ssv2_base_joint", "coco_detection_base", "pennfudan_lookupvit"),
    *("ade20k_base", "cityscapes_base", "camvid/base", "imagenette/base"),
}
# Data with masks and boxes: test_data_with_masks_and_boxes.
DENSE = {f"{name}.yaml" for name in ("ade20k", "camvid", "cityscapes", "coco_instances", "dense_scenes")}
DENSE |= {"pennfudan.yaml", "voc2012.yaml"}
DENSE_DEMO = {"segment", "detect"}  # parts of the names of the dense demo's configurations
VARIANTS = [file for file in WHOLE if not {file.stem, f"{file.parent.name}/{file.stem}"} & FIRST]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], value) if isinstance(value, dict) and isinstance(one.get(key), dict) else value
            for key, value in other.items()}  # fmt: skip
    return one | both


def settings_of(file: Path, itself: bool = True) -> dict[str, Any]:
    """What the files that a configuration includes say together, and what it says itself."""
    values = expand_includes(["--config", str(file)])[1::2]
    files = [Path(value) for value in values if not value.startswith("{")]
    settings: dict[str, Any] = {}
    for included in files if itself else files[:-1]:
        settings = merged(settings, yaml.safe_load(included.read_text()))
    return settings


def leaves(settings: dict[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, *above, key)
        else:
            yield ".".join((*above, key)), value


def tiny_data(file: Path, image_tree: Path, folder: Path) -> list[str]:
    """Options that put tiny data in place of the real data set."""
    if file.parent.name == "classification":
        classes = [] if "21k" in file.stem else ["--data.num_classes", "3"]
        return ["--data.root", str(image_tree), "--data.img_size", "32", *classes]
    if file.parent.name == "finetune":
        vit = ViT(img_size=16, patch_size=4, num_classes=2, embed_dim=32, depth=2, num_heads=2)
        save_weights(vit, folder / "vit.safetensors")
        tree = ["--data.root", str(image_tree), "--data.img_size", "32"]
        tree += ["--data.num_classes", "3"] if "to_1k" in file.stem else []
        return [*tree, "--model.init_from", str(folder / "vit.safetensors")]
    if file.parent.name == "video":
        layout = "ssv2" if file.stem.startswith("ssv2") else "csv"
        render_motion(folder / "clips", layout=layout, train_per_class=1, val_per_class=1, size=16, frames=4)
        frames = ["--data.num_frames", "4", "--data.frame_stride", "1"]
        return ["--data.root", str(folder / "clips"), "--data.img_size", "16", "--data.short_side", "[16, 18]", *frames]
    if file.parent.name == "captioning" or file.stem.startswith("demo_caption"):
        return tiny_captions(file, folder)
    if file.parent == CONFIGS and DENSE_DEMO & set(file.stem.split("_")):
        counts = {"train_images": 2, "val_images": 1, "size": 32, "img_size": 32}
        options = ["--data.root", str(folder / "scenes"), "--trainer.precision", "32-true"]
        return [*options, *(x for k, v in counts.items() for x in (f"--data.{k}", str(v)))]
    if file.parent.name in ("detection", "pennfudan"):
        return tiny_detection(file, folder)
    if file.parent.name in ("segmentation", "camvid"):
        return tiny_masks(file, folder)
    if file.parent.name in ("experiments", "ablation", "learning_rate"):
        return ["--data.root", str(write_tree(folder / "cifar", tuple(CLASSES), {"train": 1, "test": 1}, size=32))]
    if file.parent.name == "imagenette":
        tree = write_tree(folder / "imagenette", TREE_CLASSES, {"train": 1, "val": 1}, size=48)
        return ["--data.root", str(tree), "--data.num_classes", "3", "--data.img_size", "40"]
    return ["--data.root", str(folder / "demo"), "--data.train_per_class", "2", "--data.val_per_class", "1"]


def tiny_detection(file: Path, folder: Path) -> list[str]:
    """As `tiny_data`: rendered scenes in COCO's layout, narrow heads, and a ViT to start from."""
    render_dense_scenes(folder / "scenes", train_images=2, val_images=1, size=32)
    vit = ViT(img_size=16, patch_size=4, num_classes=2, embed_dim=32, depth=2, num_heads=2)
    save_weights(vit, folder / "vit.safetensors")
    sides = ("img_size", "short_side", "max_size")
    data = ["--data.root", str(folder / "scenes"), *(x for name in sides for x in (f"--data.{name}", "32"))]
    data += ["--data.train_split", "train", "--data.val_split", "val"]
    heads = {"out_channels": "8", "box_convs": "1", "box_dim": "8", "mask_convs": "1", "strides": "[4, 8]"}
    heads |= {"detector_args": "{rpn_post_nms_top_n_train: 20, rpn_post_nms_top_n_test: 20}"}
    start = ["--model.init_from", str(folder / "vit.safetensors")]
    sizes = settings_of(file)["model"]["init_args"]
    if sizes.get("compressed_sizes"):
        start += ["--model.compressed_sizes", "[[2, 2], [3, 3]]"]
    elif sizes["compressed_size"]:
        start += ["--model.compressed_size", "[2, 2]"]
    return [*data, *start, *(x for name, value in heads.items() for x in (f"--model.{name}", value))]


def tiny_masks(file: Path, folder: Path) -> list[str]:
    """As `tiny_data`: two images with masks for each split, in the layout of the data set."""
    kind = file.stem.partition("_")[0]
    layouts = {
        "ade20k": ("images/{}", "annotations/{}", "", ("training", "validation")),
        "cityscapes": ("leftImg8bit/{}/city", "gtFine/{}/city", "_gtFine_labelIds", ("train", "val")),
    }
    images, masks, ending, splits = layouts.get(kind, ("images/{}", "masks/{}", "", ("train", "val")))
    for split, place in product(splits, ("a", "b")):
        name = f"{place}_leftImg8bit.jpg" if kind == "cityscapes" else f"{place}.jpg"
        for part, file_name, pixels in (
            (images, name, np.full((44, 60, 3), 99, np.uint8)),
            (masks, f"{place}{ending}.png", np.full((44, 60), 7, np.uint8)),
        ):
            (folder / part.format(split)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part.format(split) / file_name)
    (folder / "classes.txt").write_text("\n".join(f"class {k}" for k in range(11)))
    (folder / "objectInfo150.txt").write_text("head\n" + "\n".join(f"{k}\tclass {k}" for k in range(150)))
    sizes = ["--data.img_size", "[32, 48]", "--data.short_side", "32"]
    windows = [] if file.parent.name == "camvid" else ["--model.eval_window", "[32, 32]", "--model.eval_stride", "16"]
    return ["--data.root", str(folder), *sizes, *windows, "--trainer.precision", "32-true"]


def tiny_captions(file: Path, folder: Path) -> list[str]:
    """As `tiny_data`: rendered scenes, and for a frozen encoder a checkpoint to start from."""
    from datamodules.demos.scenes import render_scenes

    counts = {"train_images": 2, "val_images": 1, "size": 32}
    root = ["--data.root", str(folder / "scenes"), "--model.decoder", "{depth: 1, num_heads: 2}"]
    if file.parent == CONFIGS:
        return [*root, "--data.img_size", "36", *(x for k, v in counts.items() for x in (f"--data.{k}", str(v)))]
    render_scenes(folder / "scenes", **counts)
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
    name = settings_of(file)["model"]["init_args"]["name"]
    encoder = create_model(name, num_classes=2, img_size=20, **args)
    hyper = {"name": name, "num_classes": 2, "img_size": 20, "args": args}
    state = {f"model.{key}": value for key, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, folder / "encoder.ckpt")
    return [*root, "--data.img_size", "20", "--model.encoder_ckpt", str(folder / "encoder.ckpt")]


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_configuration_runs_one_step(
    file: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.images.imagenet21k.wnids_of", lambda subset: list(TREE_CLASSES))
    argv = ["fit", "--config", str(file), "--config", str(CONFIGS / "base" / "cpu.yaml")]
    argv += [*tiny_data(file, image_tree, tmp_path), "--data.batch_size", "2", "--data.num_workers", "0"]
    video = "video" in f"{file.parent.name} {file.stem}"
    patch = "6" if file.parent == CONFIGS and not video and not DENSE_DEMO & set(file.stem.split("_")) else "4"
    more = ", tubelet_size: 1" if file.stem.endswith("single_frame") else ""
    argv += ["--model.args", f"{{embed_dim: 32, depth: 2, num_heads: 2, patch_size: {patch}{more}}}"]
    if file.parent.name in ("segmentation", "camvid") and not {"vit", "sizes"} & set(file.stem.split("_")):
        argv += ["--model.compressed_size", "[2, 2]"]
    if file.stem.startswith("sizes") and file.parent.name == "camvid":
        argv += ["--model.compressed_sizes", "[[2, 2], [3, 4]]"]
    if file.parent.name == "video" and "vivit_base" not in file.stem:
        argv += ["--model.compressed_size", "[2, 2, 2]"]
    assert main([*argv, "--trainer.fast_dev_run", "true", "--trainer.accumulate_grad_batches", "1"]) == 0
    assert "global batch" in capsys.readouterr().out
    for path in re.findall(r"^#.*--data.predict_path \S+?/(\S+)", file.read_text(), re.M):
        assert list(tmp_path.glob(f"*/{path}")), f"{path} is not among the rendered images"


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_configuration_resolves_and_opens_with_its_command(file: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(file), "--print_config"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"name: {file.stem}\n" in printed
    assert ("LookupViTBlock" in printed) == file.stem.endswith("fsdp")
    head = file.read_text().split("include:")[0]
    assert f"lookupvit fit --config configs/{file.relative_to(CONFIGS)}" in head
    assert len(file.read_text().splitlines()) <= 32


@pytest.mark.parametrize("file", [*WHOLE, *TESTS], ids=lambda file: file.stem)
def test_configuration_says_what_to_expect_and_on_what(file: Path) -> None:
    head = re.match(r"(?:#.*\n)+", file.read_text()).group()
    assert re.search(r"^# Expected: \S", head, re.M) and re.search(r"^# Hardware: \S", head, re.M)


@pytest.mark.parametrize("file", VARIANTS, ids=lambda file: file.stem)
def test_experiment_says_only_what_it_changes(file: Path) -> None:
    own = yaml.safe_load(file.read_text())
    first, *others = [own.pop("include")] if isinstance(own["include"], str) else own.pop("include")
    assert (file.parent / first).resolve() in WHOLE
    assert all((file.parent / other).resolve() in PIECES for other in others)
    before, said = dict(leaves(settings_of(file, itself=False))), dict(leaves(own))
    assert said.pop("name") == file.stem
    assert 1 <= len(said) <= 8
    assert not [key for key, value in said.items() if key in before and before[key] == value]


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_configuration_of_a_test_resolves(file: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", str(file), "--ckpt_path", "best", "--print_config"])
    assert stop.value.code == 0
    assert "RobustnessTable" in capsys.readouterr().out
    assert f"lookupvit test --config configs/{file.relative_to(CONFIGS)}" in file.read_text()


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_global_batch_of_imagenet_is_the_recipes(file: Path, capsys: pytest.CaptureFixture) -> None:
    if file.parent.name != "classification":
        return
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--print_config"])
    printed = capsys.readouterr().out
    values = [
        int(printed.split(f" {key}: ")[1].split()[0]) for key in ("devices", "accumulate_grad_batches", "batch_size")
    ]
    assert values[0] * values[1] * values[2] == (1024 if file.stem.endswith("deit") else 4096)


def test_every_piece_is_used() -> None:
    text = "".join(file.read_text() for file in WHOLE)
    # On the command line, to any experiment: test_strategies.py.
    added = {"ddp.yaml", "fsdp2.yaml", "slurm.yaml", "imagenet_shards.yaml"} | DENSE
    assert {piece.name for piece in PIECES if f"base/{piece.name}" not in text} <= added


@pytest.mark.parametrize("name", sorted(DENSE))
def test_data_with_masks_and_boxes(name: str, tmp_path: Path) -> None:
    data = instantiate_data(["--config", str(CONFIGS / "base" / name), "--data.root", str(tmp_path / "gone")])
    assert yaml.safe_load((CONFIGS / "base" / name).read_text()).keys() == {"data"}
    with pytest.raises(FileNotFoundError, match="gone"):
        data.setup("fit")
    assert f"configs/base/{name}" in (CONFIGS.parent / "docs" / "DATA.md").read_text()
