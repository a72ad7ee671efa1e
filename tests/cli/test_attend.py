"""`lookupvit attend` on tiny trained models: its pictures, its figures and its one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lookupvit.analysis.attention_plots import animate, overlay, plot_gather
from lookupvit.cli.main import main

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args: {{name: {model}_tiny_patch16_224, args: {{embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8{size}}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 4, num_workers: 0}}
output_dir: {output}
name: {model}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, image_tree: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("attend")
    for model, size in (("lookupvit", ", compressed_size: [2, 3]"), ("vit", "")):
        file = folder / f"{model}.yaml"
        file.write_text(CONFIG.format(model=model, size=size, root=image_tree, output=folder))
        assert main(["fit", "--config", str(file)]) == 0
    return [str(folder / "lookupvit"), str(folder / "vit")]


def error_of(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    capsys.readouterr()
    assert main(["attend", *argv]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit")]
    return line


def test_pictures_and_figures(runs: list[str], image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [*runs, "--path", f"{image_tree}/val/*/*.JPEG", "--count", "2", "--layer", "0", "--output", str(tmp_path)]
    assert main(["attend", *argv]) == 0
    names = sorted(path.name.rsplit("_", 1)[0] for path in tmp_path.glob("*.png"))
    assert names == ["gather_lookupvit_2x3_0", "gather_lookupvit_2x3_1", "rollout.png", "spread.png"]
    found = json.loads((tmp_path / "attend.json").read_text())
    assert len(found["files"]) == 2
    assert set(found["blocks"]) == {"lookupvit 2x3, gather", "vit, self-attention"}
    for layers in found["blocks"].values():
        assert len(layers) == 2 and all(0 <= v <= 1 for layer in layers for v in layer.values())
        # weights are still near their small start: attention is almost uniform, and rows almost alike
        assert layers[0]["entropy"] > 0.9 and layers[0]["diversity"] < 0.1
    assert "self-attention" in capsys.readouterr().out


def test_mistakes_are_one_line(
    runs: list[str], image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [runs[0], "--path", f"{image_tree}/val/*/*.JPEG", "--output", str(tmp_path)]
    for options, message in (
        ("--layer 2", "--layer 2: this model has 2 blocks"),
        ("--head 2", "--head 2: this model has 2 attention heads"),
        ("--count 0", "argument --count: '0' is not a whole number of at least 1"),
        ("--size 9x9", "compressed_size (9, 9) does not fit the lookup grid (4, 4)"),
        ("--path /nowhere/*.jpg", "/nowhere/*.jpg"),
        ("--trainer.devices 2", "--trainer.devices is no option of attend"),
    ):
        assert message in error_of(capsys, [*argv, *options.split()])
    assert "gone.ckpt" in error_of(capsys, ["gone.ckpt", *argv[1:]])


def test_the_overlay_worked_out_by_hand() -> None:
    grey = torch.full((3, 2, 2), 0.5)
    np.testing.assert_allclose(overlay(grey), np.full((128, 128, 3), 0.5))
    picture = overlay(grey, torch.tensor([[0.0, 2.0]]))
    np.testing.assert_allclose(picture[:, 0], 0.4, atol=1e-6)  # no weight: the image, darker
    assert picture[0, -1, 0] > 0.85 and picture[0, -1, 2] < 0.65  # the brightest of inferno, which is pale yellow


def test_an_animation_has_the_clip_s_frames(tmp_path: Path) -> None:
    clip = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    path = animate(clip, torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)), tmp_path / "a.gif", fps=5)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (256, 128), 200)


MOTION = """
trainer: {{accelerator: cpu, max_epochs: 1, limit_train_batches: 1, limit_val_batches: 1, enable_progress_bar: false}}
model:
  class_path: VideoTask
  init_args:
    name: lookupvivit_tiny_{kind}_patch8x2_32
    compressed_size: {size}
    args: {{embed_dim: 24, depth: 2, num_heads: 2}}
data:
  class_path: MotionDataModule
  init_args: {{root: {root}, num_frames: 4, img_size: 32, train_per_class: 1, val_per_class: 1, batch_size: 4,
    num_workers: 0}}
output_dir: {output}
name: {kind}
"""


@pytest.mark.parametrize(("kind", "size"), [("joint", "[2, 2, 2]"), ("factorised", "[2, 2]")])
def test_a_clip_becomes_an_animation(kind: str, size: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(MOTION.format(kind=kind, size=size, root=tmp_path / "clips", output=tmp_path))
    assert main(["fit", "--config", str(file)]) == 0
    clip = sorted((tmp_path / "clips" / "val").rglob("*.mp4"))[0]
    folder = tmp_path / "attend"
    assert main(["attend", str(tmp_path / kind), "--path", str(clip), "--count", "1", "--output", str(folder)]) == 0
    animations = list(folder.glob(f"rollout_{kind}*_0_{clip.stem}.gif"))
    assert animations
    for path in animations:
        with Image.open(path) as gif:
            assert gif.n_frames == 4 and gif.width == 2 * gif.height  # the clip, and it under its map
    found = json.loads((folder / "attend.json").read_text())
    assert [len(layers) for layers in found["blocks"].values()] == [2]


def test_even_attention_has_no_colour_and_a_peak_has() -> None:
    image, noise = torch.full((3, 128, 128), 0.5), torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    even = 1 + 0.2 * (noise - 0.5)  # in multiples of even attention, within 10 %
    bare = overlay(image, torch.zeros(8, 8))
    assert abs(overlay(image, even, largest=4.0, smallest=1.0) - bare).max() < 0.05
    assert abs(overlay(image, even - even.min()) - bare).max() > 0.3  # what a scale of its own makes of noise
    peak = torch.zeros(8, 8)
    peak[2, 5] = 64.0
    drawn = abs(overlay(image, peak, largest=64.0, smallest=1.0) - bare).sum(-1)
    row, column = divmod(int(drawn.argmax()), 128)
    assert (row // 16, column // 16) == (2, 5)


def test_a_gather_map_has_a_bar_of_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), Path(path).touch()))
    maps = torch.full((4, 8, 8), 1 / 64)
    plot_gather(torch.rand(3, 32, 32), maps, (2, 2), "even", tmp_path / "even.png")
    maps[1] = 0
    maps[1, 0, 0] = 1.0
    plot_gather(torch.rand(3, 32, 32), maps, (2, 2), "one peak", tmp_path / "peak.png")
    bars = [figure.axes[-1] for figure in figures]
    assert [bar.get_ylim() for bar in bars] == [(1.0, 4.0), (1.0, 64.0)]
    assert all(bar.get_ylabel() == "weight / even attention" for bar in bars)
