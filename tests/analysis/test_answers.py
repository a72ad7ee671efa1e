"""The picture of answers: every sample in its place, right ones green and wrong ones red."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lookupvit.analysis.answers import Answer, plot_answers

GREEN, RED = (26, 127, 55), (198, 40, 40)


def count(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly one colour: the cores of letters."""
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("RGB")) == colour).all(axis=2).sum())


def test_right_answers_are_green_and_wrong_ones_red(tmp_path: Path) -> None:
    images, truths = [torch.full((3, 8, 8), 0.5)] * 3, ["a ring", "a star", "a moon"]
    right = [Answer(truth, True, "99 %") for truth in truths]
    wrong = [Answer("a moon", False, "40 %")] * 3
    for name, answers in {"right": {"one": right}, "wrong": {"one": wrong}, "both": {"a": right, "b": wrong}}.items():
        path = plot_answers(images, truths, answers, tmp_path / f"{name}.png")
        assert (count(path, GREEN) > 50) == (name != "wrong") and (count(path, RED) > 50) == (name != "right")
    nobody_knows = [Answer("a moon", None)] * 3
    path = plot_answers(images, truths, {"one": nobody_knows}, tmp_path / "x.png")
    assert count(path, GREEN) == count(path, RED) == 0


def test_frames_of_a_clip_stand_side_by_side(tmp_path: Path) -> None:
    clip = torch.zeros(3, 4, 8, 8)
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float32)
    clip[:] = colours.T[:, :, None, None]  # (3, 4, 1, 1): a colour for each frame
    path = plot_answers([clip], ["turns"], {"one": [Answer("turns", True)]}, tmp_path / "clip.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    places = []
    for colour in (255 * colours).int().tolist():
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert rows.size > 100
        places.append(columns.mean())
    assert places == sorted(places) and np.diff(places).std() < 1.5  # from left to right, equally wide
