"""One pass for many sizes against one call a size; statistics against numbers worked out by hand; the pictures."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from lookupvit import create_model
from lookupvit.analysis.cascade.study import study_cascade
from lookupvit.analysis.sweep import Subject, accuracy, collect_logits, contrast, halves, hits, spread
from lookupvit.analysis.sweep_plots import Point, Series, _label_points, macs_unit, plot_accuracy

TINY = {"num_classes": 7, "embed_dim": 12, "depth": 2, "num_heads": 2, "patch_size": 8}
SIZES = ((1, 1), (2, 3), (4, 4))


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    torch.manual_seed(0)
    mine = create_model("lookupvit_tiny_patch4_32", **TINY, compressed_size=(2, 2)).eval()
    vit = create_model("vit_tiny_patch4_32", **TINY).eval()
    return {
        "mine": Subject(mine, SIZES),
        "one head": Subject(mine, ((2, 2),), "compressed"),
        "vit": Subject(vit, (None,)),
    }


def test_one_pass_gives_what_single_calls_give(subjects: dict[str, Subject]) -> None:
    torch.manual_seed(1)
    images, targets = torch.randn(10, 3, 32, 48), torch.randint(7, (10,))
    calls, seen = [], []
    embed = subjects["mine"].model.embed_images
    subjects["mine"].model.embed_images = lambda x: (calls.append(len(x)), embed(x))[1]
    batches = [(images[i : i + 4], targets[i : i + 4]) for i in (0, 4, 8)]
    logits, joined = collect_logits(subjects, iter(batches), advance=seen.append)
    del subjects["mine"].model.embed_images  # the method of the class again
    assert seen == [4, 4, 2] and torch.equal(joined, targets)
    assert calls == [4, 4, 4, 4, 2, 2]  # once a batch and subject, not once a size
    with torch.no_grad():
        for size in SIZES:
            expected = subjects["mine"].model(images, compressed_size=size)
            torch.testing.assert_close(logits["mine"][size], expected, rtol=1e-4, atol=1e-5)
        alone = subjects["mine"].model(images, compressed_size=(2, 2), head="compressed")
        torch.testing.assert_close(logits["one head"][(2, 2)], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits["vit"][None], subjects["vit"].model(images), rtol=1e-4, atol=1e-5)
    # A later fit of temperatures differentiates through them.
    assert not logits["mine"][(1, 1)].is_inference()


def test_no_images_is_one_line(subjects: dict[str, Subject]) -> None:
    with pytest.raises(ValueError, match="no images to score"):
        collect_logits(subjects, [])


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [0.0, 1, 2, 3], [9.0, 8, 7, 6], [1.0, 3, 2, 0]])
    targets = torch.tensor([0, 2, 3, 0])
    assert hits(logits, targets).tolist() == [True, False, False, False]
    assert [accuracy(logits, targets, k) for k in (1, 2, 3, 4, 5)] == [25, 50, 75, 100, 100]


def test_halves_share_all_images_and_every_class() -> None:
    first, rest = halves(9)
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(9))
    by_class = torch.arange(9) // 3  # data sorted by class
    assert set(by_class[first].tolist()) == set(by_class[rest].tolist()) == {0, 1, 2}


def test_contrast_by_hand() -> None:
    multi = {0: torch.tensor([1, 1, 1, 0]).bool(), 1: torch.tensor([1, 1, 0, 0]).bool(), 5: torch.ones(4).bool()}
    single = {1: torch.tensor([1, 1, 1, 0]).bool(), 0: torch.tensor([1, 0, 0, 0]).bool()}
    found = contrast((3, 3), multi, single)
    assert found.seeds == (0, 1) and found.multi == (75, 50) and found.single == (25, 75)
    assert found.differences == (50, -25)
    values = found.as_dict()
    assert values["difference_mean"] == 12.5 and values["difference_sd"] == pytest.approx(75 / 2**0.5)
    # By image, averaged over seeds: 0, 1/2, (1 - 1)/2 = 0, 0: deviation sqrt(3 / 48) = 1/4, over sqrt(4).
    assert found.image_error == pytest.approx(100 * 0.25 / 2)
    assert spread([3.0]) is None
    with pytest.raises(ValueError, match="no seed was trained both ways"):
        contrast((3, 3), {0: multi[0]}, {1: single[1]})


def cascade_data(count: int = 400, seed: int = 0) -> tuple[dict, torch.Tensor]:
    """Logits of which the smallest size knows when it errs; the largest is always right."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(7, (count,), generator=generator)
    hard = torch.rand(count, generator=generator) < 0.25
    right = torch.nn.functional.one_hot(targets, 7).float()
    wrong = right.roll(1, dims=1)
    small = torch.where(hard[:, None], wrong + 0.2 * torch.rand(count, 7, generator=generator), 9 * right)
    return {(1, 1): small, (2, 3): right * torch.where(hard, -1, 1)[:, None], (4, 4): 9 * right}, targets


def test_cascade_is_scored_on_images_that_it_was_not_calibrated_on(subjects: dict[str, Subject]) -> None:
    logits, targets = cascade_data()
    study = study_cascade("mine", subjects["mine"], (32, 32), logits, targets)
    assert (study.calibration_images, study.images) == (200, 200) and "other" in study.figures_from
    rest = {size: value[1::2] for size, value in logits.items()}
    for one in study.comparisons:  # the fixed sizes are of the same images as the cascade
        assert 100 * one.fixed.accuracy == pytest.approx(accuracy(rest[one.size], targets[1::2]))
    values = study.as_dict()
    best = max(values["curve"], key=lambda point: point["top1"])
    # Sure images stay at the smallest size and the others are mended at the largest.
    assert best["top1"] == 100 and best["macs"] < study.comparisons[-1].fixed.cost
    assert all(a.target_cost < b.target_cost for a, b in pairwise(study.points))

    held = study_cascade("mine", subjects["mine"], (32, 32), logits, targets, cascade_data(seed=1))
    assert (held.calibration_images, held.images) == (400, 400) and held.thresholds_from == "the validation split"
    fixed, curve = held.series(1e6)
    assert curve.curve and [point.name for point in fixed.points] == ["1x1", "2x3", "4x4"]
    with pytest.raises(ValueError, match="at least two images"):
        study_cascade("mine", subjects["mine"], (32, 32), {s: v[:1] for s, v in logits.items()}, targets[:1])


def test_unit_of_multiply_adds() -> None:
    assert macs_unit([2e6, 9e7]) == (1e6, "MMACs") and macs_unit([2e6, 1e8]) == (1e9, "GMACs")


def series() -> list[Series]:
    return [
        Series("mine", (Point(3, 60, "2x2", 1.0), Point(6, 70, "3x3", 0.5), Point(12, 72, "5x5"))),
        Series("mine", (Point(4, 62), Point(7, 71)), curve=True),
        Series("vit", (Point(18, 71),)),
    ]


def test_picture_is_written_twice_and_the_same_each_time(tmp_path: Path) -> None:
    first = plot_accuracy(series(), tmp_path / "a" / "one", "MMACs")
    second = plot_accuracy(series(), tmp_path / "b" / "one", "MMACs")
    assert [path.name for path in first] == ["one.png", "one.svg"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    with Image.open(first[0]) as picture:
        assert picture.width == 680  # a column of 3.4 inches at 200 dots each
    with pytest.raises(ValueError, match="no points"):
        plot_accuracy([], tmp_path / "none", "MMACs")
    with pytest.raises(ValueError, match="positive costs"):
        plot_accuracy([Series("a", (Point(0, 1),))], tmp_path / "none", "MMACs")


def test_labels_cover_neither_points_nor_each_other() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.9))
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    crowd = [Series("a", tuple(Point(4 + i / 4, 5.0, f"{i}x{i}") for i in range(8)))]
    _label_points(axes, crowd)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 2 <= len(boxes) <= 8
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    dots = axes.transData.transform([(point.cost, point.accuracy) for point in crowd[0].points])
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)
