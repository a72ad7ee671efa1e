"""Files that are no data (dotfiles), and files that `check-data` found to be bad: left out everywhere."""

import json
from pathlib import Path

import pytest
from conftest import TREE_CLASSES, write_image, write_tree

from datamodules import ImageFolderDataModule, WebDatasetDataModule
from datamodules.images.folder import ImageFolder, find_images
from datamodules.video.listing import find_videos
from lookupvit.cli.main import main

HIDDEN = ("._0.JPEG", ".hidden.jpg", ".ipynb_checkpoints/0.JPEG")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with three files in one class folder that a system or an editor left."""
    root = write_tree(tmp_path / "a.b" / ".here" / "tree", TREE_CLASSES, {"train": 4, "val": 2}, size=16)
    for name in HIDDEN:
        write_image(root / "train" / TREE_CLASSES[0] / name, 16, 16, 0)
    return root  # below a folder with a dot, which hides nothing


def test_dotfiles_are_no_images(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(ImageFolder(tree / "train")) == 12
    assert len(find_images(tree / "train")) == 12
    assert find_images(tree / "train" / TREE_CLASSES[0] / HIDDEN[0])  # asked for by its name
    (tmp_path / "videos" / ".cache").mkdir(parents=True)
    for name in ("1.mp4", "._1.mp4", ".cache/1.mp4"):
        (tmp_path / "videos" / name).touch()
    assert [Path(file).name for file in find_videos(tmp_path / "videos")] == ["1.mp4"]
    assert main(["check-data", str(tree), "--output", str(tmp_path / "bad.txt")]) == 0  # nothing is bad
    assert "18 files, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize("cache", [False, True])
def test_what_check_data_lists_is_left_out_of_images(cache: bool, new_tree: Path, tmp_path: Path) -> None:
    damaged = new_tree / "train" / TREE_CLASSES[1] / "2.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    listed = tmp_path / "bad.txt"
    assert main(["check-data", str(new_tree), "--output", str(listed)]) == 1
    data = ImageFolderDataModule(
        str(new_tree), img_size=32, batch_size=1, num_workers=0, exclude=str(listed), cache=cache
    )
    data.setup("fit")
    targets = sorted(int(target) for _, batch in data.train_dataloader() for target in batch)
    assert targets == [0] * 4 + [1] * 3 + [2] * 4
    listed.write_text("".join(f"{file}\n" for file in new_tree.rglob("*.JPEG")))
    with pytest.raises(ValueError, match=r"data\.exclude lists every image of a split"):
        ImageFolderDataModule(str(new_tree), exclude=str(listed)).setup("fit")
    listed.write_text("nothing/of/the/kind.jpg\n")
    with pytest.warns(UserWarning, match=r"none of the 1 files that .*bad\.txt' lists \(data\.exclude\) is there"):
        ImageFolderDataModule(str(new_tree), exclude=str(listed), num_workers=0, batch_size=1).setup("validate")
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bad\.txt' is no list of files"):
        ImageFolderDataModule(str(new_tree), exclude=str(listed)).setup("fit")


def test_make_shards_refuses_what_it_cannot_decode(
    new_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    damaged = new_tree / "val" / TREE_CLASSES[1] / "1.JPEG"
    damaged.write_bytes(b"no picture")
    argv = ["make-shards", str(new_tree), str(tmp_path / "shards"), "--split", "val"]
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit")]
    assert len(lines) == 1 and "1 of 6 images cannot be decoded" in lines[0] and str(damaged) in lines[0]
    assert not list((tmp_path / "shards").glob("*.tar"))
    listed = tmp_path / "shards" / "val_bad_files.txt"
    assert main([*argv, "--exclude", str(listed)]) == 0
    info = json.loads((tmp_path / "shards" / "_info.json").read_text())
    assert info["splits"]["val"]["num_samples"] == 5
    data = WebDatasetDataModule(str(tmp_path / "shards"), img_size=32, batch_size=2, num_workers=0)
    assert sum(len(images) for images, _ in data.val_dataloader()) == 5
