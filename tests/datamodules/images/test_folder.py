"""Decoding against PIL, and the class tree against what was written."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TREE_CLASSES, write_image
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as PeerImageFolder

from datamodules.images.collate import Collate
from datamodules.images.folder import CorruptImageError, ImageFolder, decode_rgb, find_images


def picture(height=33, width=47):
    coarse = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def with_alpha(image):
    image = image.convert("RGBA")
    image.putalpha(image.convert("L"))
    return image


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


CASES = {
    "rgb.jpg": (picture(), {"quality": 90}),
    "progressive.jpg": (picture(), {"quality": 80, "progressive": True}),
    "gray.jpg": (picture().convert("L"), {"quality": 90}),
    "cmyk.jpg": (picture().convert("CMYK"), {"quality": 95}),
    "cmyk_turned.jpg": (picture().convert("CMYK"), {"quality": 95, "exif": turned(6)}),
    **{f"exif{number}.jpg": (picture(), {"quality": 95, "exif": turned(number)}) for number in range(2, 9)},
    "exif6.png": (picture(), {"exif": turned(6)}),
    "exif6.webp": (picture(), {"exif": turned(6), "lossless": True}),
    "rgb.png": (picture(), {}),
    "gray.png": (picture().convert("L"), {}),
    "gray_alpha.png": (picture().convert("LA"), {}),
    "bilevel.png": (picture().convert("1"), {}),
    "palette.png": (picture().quantize(32), {}),
    "palette_transparent.png": (picture().quantize(32), {"transparency": 3}),
    "alpha.png": (with_alpha(picture()), {}),
    "palette.gif": (picture().quantize(32), {}),
    "plain.bmp": (picture(), {}),
    "plain.tiff": (picture(), {}),
    "plain.ppm": (picture(), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_decode_equals_pil(tmp_path, name):
    image, save = CASES[name]
    path = tmp_path / name
    image.save(path, **save)
    with Image.open(path) as opened:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(opened).convert("RGB"))).permute(2, 0, 1)
    decoded = decode_rgb(path)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == expected.shape
    difference = (decoded.int() - expected.int()).abs()
    assert difference.max() <= (6 if name.endswith(".jpg") else 0)  # two JPEG decoders may round differently
    assert difference.float().mean() < 1


def test_a_torchvision_without_decoders_gives_the_same_pixels(tmp_path, monkeypatch):
    """`torchvision.io` is deprecated since 0.29: without it PIL takes over, 16 bits of grey included."""
    deep = np.linspace(0, 65535, 33 * 47).reshape(33, 47).astype(np.uint16)
    cases = {name: case for name, case in CASES.items() if name.endswith((".jpg", ".png"))}
    for name, (image, save) in {**cases, "deep.png": (Image.fromarray(deep), {})}.items():
        path = tmp_path / name
        image.save(path, **save)
        with monkeypatch.context() as without:
            expected = decode_rgb(path)
            without.setattr("datamodules.images.decode.decode_image", None)
            assert torch.equal(decode_rgb(path), expected), name
            with pytest.raises(CorruptImageError, match="broken"):
                decode_rgb(write_broken(tmp_path, path.read_bytes(), path.suffix))


def test_a_later_torchvision_is_imported_without_its_decoders():
    code = (
        "import torchvision.io as io; del io.decode_image; import datamodules.images.decode as own; "
        "assert own.decode_image is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_broken(folder, data, suffix):
    path = folder / f"broken{suffix}"
    path.write_bytes(data[: len(data) // 2])
    return path


def test_another_format_under_a_jpeg_name(tmp_path):
    """ImageNet has a PNG that is called .JPEG; a BMP and an animated GIF go the same way."""
    image = picture()
    frames = [image.quantize(8), image.rotate(180).quantize(8)]
    image.save(tmp_path / "a.JPEG", format="PNG")
    image.save(tmp_path / "b.JPEG", format="BMP")
    frames[0].save(tmp_path / "c.JPEG", format="GIF", save_all=True, append_images=frames[1:])
    for name, expected in (("a", image), ("b", image), ("c", frames[0].convert("RGB"))):
        decoded = decode_rgb(tmp_path / f"{name}.JPEG").permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(decoded, np.array(expected))


def test_sixteen_bit_png_is_scaled_and_other_deep_formats_are_refused(tmp_path):
    values = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    decoded = decode_rgb(tmp_path / "deep.png")
    assert decoded.shape == (3, 16, 16)
    assert np.abs(decoded[0].numpy().astype(int) - values / 257).max() <= 1
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    with pytest.raises(CorruptImageError, match=r"deep\.tiff.*more than 8 bits"):
        decode_rgb(tmp_path / "deep.tiff")


def damage(path, kind):
    whole = path.read_bytes()
    parts = {"truncated": whole[: len(whole) // 2], "empty": b"", "no image": b"not an image at all\n" * 9}
    path.write_bytes(parts[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "no image"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_image_is_one_line_that_names_it(tmp_path, kind, suffix):
    path = damage(write_image(tmp_path / f"broken.{suffix}", 40, 50, 1), kind)
    with pytest.raises(CorruptImageError) as error:
        decode_rgb(path)
    text = str(error.value)
    assert str(path) in text
    assert "data.skip_corrupt=true" in text
    assert "\n" not in text


def test_a_missing_file_is_no_corrupt_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        decode_rgb(tmp_path / "gone.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_line_survives_the_loader_processes(new_tree, workers):
    path = damage(new_tree / "train" / TREE_CLASSES[1] / "2.JPEG", "truncated")
    loader = DataLoader(ImageFolder(new_tree / "train"), batch_size=4, num_workers=workers)
    with pytest.raises(CorruptImageError) as error:
        list(loader)
    assert str(error.value).startswith(f"cannot decode the image {str(path)!r}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:left out")
def test_skip_corrupt_leaves_out_and_counts(new_tree, workers):
    broken = [
        str(damage(new_tree / "train" / name / "1.JPEG", "truncated")) for name in (TREE_CLASSES[0], TREE_CLASSES[2])
    ]
    dataset = ImageFolder(new_tree / "train", skip_corrupt=True)
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=Collate())
    for _ in range(2):  # a second epoch must not count again
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [4, 4, 2]  # places 1 and 9 of 12 are missing
        assert torch.cat([targets for _, targets in batches]).tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert dataset.skipped == broken


def test_skip_corrupt_names_each_file_once(new_tree):
    path = damage(new_tree / "train" / TREE_CLASSES[0] / "1.JPEG", "truncated")
    dataset = ImageFolder(new_tree / "train", skip_corrupt=True)
    with pytest.warns(UserWarning) as warned:
        for _ in range(3):
            assert dataset[1] is None
    ours = [str(warning.message) for warning in warned if warning.category is UserWarning]
    assert len(ours) == 1
    assert str(path) in ours[0]
    assert "1 left out so far" in ours[0]


@pytest.mark.filterwarnings("ignore:left out")
def test_a_batch_of_nothing_but_corrupt_images_is_an_error(new_tree):
    for number in range(4):
        damage(new_tree / "train" / TREE_CLASSES[0] / f"{number}.JPEG", "empty")
    loader = DataLoader(ImageFolder(new_tree / "train", skip_corrupt=True), batch_size=4, collate_fn=Collate())
    with pytest.raises(ValueError, match="every one of the 4 images of a batch is corrupt"):
        list(loader)


def test_the_tree_equals_torchvisions(image_tree):
    ours, peer = ImageFolder(image_tree / "train"), PeerImageFolder(image_tree / "train")
    assert ours.samples == peer.samples
    assert ours.class_to_idx == peer.class_to_idx == {name: index for index, name in enumerate(TREE_CLASSES)}
    for (image, target), (expected, label) in zip(ours, peer, strict=True):
        assert target == label
        assert (image.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()).abs().float().mean() < 1


def test_indices_follow_the_sorted_names_not_the_order_of_creation(tmp_path):
    for seed, name in enumerate(["n03", "n01", "n10", "n02"]):
        write_image(tmp_path / name / "deeper" / "x.png", 8, 8, seed)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ["n01", "n02", "n03", "n10"]
    assert [os.path.relpath(path, tmp_path).split("/")[0] for path, _ in dataset.samples] == dataset.classes
    assert dataset.targets == [0, 1, 2, 3]


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'.*expected one folder per class"):
        ImageFolder(tmp_path / "nowhere")


def test_a_directory_without_class_folders(tmp_path):
    write_image(tmp_path / "train" / "a.jpg", 8, 8, 0)
    with pytest.raises(ValueError, match=r"no class folders in '.*train'.*holds a\.jpg; expected one folder per class"):
        ImageFolder(tmp_path / "train")


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_an_empty_class_folder(new_tree, content):
    empty = new_tree / "train" / "n02000000"
    empty.mkdir()
    if content:
        (empty / content).write_text("no image")
    with pytest.raises(ValueError, match="n02000000") as error:
        ImageFolder(new_tree / "train")
    assert str(empty) in str(error.value)
    assert (content or "is empty") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_cache_holds_the_same_images(new_tree):
    plain, cached = ImageFolder(new_tree / "train"), ImageFolder(new_tree / "train", cache=True)
    assert cached.images.shape == (12, 3, 32, 32)
    for (image, target), (other, label) in zip(plain, cached, strict=True):
        assert torch.equal(image, other)
        assert target == label


def test_the_cache_needs_one_size(image_tree):
    with pytest.raises(ValueError, match=r"data\.cache=true needs images of one size.*data\.cache=false"):
        ImageFolder(image_tree / "train", cache=True)


@pytest.mark.filterwarnings("ignore:left out")
def test_the_cache_leaves_corrupt_images_out(new_tree):
    path = damage(new_tree / "train" / TREE_CLASSES[0] / "0.JPEG", "truncated")
    dataset = ImageFolder(new_tree / "train", skip_corrupt=True, cache=True)
    assert dataset.skipped == [str(path)]
    assert dataset[0] is None
    assert torch.equal(dataset[1][0], decode_rgb(dataset.samples[1][0]))


def test_a_data_set_can_be_sent_to_another_process(new_tree):
    dataset = ImageFolder(new_tree / "train", skip_corrupt=True, cache=True)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.samples == dataset.samples
    assert torch.equal(copy[3][0], dataset[3][0])


def test_find_images(tmp_path):
    names = ["b.jpg", "a.PNG", "deep/er/c.jpeg"]
    for seed, name in enumerate(names):
        write_image(tmp_path / name, 8, 8, seed)
    (tmp_path / "notes.txt").write_text("no image")
    everything = sorted(str(tmp_path / name) for name in names)
    assert find_images(tmp_path / "b.jpg") == [str(tmp_path / "b.jpg")]
    assert find_images(tmp_path) == everything
    assert find_images(f"{tmp_path}/*") == sorted(str(tmp_path / name) for name in names[:2])
    assert find_images(f"{tmp_path}/**") == everything
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        find_images(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no images in .*\.txt': 1 other files"):
        find_images(f"{tmp_path}/*.txt")
