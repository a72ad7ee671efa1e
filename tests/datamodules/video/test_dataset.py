"""Clips of many files, some of them bad: nothing good is lost, every bad file is named once."""

import logging
import random
import re
import sys
from pathlib import Path

import pytest
import torch
import video_files as files
from torch.utils.data import DataLoader

from datamodules.images.transforms import transform_options
from datamodules.video.dataset import TooManyBadVideosError, VideoDataset
from datamodules.video.sampling import FrameSampler
from datamodules.video.transforms import CollateVideos, CoverJitter, EvalTransform, TrainTransform

OPTIONS = transform_options("light", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), hflip=0.0)
BAD = {3: "empty", 17: "truncated", 30: "garbage", 31: "missing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("videos")
    paths = [files.write(root / f"{place:02d}.mp4", frames=6, seed=place) for place in range(40)]
    for place, kind in BAD.items():
        if kind == "missing":
            paths[place].unlink()
        else:
            files.damage(paths[place], kind)
    return [str(path) for path in paths]


def dataset(paths: list[str], kind: str = "train", clips: int = 1, crops: int = 1, **options) -> VideoDataset:
    transform = EvalTransform((16, 16), OPTIONS, crops)
    if kind == "train":
        transform = TrainTransform((16, 16), OPTIONS, (16, 20))
    samples = [(path, place) for place, path in enumerate(paths)]
    return VideoDataset(samples, FrameSampler(4), transform, kind, clips, decoder="pyav", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_replaced_named_once_and_counted(
    folder: list[str], workers: int, capfd: pytest.CaptureFixture
) -> None:
    data = dataset(folder)
    torch.manual_seed(0)
    loader = DataLoader(data, 4, shuffle=True, num_workers=workers, collate_fn=CollateVideos())
    handler = logging.StreamHandler(sys.stderr)  # to the terminal, as workers have it
    logging.getLogger("datamodules").addHandler(handler)
    try:
        epochs = [[int(label) for _, labels in loader for label in labels] for _ in range(2)]
    finally:
        logging.getLogger("datamodules").removeHandler(handler)
    text = capfd.readouterr().err
    for place in range(40):
        named = len(re.findall(f"another video takes its place: [^\n]*{place:02d}.mp4", text))
        assert named == (1 if place in BAD else 0), place
    for labels in epochs:
        assert len(labels) == 40 and set(labels) == set(range(40)) - set(BAD)  # no good one is lost
    assert data.bad == [folder[place] for place in BAD]
    assert data.replaced == 2 * len(BAD)


def test_evaluation_takes_the_next_video_with_its_own_place(
    folder: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    views, label, place = dataset(folder, "test")[3]
    assert "03.mp4" in caplog.text
    assert (label, place) == (4, 4)
    assert torch.equal(views, dataset(folder, "test")[4][0])


def test_too_many_bad_files_stop_with_the_list(folder: list[str]) -> None:
    data = dataset(folder, max_bad_share=0.05)  # 2 of 40
    data[3], data[17]
    with pytest.raises(TooManyBadVideosError) as error:
        data[30]
    text = str(error.value)
    assert text.startswith("3 of 40 videos are bad, more than data.max_bad_share=0.05") and "\n" not in text
    assert all(folder[place] in text for place in (3, 17, 30))


def test_a_bounded_number_of_retries(folder: list[str]) -> None:
    missing = [f"{path}.gone" for path in folder]
    with pytest.raises(TooManyBadVideosError, match="4 videos in a row cannot be read"):
        dataset(missing, retries=3, max_bad_share=1.0)[0]


def test_views_are_clips_by_crops(folder: list[str]) -> None:
    test, val, predict = (dataset(folder, kind, clips=2, crops=3) for kind in ("test", "val", "predict"))
    views, label, place = test[0]
    assert views.shape == (6, 3, 4, 16, 16) and (label, place) == (0, 0)
    reference = files.decode_all(Path(folder[0]))  # (6, 3, 32, 48)
    for clip, start in enumerate((0, 2)):
        video = EvalTransform((16, 16), OPTIONS, 3)(reference[start : start + 4])
        assert torch.equal(views[3 * clip : 3 * clip + 3], video)
    assert torch.equal(val[0][0], EvalTransform((16, 16), OPTIONS, 3)(reference[1:5])[0])
    assert torch.equal(predict[0][0], views) and predict[0][1] == 0


def test_cache_gives_the_same_clips_without_the_files(tmp_path: Path) -> None:
    paths = [str(files.write(tmp_path / f"{place}.mp4", frames=12, seed=place)) for place in range(2)]
    plain, cached = dataset(paths), dataset(paths, cache=True)
    random.seed(0), torch.manual_seed(0)
    expected = [plain[place][0] for place in (0, 1, 0, 1)]
    random.seed(0), torch.manual_seed(0)
    found = [cached[place][0] for place in (0, 1)]
    for path in paths:
        Path(path).unlink()
    found += [cached[place][0] for place in (0, 1)]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


# -- transforms ------------------------------------------------------------------------------------------------------


def test_three_crops_lie_along_the_longer_side() -> None:
    wide = torch.arange(40.0).expand(2, 3, 10, 40).to(torch.uint8)  # every pixel says its column
    transform = EvalTransform((10, 10), OPTIONS | {"crop_pct": 1.0}, 3)
    assert [round(float(view[0, 0, 0, 0]) * 255) for view in transform(wide)] == [0, 15, 30]
    tall = wide.transpose(2, 3)
    assert [round(float(view[0, 0, 0, 0]) * 255) for view in transform(tall)] == [0, 15, 30]
    centre = EvalTransform((10, 10), OPTIONS | {"crop_pct": 1.0})(wide)
    assert torch.equal(centre[0], transform(wide)[1])


@pytest.mark.parametrize("short_side", [(16, 24), None])
def test_every_frame_gets_the_same_augmentation(short_side: tuple[int, int] | None) -> None:
    options = transform_options(
        "light", hflip=0.5, color_jitter=0.4, rand_augment={"num_ops": 2, "magnitude": 9}, scale=(0.3, 1.0)
    )
    frames = torch.from_numpy(files.moving(1, 40, 60)).permute(0, 3, 1, 2).repeat(5, 1, 1, 1)
    transform = TrainTransform((16, 16), options, short_side)
    torch.manual_seed(0)
    clips = [transform(frames) for _ in range(8)]
    for clip in clips:
        assert type(clip) is torch.Tensor and clip.shape == (3, 5, 16, 16)
        assert (clip - clip[:, :1]).abs().max() < 1e-6
    assert len({float(clip.sum()) for clip in clips}) == 8


def test_short_side_jitter_covers_its_range() -> None:
    jitter = CoverJitter((16, 16), 1.0, 1.5, 2)
    torch.manual_seed(0)
    sizes = {tuple(jitter.make_params([torch.zeros(2, 3, 20, 40)])["size"]) for _ in range(200)}
    assert {height for height, _ in sizes} == set(range(16, 25))
    assert all(width == 2 * height for height, width in sizes)


def test_mixup_and_cutmix_of_clips() -> None:
    clips = [(torch.full((3, 4, 6, 6), float(value)), value) for value in range(4)]
    torch.manual_seed(0)
    mixed, soft = CollateVideos(4, mixup=1.0)(clips)
    assert mixed.shape == (4, 3, 4, 6, 6) and mixed.is_contiguous() and type(mixed) is torch.Tensor
    assert torch.allclose(soft.sum(1), torch.ones(4))
    # a pixel of the mixture is the expected class of its soft target
    assert torch.allclose(mixed.mean((1, 2, 3, 4)), soft @ torch.arange(4.0))
    cut, soft = CollateVideos(4, cutmix=1.0)(clips)
    assert torch.equal(cut, cut[:, :, :1].expand_as(cut))  # the same rectangle in every frame
    assert torch.allclose(cut.mean((1, 2, 3, 4)), soft @ torch.arange(4.0))
    plain, hard = CollateVideos(4, mixup=1.0, prob=0.0)(clips)
    assert torch.equal(hard, torch.eye(4)) and torch.equal(plain[2], clips[2][0])
