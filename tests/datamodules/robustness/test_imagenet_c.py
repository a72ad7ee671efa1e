"""ImageNet-C's corruptions, each against a statement of its own, and the simple shifts; any tree of class folders."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TREE_CLASSES, write_tree
from PIL import Image
from torch import Tensor

from datamodules import CorruptedFolderDataModule, ImageFolderDataModule
from datamodules.robustness.corruptions import CORRUPTIONS
from datamodules.robustness.filters import zoom
from datamodules.robustness.imagenet_c import _UNIT, FAMILIES, _elastic_transform, corrupt_image
from datamodules.robustness.shifts import SHIFTS, shift_image

SIDE = 96


def picture(side: int = SIDE) -> Tensor:
    """Smooth ramps, a hard edge and a texture, uint8 `(3, side, side)`."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    texture = 0.5 + 0.5 * torch.sin(20 * x) * torch.cos(31 * y)
    return (255 * (0.1 + 0.6 * torch.stack([x, (y > 0.5).float(), texture]))).to(torch.uint8)


def flat(*colour: int, side: int = SIDE) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, side, side).contiguous()


def point() -> Tensor:
    """One white pixel in the middle."""
    image = flat(0, 0, 0, side=97)
    image[:, 48, 48] = 255
    return image


# -- each corruption, by a statement of its own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "severity", "deviation"),
    [("gaussian_noise", 1, 0.08), ("gaussian_noise", 2, 0.12), ("shot_noise", 1, (128 / 255 / 60) ** 0.5)],
)
def test_noise_has_the_published_deviation(kind: str, severity: int, deviation: float) -> None:
    off = corrupt_image(flat(128, 128, 128), kind, severity, 3).float() / 255 - 128 / 255
    assert off.std().item() == pytest.approx(deviation, rel=0.02)
    assert off.mean().item() == pytest.approx(-0.5 / 255, abs=0.003)  # truncation takes half a step


@pytest.mark.parametrize(("severity", "share"), enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1))
def test_impulses_are_half_salt_half_pepper(severity: int, share: float) -> None:
    values = corrupt_image(flat(100, 100, 100, side=224), "impulse_noise", severity, 5)
    for extreme in (0, 255):
        assert (values == extreme).float().mean().item() == pytest.approx(share / 2, rel=0.06)
    assert set(values.unique().tolist()) == {0, 100, 255}


def test_defocus_spreads_a_point_over_a_disk() -> None:
    """29 pixels lie within 3 of the middle, 441 places within the square; the softening of 0.1 pixels is none."""
    disk = corrupt_image(point(), "defocus_blur", 1, 0)[0]
    assert disk[disk > 0].unique().tolist() == [255 // 29] and int((disk > 0).sum()) == 29
    rows, columns = (disk > 0).nonzero().T
    assert ((rows - 48) ** 2 + (columns - 48) ** 2).max() == 9


def test_motion_spreads_a_point_along_a_ray() -> None:
    """A one-sided Gaussian of deviation 3 over 21 pixels, within 45 degrees of horizontal."""
    ray = corrupt_image(point(), "motion_blur", 1, 4)[0].float()
    rows, columns = (ray > 0).nonzero().T
    along, across = (columns - 48).abs(), (rows - 48).abs()
    assert (across <= along).all() and 5 < along.max() <= 20
    weights = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    assert ray[48, 48].item() == pytest.approx(255 / weights.sum(), abs=1)
    assert ray.sum().item() == pytest.approx(255, abs=12)  # the truncation of each pixel


def test_glass_moves_pixels_a_little() -> None:
    image = flat(40, 40, 40, side=224)
    image[:, :, 112:] = 200
    for severity in (1, 3, 5):
        frosted = corrupt_image(image, "glass_blur", severity, 0)
        assert (frosted[:, :, :80].int() - 40).abs().max() <= 1 and (frosted[:, :, 144:].int() - 200).abs().max() <= 1
        near = frosted[0, 20:200, 108:116].float()
        assert near.std(dim=0).max() > 4  # the straight edge is rough
        assert frosted.float().mean().item() == pytest.approx(image.float().mean().item(), abs=2)


def test_zooms_are_a_mean_of_enlarged_images() -> None:
    """Against torch's interpolation: in the means of rows and columns, for a pixel's shift may lie between the two."""
    image = picture(224)
    factors = np.arange(1, 1.21, 0.02)
    ours = torch.stack([image[None].float()] + [zoom(image[None].float(), f) for f in factors]).mean(dim=0)[0]
    theirs = corrupt_image(image, "zoom_blur", 3, 0).float()
    assert (ours - theirs).abs().mean() < 3 < (theirs - image).abs().mean()


def test_snow_only_brightens_what_it_whitened() -> None:
    image = picture()
    keep = 0.8
    grey = torch.tensor([0.299, 0.587, 0.114]) @ image.float().flatten(1) / 255
    x = image.float().flatten(1) / 255
    least = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    snowed = corrupt_image(image, "snow", 1, 0).float().flatten(1) / 255
    assert (snowed - least.clamp(max=1)).min() > -1.5 / 255
    assert 0.02 < (snowed - least > 0.1).float().mean() < 0.9


def test_frost_is_a_photograph_over_a_dimmed_image() -> None:
    """0.7 of the image and 0.7 of the photograph, which the seed chooses: the difference is 0.7 of the images'."""
    dark, light = (corrupt_image(flat(v, v, v), "frost", 3, 1).float() for v in (0, 40))
    below = light < 255
    assert (light - dark)[below].mean().item() == pytest.approx(0.7 * 40, abs=0.6)
    assert dark.std() > 5 and dark.max() <= 0.7 * 255
    assert len({corrupt_image(flat(0, 0, 0), "frost", 3, seed).float().mean().item() for seed in range(12)}) > 6


def test_fog_of_a_flat_image_lies_within_its_bounds() -> None:
    """(v + 2.5 p) v / (v + 2.5) with p from 0 to 1 lies between v v / (v + 2.5) and v."""
    v = 204 / 255
    fogged = corrupt_image(flat(204, 204, 204), "fog", 3, 2).float() / 255
    assert fogged.min() >= v * v / (v + 2.5) - 1 / 255 and fogged.max() <= v
    assert fogged.std() > 0.02


def test_brightness_contrast_and_jpeg_by_hand() -> None:
    # value 100/255 + 0.3 = 0.692: every channel times 1.765
    assert corrupt_image(flat(100, 50, 0), "brightness", 3, 0)[:, 0, 0].tolist() == [176, 88, 0]
    halves = flat(0, 0, 0)
    halves[:, :, SIDE // 2 :] = 200
    # a fifth of the way from the mean of 100
    assert corrupt_image(halves, "contrast", 3, 0)[0, 0, [0, -1]].tolist() == [80, 120]
    file = BytesIO()
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=7)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(corrupt_image(picture(), "jpeg_compression", 5, 0), expected)


def test_pixelate_takes_the_mean_of_squares() -> None:
    image = picture()
    squares = image.view(3, SIDE // 4, 4, SIDE // 4, 4).float().mean(dim=(2, 4))  # severity 5: a quarter of the side
    blocks = corrupt_image(image, "pixelate", 5, 0)
    assert (blocks[:, ::4, ::4].float() - squares).abs().max() <= 1  # rows are rounded, then columns
    assert torch.equal(blocks, blocks[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_elastic_displacements_have_the_published_deviation() -> None:
    """Uniform noise has deviation 1/sqrt 3, a blur of s divides it by 2 s sqrt pi; a ramp shows it in grey levels."""
    ramp = np.tile(np.arange(224, dtype=np.uint8)[None, :, None], (224, 1, 3))
    np.random.seed(0)
    moved = _elastic_transform(ramp, 0.12 * _UNIT, 0.01 * _UNIT, 0)[20:-20, 20:-20] - ramp[20:-20, 20:-20]
    expected = 0.12 * _UNIT / 3**0.5 / (2 * 0.01 * _UNIT * np.pi**0.5)
    assert moved.std() == pytest.approx(expected, rel=0.06) and expected == pytest.approx(1.954, abs=0.001)
    # severity 1: a blur wider than the image moves it as a whole, by the noise's mean, and the corners by up to 24.4
    np.random.seed(0)
    shifted = _elastic_transform(ramp, 2 * _UNIT, 0.7 * _UNIT, 0)[20:-20, 20:-20] - ramp[20:-20, 20:-20]
    assert shifted.std() < 0.3 and abs(shifted.mean()) < 4
    assert torch.equal(corrupt_image(flat(9, 99, 199), "elastic_transform", 5, 0), flat(9, 99, 199))


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_severities_pixels_and_seeds(kind: str) -> None:
    image = picture(224)
    before = np.random.get_state()[1].copy()
    made = [corrupt_image(image, kind, severity, 7) for severity in (1, 2, 3, 4, 5)]
    assert np.array_equal(before, np.random.get_state()[1])  # the generator of everybody else is as it was
    assert all(one.shape == image.shape and one.dtype == torch.uint8 for one in made)
    assert torch.equal(made[2], corrupt_image(image, kind, 3, 7))
    fixed = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(made[2], corrupt_image(image, kind, 3, 8)) == (kind in fixed)
    off = [(one.float() - image.float()).abs().mean().item() for one in made]
    if kind in {*fixed, *FAMILIES["noise"], "motion_blur"} - {"pixelate"}:  # whose squares may fit the texture
        assert off == sorted(off) and off[0] > 0.2
    elif kind != "elastic_transform":  # which goes from a coarse shift to fine waves: its severities are no such order
        assert off[4] > off[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fogg", 1, 0), "corruption 'fogg' is unknown"),
        (("fog", 6, 0), "severity 6 of fog: choose 1 to 5"),
    ],
)
def test_unknown_corruptions_are_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt_image(picture(), *arguments)
    with pytest.raises(ValueError, match="need 32 pixels or more"):
        corrupt_image(picture(24), "fog", 1, 0)


# -- shifts ------------------------------------------------------------------------------------------------------------


def patches(image: Tensor, side: int) -> list[bytes]:
    cut = image.unfold(1, side, side).unfold(2, side, side)  # (3, r, c, side, side)
    return [cut[:, r, c].contiguous().numpy().tobytes() for r in range(cut.shape[1]) for c in range(cut.shape[2])]


def test_grayscale_is_pils() -> None:
    expected = torch.from_numpy(np.array(Image.fromarray(picture().permute(1, 2, 0).numpy()).convert("L"))).int()
    assert all((channel.int() - expected).abs().max() <= 1 for channel in shift_image(picture(), "grayscale", 0))


def test_a_sketch_is_dark_where_the_edge_is() -> None:
    image = flat(60, 60, 60)
    image[:, :, SIDE // 2 :] = 180
    drawn = shift_image(image, "sketch", 0)
    assert (drawn[:, :, : SIDE // 2 - 8] == 255).all() and (drawn[:, :, SIDE // 2 + 8 :] == 255).all()
    assert drawn[0, :, SIDE // 2 - 1 : SIDE // 2 + 1].max() < 5
    assert (shift_image(flat(60, 60, 60), "sketch", 0) == 255).all()


@pytest.mark.parametrize("grid", [2, 4, 6])
def test_shuffled_patches_are_the_same_patches(grid: int) -> None:
    image = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shuffled = shift_image(image, f"patch_shuffle_{grid}x{grid}", 3)
    before, after = patches(image, SIDE // grid), patches(shuffled, SIDE // grid)
    assert before != after and sorted(before) == sorted(after)
    assert torch.equal(shuffled, shift_image(image, f"patch_shuffle_{grid}x{grid}", 3))


def test_occlusion_leaves_out_so_many_patches_and_more_include_fewer() -> None:
    image, colour = picture(), torch.tensor([1, 2, 3], dtype=torch.uint8)
    gone: list[set[int]] = []
    for share in (25, 50, 75):
        changed = shift_image(image, f"occlusion_{share}", 5, colour=colour)
        pairs = list(zip(patches(image, 16), patches(changed, 16), strict=True))
        gone.append({place for place, (old, new) in enumerate(pairs) if old != new})
        assert len(gone[-1]) == round(share / 100 * 36)
        assert {pairs[place][1] for place in gone[-1]} == {flat(1, 2, 3, side=16).numpy().tobytes()}
    assert gone[0] < gone[1] < gone[2]
    own_mean = shift_image(flat(10, 20, 30), "occlusion_50", 0)
    assert torch.equal(own_mean, flat(10, 20, 30))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("patch_shuffle_7x7", "96x96 pixels is no grid of 7x7 patches"),
        ("occlusion_0", "shift 'occlusion_0' is unknown"),
        ("sketchy", "shift 'sketchy' is unknown: choose of grayscale"),
    ],
)
def test_unknown_shifts_are_one_line(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shift_image(picture(), kind, 0)


# -- a tree of class folders -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("c"), TREE_CLASSES, {"train": 1, "val": 4})


@pytest.fixture
def data_of(tree: Path) -> Callable[..., CorruptedFolderDataModule]:
    def make(**options) -> CorruptedFolderDataModule:
        given = {"corruptions": ["fog", "glass_blur"], "severities": (1, 3), "shifts": ["grayscale", "occlusion_50"]}
        plain = {"img_size": 32, "num_workers": 0, "val_batch_size": 100, "mean": (0, 0, 0), "std": (1, 1, 1)}
        return CorruptedFolderDataModule(str(tree), **{**given, **plain, **options})

    return make


def test_every_set_has_the_same_images(data_of: Callable[..., CorruptedFolderDataModule]) -> None:
    data = data_of()
    found = [(one.name, one.part, one.severity) for one in data.test_sets]
    by_severity = [("corrupted", part, severity) for part in ("fog", "glass_blur") for severity in (1, 3)]
    assert found == [("clean", "", 0), *by_severity, ("grayscale", "", 0), ("occlusion_50", "", 0)]
    ((images, (targets, places)),) = list(data.test_dataloader())
    assert images.shape == (7 * 12, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert all(targets[places == place].tolist() == [0] * 4 + [1] * 4 + [2] * 4 for place in range(7))
    plain = ImageFolderDataModule(str(data.root), 32, 100, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    plain.setup("validate")
    ((clean, _),) = list(plain.val_dataloader())
    assert torch.equal(images[places == 0], clean)
    grey = images[places == 5]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_fewer_images_have_the_same_pixels_in_any_process(data_of: Callable[..., CorruptedFolderDataModule]) -> None:
    ((images, (targets, places)),) = list(data_of().test_dataloader())
    few = list(data_of(images_per_class=2, num_workers=2, val_batch_size=4).test_dataloader())
    some, labels = torch.cat([batch[0] for batch in few]), torch.cat([batch[1][0] for batch in few])
    some_places = torch.cat([batch[1][1] for batch in few])
    assert labels[:6].tolist() == [0, 0, 1, 1, 2, 2]
    for place in range(7):
        every_other = images[places == place][::2]
        assert torch.equal(some[some_places == place], every_other)
    assert len(targets) == 2 * len(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["fogg"]}, "there is no 'fogg'"),
        ({"severities": (0,)}, "data.severities: there is no 0"),
        ({"shifts": ["patch_shuffle_3x3"]}, "32x32 pixels is no grid of 3x3 patches"),
        ({"images_per_class": 0}, "data.images_per_class must be at least 1, got 0"),
        ({"img_size": 16, "shifts": []}, "ImageNet-C's corruptions need 32 pixels"),
    ],
)
def test_mistakes_are_one_line(options: dict, message: str, data_of: Callable[..., CorruptedFolderDataModule]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        data_of(**options)
    assert "\n" not in str(error.value)


def test_without_the_package_one_line_says_how(monkeypatch: pytest.MonkeyPatch, data_of: Callable) -> None:
    from datamodules.robustness import imagenet_c

    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    imagenet_c.prepare.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lookupvit\[robustness\]'"):
        data_of().setup("test")
    imagenet_c.prepare.cache_clear()
    data_of(corruptions=[]).setup("test")  # the shifts need nothing


def test_the_names_of_shifts_all_apply() -> None:
    assert all(shift_image(picture(224), kind, 0).shape == (3, 224, 224) for kind in SHIFTS)
