"""Recipes and options, and what the transforms built from them do to real tensors."""

import pickle
from collections import Counter

import pytest
import torch
from torchvision.transforms import v2

from datamodules.images.collate import Collate
from datamodules.images.transforms import (
    RECIPES,
    PadCropFlip,
    ResizeToCover,
    eval_transform,
    train_transform,
    transform_options,
)
from datamodules.video.transforms import EvalTransform, TrainTransform


def image(height=50, width=70, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_published_values():
    deit, augreg = transform_options("deit"), transform_options("augreg")
    assert (deit["mixup"], deit["cutmix"], deit["random_erasing"]) == (0.8, 1.0, 0.25)
    assert (deit["rand_augment"]["num_ops"], deit["rand_augment"]["magnitude"]) == (2, 9)
    assert (augreg["mixup"], augreg["cutmix"], augreg["random_erasing"]) == (0.5, 0.0, 0.0)
    assert (augreg["rand_augment"]["num_ops"], augreg["rand_augment"]["magnitude"]) == (2, 15)
    assert augreg["mean"] == augreg["std"] == (0.5, 0.5, 0.5)  # pixels in -1..1
    assert transform_options("light")["rand_augment"] is None
    for recipe in RECIPES:  # 256 -> 224
        assert round(224 / transform_options(recipe)["crop_pct"]) == 256


def test_augreg_s_levels_are_the_published_ones():
    found = {name: transform_options(name) for name in RECIPES if name.startswith("augreg")}
    magnitudes = {name: one["rand_augment"] and one["rand_augment"]["magnitude"] for name, one in found.items()}
    assert magnitudes == {
        "augreg_none": None, "augreg_light1": 0, "augreg_light2": 10, "augreg_medium1": 15,
        "augreg": 15, "augreg_strong1": 20, "augreg_strong2": 20,
    }  # fmt: skip
    assert [one["mixup"] for one in found.values()] == [0.0, 0.0, 0.2, 0.2, 0.5, 0.5, 0.8]
    assert {one["mean"] for one in found.values()} == {(0.5, 0.5, 0.5)}
    # the published crop: 5 % to all of the area, bilinear
    assert {(one["scale"], one["interpolation"]) for one in found.values()} == {((0.05, 1.0), "bilinear")}


def test_single_options_override_the_recipe():
    options = transform_options("deit", mixup=0.1, color_jitter=0.3, cutmix=None, rand_augment={"magnitude": 5})
    assert (options["mixup"], options["color_jitter"], options["cutmix"]) == (0.1, 0.3, 1.0)
    timm = {"policy": "timm", "num_ops": 2, "magnitude": 5, "magnitude_std": 0.5, "prob": 0.5}
    assert options["rand_augment"] == timm
    # a configuration of before names the bins: torchvision's operations, as they were
    before = {"num_ops": 2, "magnitude": 9, "num_magnitude_bins": 11}
    assert transform_options("deit", rand_augment=before)["rand_augment"] == {"policy": "torchvision", **before}
    assert transform_options("deit", rand_augment=False)["rand_augment"] is None
    assert transform_options("light", crop_padding=0)["crop_padding"] is None
    assert RECIPES["deit"]["mixup"] == 0.8  # the preset itself is untouched


@pytest.mark.parametrize(
    ("recipe", "overrides", "text"),
    [
        ("diet", {}, "unknown recipe 'diet': did you mean 'deit'\\? valid: light, deit, augreg"),
        ("light", {"hflop": 0.5}, "unknown transform option 'hflop': did you mean 'hflip'\\? valid: scale, .*std"),
        (
            "light",
            {"rand_augment": {"magnitud": 3}},
            "unknown rand_augment option 'magnitud': did you mean 'magnitude'",
        ),
        ("light", {"rand_augment": {"magnitude": 31}}, "num_magnitude_bins of 31 allows 0 to 30"),
        ("deit", {"rand_augment": {"magnitude": 11}}, "magnitude is 11, but policy timm allows 0 to 10"),
        ("deit", {"rand_augment": {"prob": 2}}, "prob 2 must lie in"),
        ("augreg", {"rand_augment": {"prob": 0.5}}, "unknown rand_augment option 'prob'"),
        ("light", {"rand_augment": {"policy": "tim"}}, "unknown rand_augment policy 'tim': did you mean 'timm'"),
        ("light", {"color_jitter": (0.4, 0.4)}, "color_jitter is one number, or three or four"),
        ("light", {"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "fourth \\(hue\\) at most 0.5"),
        ("light", {"grayscale_prob": 1.5}, "data.grayscale_prob is a probability"),
        ("light", {"rand_augment": True}, "rand_augment is a mapping"),
        ("light", {"interpolation": "cubic"}, "unknown interpolation 'cubic': did you mean 'bicubic'"),
        ("light", {"hflip": 1.5}, "data.hflip is a probability, got 1.5"),
        ("light", {"mixup": -1.0}, "data.mixup must not be negative"),
        ("light", {"crop_pct": 0.0}, "data.crop_pct must lie in"),
        ("light", {"mean": (0.5,)}, "data.mean needs 3 numbers"),
    ],
)
def test_a_mistake_is_one_line(recipe, overrides, text):
    with pytest.raises(ValueError, match=text) as error:
        transform_options(recipe, **overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("crop_padding", [None, 4])
def test_training_images_have_the_size_and_stay_in_range(recipe, size, crop_padding):
    torch.manual_seed(0)
    options = transform_options(recipe, crop_padding=crop_padding, color_jitter=0.4, random_erasing=0.0)
    transform = train_transform(size, options)
    low = ((0 - torch.tensor(options["mean"])) / torch.tensor(options["std"])).view(3, 1, 1)
    high = ((1 - torch.tensor(options["mean"])) / torch.tensor(options["std"])).view(3, 1, 1)
    for seed in range(10):
        out = transform(image(seed=seed))
        assert out.shape == (3, *size)
        assert out.dtype == torch.float32
        assert (out >= low - 1e-5).all()
        assert (out <= high + 1e-5).all()


def test_pad_and_crop_is_a_shifted_window_of_the_padded_image():
    torch.manual_seed(1)
    options = transform_options("light", crop_padding=2, hflip=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    transform = train_transform((8, 8), options)
    source = image(8, 8)
    padded = torch.nn.functional.pad(source.float() / 255, (2, 2, 2, 2))  # (3, 12, 12)
    windows = padded.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)  # (5 * 5, 3, 8, 8)
    seen = set()
    for _ in range(60):
        distance = (windows - transform(source)).abs().amax(dim=(1, 2, 3))  # (25,)
        assert (distance < 1e-6).sum() == 1
        seen.add(distance.argmin().item())
    assert len(seen) > 10


def test_flip_happens_with_its_probability():
    source = image(8, 8)
    for probability, expected in ((0.0, source), (1.0, source.flip(-1))):
        options = transform_options("light", crop_padding=0, scale=(1, 1), ratio=(1, 1), hflip=probability)
        out = train_transform((8, 8), options | {"mean": (0.0,) * 3, "std": (1.0,) * 3})(source)
        assert torch.equal((out * 255).round().byte(), expected)


def test_pad_and_crop_is_as_likely_everywhere_as_torchvision_s():
    """Each of the 5 x 5 windows, flipped or not, comes as often as under v2's RandomCrop and RandomHorizontalFlip."""
    source = torch.arange(64, dtype=torch.uint8).view(1, 8, 8).expand(3, 8, 8) + 1
    steps = v2.Compose([v2.RandomCrop((8, 8), padding=2), v2.RandomHorizontalFlip(0.3)])
    counts = []
    for transform in (PadCropFlip((8, 8), 2, 0.3), steps):
        torch.manual_seed(0)
        seen = Counter(tuple(transform(source)[0].flatten().tolist()) for _ in range(5000))
        assert len(seen) == 50
        counts.append(seen)
    for window in counts[1]:
        expected = 5000 / 25 * (0.3 if window_is_flipped(window) else 0.7)
        assert abs(counts[0][window] - expected) < 5 * expected**0.5


def window_is_flipped(window: tuple[int, ...]) -> bool:
    rows = [row for row in torch.tensor(window).view(8, 8).tolist() if any(row)]
    inside = [value for value in rows[0] if value]
    return inside[0] > inside[-1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_is_what_its_images_are_one_by_one(recipe):
    """Of one small size they go through the resize together, of several sizes, or large, one by one."""
    options = transform_options(recipe)
    pipeline = eval_transform((24, 24), options)
    for sizes in ([(32, 32)] * 5, [(40, 30), (30, 40), (32, 32)], [(150, 140)] * 2):
        images = [image(*size, seed=seed) for seed, size in enumerate(sizes)]
        batch, _ = Collate(pipeline=pipeline)([(one, 0) for one in images])
        torch.testing.assert_close(batch, torch.stack([pipeline(one) for one in images]), rtol=0, atol=1e-6)
    training = train_transform((24, 24), options)
    torch.manual_seed(3)
    cropped = [training.sample(image(40, 30, seed=seed)) for seed in range(4)]
    assert {one.dtype for one in cropped} == {torch.uint8}
    torch.manual_seed(4)
    batch = training.stack(cropped)
    torch.manual_seed(4)
    mean, std = (torch.tensor(options[name]).view(3, 1, 1) for name in ("mean", "std"))
    erase = v2.RandomErasing(options["random_erasing"], value="random")
    one_by_one = [
        erase((one / 255 - mean) / std) if options["random_erasing"] else (one / 255 - mean) / std for one in cropped
    ]
    torch.testing.assert_close(batch, torch.stack(one_by_one), rtol=1e-5, atol=1e-6)


def test_erasing_leaves_noise_in_one_rectangle():
    torch.manual_seed(0)
    source = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    plain = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0.0}
    clean = train_transform((64, 64), transform_options("light", **plain))(source)
    erased = train_transform((64, 64), transform_options("light", random_erasing=1.0, **plain))(source)
    changed = (erased != clean).all(dim=0)
    rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
    assert changed.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0.02 * 64 * 64 * 0.9 < changed.sum() < 0.34 * 64 * 64
    assert erased[:, changed].std() == pytest.approx(1, abs=0.2)


def test_evaluation_equals_the_usual_resize_and_crop():
    options = transform_options("light")
    expected = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    source = image(300, 400)
    assert torch.equal(eval_transform((224, 224), options)(source), expected(source))


def test_evaluation_normalises_by_hand():
    options = transform_options("light", crop_pct=1.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    out = eval_transform((4, 4), options)(torch.full((3, 4, 4), 51, dtype=torch.uint8))  # 51 / 255 = 0.2
    assert out[:, 0, 0].tolist() == pytest.approx([0.2, 0.0, -0.05], abs=1e-6)


@pytest.mark.parametrize(("source", "size"), [((50, 70), (24, 48)), ((70, 50), (24, 48)), ((31, 999), (30, 40))])
def test_a_window_that_is_not_square_is_covered_without_distortion(source, size):
    resized = ResizeToCover(size, v2.InterpolationMode.BILINEAR)(image(*source))
    factors = [after / before for after, before in zip(resized.shape[-2:], source, strict=True)]
    assert factors[0] == pytest.approx(factors[1], rel=0.03)
    assert min(after - side for after, side in zip(resized.shape[-2:], size, strict=True)) == 0
    out = eval_transform(size, transform_options("light"))(image(*source))
    assert out.shape == (3, *size)
    assert out.std(dim=(1, 2)).min() > 0.1  # no padded bar: CenterCrop pads what is too small


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_every_resize_is_antialiased(interpolation, size):
    """Two white columns of four, four times smaller, are grey; without antialiasing the middle two are picked."""
    grey = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": interpolation}
    whole = transform_options("light", scale=(1, 1), ratio=(size[1] / size[0],) * 2, hflip=0.0, crop_pct=1.0, **grey)
    stripes = torch.zeros(3, 4 * size[0], 4 * size[1], dtype=torch.uint8)
    stripes[:, :, ::4] = stripes[:, :, 3::4] = 255
    padded = transform_options("light", crop_padding=1, hflip=0.0, **grey)
    clip = stripes.expand(2, -1, -1, -1)
    outputs = {
        "evaluation": eval_transform(size, whole)(stripes),
        "crop": train_transform(size, whole)(stripes),
        "clip, crop": TrainTransform(size, whole)(clip),
        "clip, short side": TrainTransform(size, whole, short_side=(min(size), min(size)))(clip),
        "clip, evaluation": EvalTransform(size, whole, crops=1)(clip),
    }
    for name, out in outputs.items():
        inside = out[..., 2:-2]  # at the border less is averaged
        assert inside.abs().max() < 0.05, name
    inside = train_transform(size, padded)(stripes)[:, 2:-2, 4:-4]
    assert inside.abs().max() < 0.05


def samples(count=8, classes=5):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 16, 16, generator=generator), number % classes) for number in range(count)]


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_mixed_targets_are_soft_and_sum_to_one(mix, prob):
    torch.manual_seed(0)
    collate = pickle.loads(pickle.dumps(Collate(5, prob=prob, **mix)))  # spawned workers need it picklable
    mixed = 0
    for _ in range(40):
        images, targets = collate(samples())
        assert images.shape == (8, 3, 16, 16)
        assert targets.shape == (8, 5)
        assert targets.dtype == images.dtype == torch.float32
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        assert (targets >= 0).all()
        mixed += bool((targets.max(dim=1).values < 1).any())
    assert mixed == 0 if prob == 0 else mixed >= 38 if prob == 1 else 8 <= mixed <= 32


def test_mixup_is_the_same_mixture_of_images_and_targets():
    torch.manual_seed(0)
    originals = torch.stack([sample for sample, _ in samples(5)])  # one of each class
    images, targets = Collate(5, mixup=0.8)(samples(5))
    torch.testing.assert_close(images, torch.einsum("bc,cxyz->bxyz", targets, originals))


def test_cutmix_targets_are_the_areas():
    torch.manual_seed(2)
    originals = torch.stack([sample for sample, _ in samples(5)])
    images, targets = Collate(5, cutmix=1.0)(samples(5))
    for number in range(5):
        own = (images[number] == originals[number]).all(dim=0).float().mean()
        assert targets[number, number].item() == pytest.approx(own.item(), abs=1e-6)


def test_without_mixing_targets_are_indices_and_strings_stay_a_list():
    images, targets = Collate()(samples())
    assert targets.dtype == torch.int64
    assert targets.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert torch.equal(images[3], samples()[3][0])
    images, paths = Collate()([(torch.zeros(3, 4, 4), "a.jpg"), None, (torch.ones(3, 4, 4), "b.jpg")])
    assert paths == ["a.jpg", "b.jpg"]
    assert images.mean(dim=(1, 2, 3)).tolist() == [0, 1]


def test_pad_and_crop_reaches_every_row_of_an_odd_number():
    torch.manual_seed(0)
    source = torch.arange(1, 10, dtype=torch.uint8).view(1, 9, 1).expand(3, 9, 9)
    cropped = {tuple(PadCropFlip((8, 8), 1, 0.0)(source)[0, :, 4].tolist()) for _ in range(200)}
    assert {rows[0] for rows in cropped} == {0, 1, 2, 3} and len(cropped) == 4
