"""RandAugment's published policies: against timm's operations, and against numbers worked out by hand."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as peer
from torchvision.transforms import v2

from datamodules.images.rand_augment import OPERATIONS, RandAugment, rand_augment, rand_augment_options
from datamodules.images.transforms import transform_options
from datamodules.video.transforms import TrainTransform

FILL = [124, 116, 104]


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    """A smooth picture with noise: every operation changes it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.1, 0.9)[0]
    return (255 * (smooth + 0.03 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)).to(torch.uint8)


def by_timm(name: str, level: float, sign: int, monkeypatch: pytest.MonkeyPatch, most: float = 10) -> torch.Tensor:
    monkeypatch.setattr(peer, "_randomly_negate", lambda value: sign * value)
    hparams = {"img_mean": tuple(FILL), "interpolation": Image.Resampling.BILINEAR, "magnitude_max": most}
    operation = peer.AugmentOp(name, prob=1.0, magnitude=10 * level, hparams=hparams)
    out = operation(Image.fromarray(picture().permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS["timm"])
@pytest.mark.parametrize("level", [0.0, 0.35, 0.9])
def test_deit_s_operations_are_timm_s(name: str, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {one.removesuffix("Rel").removesuffix("Increasing"): one for one in peer._RAND_INCREASING_TRANSFORMS}
    assert sorted(names) == sorted(OPERATIONS["timm"])
    ours = RandAugment("timm", 1, 9, fill=FILL)
    for sign in (1, -1):
        got = ours.operate(name, picture(), level, sign).int()
        off = [(got - by_timm(names[name], level, way, monkeypatch).int()).abs() for way in (sign, -sign)]
        if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
            # PIL's grid and border differ by parts of a pixel, and its x runs the other way
            shares = [(one > 24).float().mean().item() for one in off]
            assert min(shares) < 0.06
            assert level == 0 or abs(shares[0] - shares[1]) > 0.1
        else:
            assert off[0].max() <= 1, (name, level, sign)  # rounded or truncated
        assert level == 0 or (got - picture().int()).abs().float().mean() > 0.5


@pytest.mark.parametrize("name", ["Posterize", "Solarize", "SolarizeAdd", "Color", "Brightness", "Sharpness", "Invert"])
@pytest.mark.parametrize("level", [0.3, 1.0, 1.5])
def test_augreg_s_go_beyond_ten(name: str, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm has the same without its limit to the magnitude, but for SolarizeAdd, which it holds at 128."""
    expected = by_timm(name, level, 1, monkeypatch, most=30).int()
    got = RandAugment("big_vision", 1, 15).operate(name, picture(), level, 1).int()
    if name == "SolarizeAdd" and level > 1.2:
        low = picture() < 128
        assert (got[low] == 255).float().mean() > (expected[low] == 255).float().mean()
    else:
        # the grey is rounded before it is stretched
        assert (got - expected).abs().max() <= (3 if name == "Color" and level > 1 else 1)


def test_movements_worked_out_by_hand() -> None:
    augreg = RandAugment("big_vision", 1, 15, fill=[1, 2, 3])
    dot = torch.zeros(3, 201, 201, dtype=torch.uint8)
    dot[:, 99:102, 179:182] = 200  # 80 to the right of the centre
    turned = augreg.operate("Rotate", dot, 1.5, 1)  # by 45 degrees, beyond torchvision's 30
    y, x = (int(v) for v in (turned[0] > 100).nonzero().float().mean(dim=0).round())
    assert (abs(x - 100), abs(y - 100)) == (pytest.approx(80 / math.sqrt(2), abs=1.5),) * 2
    assert turned[:, 0, 0].tolist() == [1, 2, 3]
    moved = augreg.operate("TranslateX", dot, 0.5, -1)  # by 50 pixels
    assert (moved[0] == 200).nonzero().float().mean(dim=0).tolist() == [100, 130]
    line = torch.zeros(3, 101, 101, dtype=torch.uint8)
    line[:, :, 50] = 200
    sheared = augreg.operate("ShearX", line, 1.0, 1)  # by 0.3 a row
    at = [(sheared[0, row] == 200).nonzero().float().mean().item() for row in (10, 90)]
    assert abs(at[1] - at[0]) == pytest.approx(0.3 * 80, abs=1)


def test_cutout_and_contrast_worked_out_by_hand() -> None:
    torch.manual_seed(0)
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    areas = set()
    for policy, colour in (("big_vision", 128), ("scenic", 0)):
        for _ in range(30):
            out = RandAugment(policy, 1, 5).operate("Cutout", white, 0.5, 1)  # 20 pixels each way
            hole = (out == colour).all(dim=0)
            rows, columns = hole.any(dim=1).sum().item(), hole.any(dim=0).sum().item()
            assert hole.sum() == rows * columns and 20 <= rows <= 40 and 20 <= columns <= 40
            areas.add(rows * columns)
    assert len(areas) > 10 and max(areas) == 1600
    # of 16 x 64 pixels the grey is 4; 0.1 + 1.8 * 0.5 = 1 leaves all; 0.1 + 1.8 * 1.5 = 2.8
    image = torch.full((3, 16, 64), 54, dtype=torch.uint8)
    contrast = RandAugment("big_vision", 1, 5).operate
    assert contrast("Contrast", image, 0.5, 1).unique().tolist() == [54]
    assert contrast("Contrast", image, 1.5, 1).unique().tolist() == [144]
    assert contrast("Posterize", image, 0.0, 1).unique().tolist() == [0]
    assert contrast("Posterize", image, 0.5, 1).unique().tolist() == [0]  # two bits: multiples of 64
    assert contrast("Posterize", image + 20, 0.5, 1).unique().tolist() == [64]


class Counting(RandAugment):
    """Notes what would be done."""

    def operate(self, name, image, level, sign):
        self.seen.append((name, level, sign))
        return image


def test_draws() -> None:
    torch.manual_seed(0)
    image = picture(4, 4)
    for policy, options in (("timm", {"magnitude_std": 0.5, "prob": 0.5}), ("big_vision", {}), ("scenic", {})):
        one = Counting(policy, 2, 9, **options)
        one.seen = []
        for _ in range(3000):
            one(image)
        expected = 3000 if policy == "timm" else 6000
        assert len(one.seen) == pytest.approx(expected, rel=0.05)  # each with a probability of a half
        names = Counter(name for name, _, _ in one.seen)
        share = len(one.seen) / len(OPERATIONS[policy])
        assert set(names) == set(OPERATIONS[policy])
        assert all(abs(count - share) < 6 * share**0.5 for count in names.values())
        levels = torch.tensor([level for _, level, _ in one.seen])
        assert levels.max() <= 1 and levels.mean() == pytest.approx(0.9, abs=0.01)
        assert levels.std() == pytest.approx(0.05 if policy == "timm" else 0, abs=0.006)
        assert sum(sign for _, _, sign in one.seen) / len(one.seen) == pytest.approx(0, abs=0.06)


def test_the_same_seed_gives_the_same_image_and_all_frames_are_changed_alike() -> None:
    for policy in OPERATIONS:
        transform = pickle.loads(pickle.dumps(rand_augment(rand_augment_options({"policy": policy}, None), FILL)))
        clip = picture().expand(3, -1, -1, -1)  # (T, 3, H, W)
        for seed in range(25):
            torch.manual_seed(seed)
            one = transform(picture())
            torch.manual_seed(seed)
            frames = transform(clip)
            assert frames.shape == clip.shape and frames.dtype == torch.uint8
            assert all(torch.equal(frame, frames[0]) for frame in frames)
            torch.manual_seed(seed)
            assert torch.equal(one, transform(picture()))


def test_torchvision_s_policy_is_torchvision_s() -> None:
    options = rand_augment_options({"num_ops": 3, "magnitude": 7}, None)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = v2.RandAugment(3, 7, 31, fill=FILL)(picture())
        torch.manual_seed(seed)
        assert torch.equal(rand_augment(options, FILL)(picture()), expected)


def test_colours_of_clips_with_their_probabilities() -> None:
    """ViViT on Kinetics: jitter with 0.8, grey with 0.1; the same for all frames."""
    options = transform_options(
        "light", hflip=0.0, color_jitter=(0.125, 0.4, 0.4, 0.2), color_jitter_prob=0.8, grayscale_prob=0.1,
        mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear",
    )  # fmt: skip
    transform = TrainTransform((32, 32), options, short_side=(32, 32))
    clip = picture(32, 32).expand(4, -1, -1, -1)
    still = clip / 127.5 - 1
    torch.manual_seed(0)
    same = grey = 0
    for _ in range(400):
        out = transform(clip).transpose(0, 1)  # (3, T, H, W) -> (T, 3, H, W)
        assert torch.equal(out[0], out[3]) and out.abs().max() <= 1
        same += torch.allclose(out, still, atol=1e-5)
        grey += (out[:, 0] - out[:, 1]).abs().max().item() < 1e-5
    assert same == pytest.approx(0.2 * 0.9 * 400, abs=24) and grey == pytest.approx(40, abs=18)
