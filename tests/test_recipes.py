"""docs/RECIPES.md: what it calls ours is what the configurations say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_configs import settings_of

from datamodules.images.transforms import transform_options
from datamodules.video.ssv2 import SSv2DataModule

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "RECIPES.md").read_text(encoding="utf-8")
SECTIONS = {
    config: [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in re.findall(r"^\| .* \|.*$", body, re.M)]
    for config, body in re.findall(r"^## [^\n]*`(configs/[^`]+)`\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
}


def settings(config: str) -> dict[str, dict[str, Any]]:
    """The configuration's fields, its augmentation completed by its recipe."""
    content = settings_of(ROOT / config)
    data = content["data"]["init_args"]
    given = {key: value for key, value in data.items() if key in transform_options()}
    if content["data"]["class_path"] == "SSv2DataModule":
        given["hflip"] = SSv2DataModule(".").options["hflip"]
    options = transform_options(data.get("recipe", "light"), **given)
    return {"trainer": content["trainer"], "model": content["model"]["init_args"], "data": data | options}


def test_every_published_recipe_has_its_table() -> None:
    assert len(SECTIONS) == 6 and sum(len(rows) for rows in SECTIONS.values()) > 60
    for config in SECTIONS:
        assert (ROOT / config).is_file()


@pytest.mark.parametrize("config", SECTIONS)
def test_ours_is_what_the_configuration_says(config: str) -> None:
    found, checked = settings(config), 0
    for name, _, ours, *_ in SECTIONS[config]:
        for part, key in re.findall(r"`(\w+)\.(\w+)`", name):
            value = yaml.safe_load(ours)
            expected = [value] if not isinstance(value, list) else value
            is_value = found[part][key]
            got = list(is_value) if isinstance(is_value, (list, tuple)) else [is_value]
            assert got == expected, (config, name, is_value)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("config", SECTIONS)
def test_the_global_batch_is_the_table_s(config: str) -> None:
    found = settings(config)
    for name, _, ours, *_ in SECTIONS[config]:
        if name == "global batch":
            assert found["trainer"].get("accumulate_grad_batches", 1) * found["data"]["batch_size"] == int(ours)


PAIRS = ["classification/imagenet1k_{}tiny", "classification/imagenet1k_{}small", "classification/imagenet1k_{}base"]
PAIRS += ["classification/imagenet1k_{}small_deit"]
PAIRS += [f"video/{data}_{{}}base_{kind}" for data in ("kinetics400", "ssv2") for kind in ("joint", "factorised")]


@pytest.mark.parametrize("pair", PAIRS)
def test_both_sides_train_alike(pair: str) -> None:
    ours, vit = (
        settings(f"configs/{pair.format(prefix)}.yaml") for prefix in ("", "vivit_" if "video" in pair else "vit_")
    )
    for one in (ours, vit):
        for key in ("name", "compressed_size"):
            one["model"].pop(key, None)
    assert ours == vit
