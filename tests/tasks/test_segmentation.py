"""The segmentation task: scores by hand and by torchmetrics, sizes, padding, views, first weights, and a whole run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lookupvit import create_model, save_weights
from lookupvit.metrics.segmentation import SegmentationMetrics
from lookupvit.model.dense.inference import View, segment, starts
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.tasks import SegmentationTask
from lookupvit.tasks.losses import dice_loss, segmentation_loss
from lookupvit.tasks.optim import warmup_poly

NAME, VIT = "lookupvit_tiny_patch4_32", "vit_tiny_patch4_32"
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def task(name=NAME, **options):
    torch.manual_seed(0)
    own = {} if name == VIT else {"compressed_size": None if "compressed_sizes" in options else (2, 2)}
    return SegmentationTask(name, 3, (32, 40), args=TINY, **{**own, **options})


def batch(sizes=((32, 40), (32, 40)), seed=0):
    """Images whose left half is dark and of class 0, right half bright and of class 1, a last row of class 255."""
    rng = torch.Generator().manual_seed(seed)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images, masks = torch.zeros(len(sizes), 3, height, width), torch.full((len(sizes), height, width), 255)
    for image, mask, (y, x) in zip(images, masks, sizes, strict=True):
        image[:, :y, :x] = 0.3 * torch.randn(3, y, x, generator=rng) - 1
        image[:, :y, x // 2 : x] += 2
        mask[:y, :x] = 0
        mask[:y, x // 2 : x] = 1
        mask[y - 1] = 255
    files = [f"{place}.png" for place in range(len(sizes))]
    return {"images": images, "masks": masks, "sizes": torch.tensor(sizes), "files": files}


def loader(batches):
    return DataLoader(batches, batch_size=None)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    """Truth 0 0 1 1 1 and one pixel that does not count; found 0 1 1 1 0; class 2 is nowhere."""
    metric = SegmentationMetrics(3)
    metric.update(torch.tensor([[[0, 1, 1], [1, 0, 2]]]), torch.tensor([[[0, 0, 1], [1, 1, 255]]]))
    scores = metric.compute()
    assert scores["iou"][:2].tolist() == pytest.approx([1 / 3, 2 / 4]) and torch.isnan(scores["iou"][2])
    assert float(scores["miou"]) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert float(scores["pixel_accuracy"]) == pytest.approx(3 / 5)
    assert float(scores["class_accuracy"]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_scores_equal_torchmetrics():
    torch.manual_seed(0)
    metric = SegmentationMetrics(5)
    peers = {
        "miou": MulticlassJaccardIndex(5, ignore_index=255),
        "pixel_accuracy": MulticlassAccuracy(5, average="micro", ignore_index=255),
        "class_accuracy": MulticlassAccuracy(5, average="macro", ignore_index=255),
    }
    for _ in range(3):
        found, truth = torch.randint(5, (2, 6, 7)), torch.randint(5, (2, 6, 7))
        truth[:, 0] = 255
        for one in (metric, *peers.values()):
            one.update(found, truth)
    for name, peer in peers.items():
        assert float(metric.compute()[name]) == pytest.approx(float(peer.compute()))


def test_scores_count_true_sizes_only(tmp_path):
    """A batch padded to one size against its images one by one, at every compressed size in one pass."""
    model = task(compressed_sizes=[[1, 2], [3, 4]])
    padded, trainer = batch(((24, 40), (32, 25))), Trainer(accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    padded["images"][0, :, 24:] = 50.0  # what lies in the padding must not matter
    single = [
        {key: value[i : i + 1] for key, value in padded.items()}
        | {"images": padded["images"][i : i + 1, :, :y, :x], "masks": padded["masks"][i : i + 1, :y, :x]}
        for i, (y, x) in enumerate(((24, 40), (32, 25)))
    ]
    (together,) = trainer.validate(model, loader([padded]), verbose=False)
    (apart,) = trainer.validate(model, loader(single), verbose=False)
    assert together == pytest.approx(apart, rel=1e-5)
    assert {"val/miou", "val/miou@3x4", "val/miou@1x2", "val/pixel_accuracy", "val/iou_0", "val/loss"} <= set(together)
    assert together["val/miou"] == together["val/miou@3x4"] != together["val/miou@1x2"]
    metric = MulticlassJaccardIndex(3, ignore_index=255)
    model.eval()
    with torch.no_grad():
        for one in single:
            metric.update(model.model(one["images"], (1, 2)).argmax(dim=1), one["masks"])
    assert together["val/miou@1x2"] == pytest.approx(float(metric.compute()))


# -- views -------------------------------------------------------------------------------------------------------------


def test_one_window_that_covers_the_image_is_the_whole_image():
    model, images = task().model.eval(), batch()["images"]
    with torch.no_grad():
        (whole,) = segment(model, images, [None])
        for window in ((32, 40), (100, 100)):
            assert torch.equal(segment(model, images, [None], View("slide", window))[0], whole)
        assert torch.equal(model(images), whole)


def test_windows_by_hand():
    assert starts(100, 40, 30) == [0, 30, 60] and starts(101, 40, 30) == [0, 30, 60, 61] and starts(10, 40, 30) == [0]
    model, images = task().model.eval(), batch(((32, 64),))["images"]
    with torch.no_grad():
        (found,) = segment(model, images, [(2, 2)], View("slide", (32, 40), (32, 24)))
        left, right = (model(images[..., part], (2, 2)) for part in (slice(0, 40), slice(24, 64)))
    torch.testing.assert_close(found[..., :24], left[..., :24])
    torch.testing.assert_close(found[..., 40:], right[..., 16:])
    torch.testing.assert_close(found[..., 24:40], (left[..., 24:] + right[..., :16]) / 2)


def test_flips_and_scales_by_hand():
    model, images = task().model.eval(), batch()["images"]
    with torch.no_grad():
        (found,) = segment(model, images, [None], View(flip=True, scales=(1.0, 0.5)))
        small = F.interpolate(images, size=(16, 20), mode="bilinear", antialias=True)
        views = [model(images), model(images.flip(3)).flip(3)]
        for seen, mirrored in ((small, False), (small.flip(3), True)):
            logits = F.interpolate(model(seen).flip(3) if mirrored else model(seen), size=(32, 40), mode="bilinear")
            views.append(logits)
    torch.testing.assert_close(found, torch.stack(views).mean(dim=0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"eval_mode": "tiles"}, "eval_mode='tiles' is not known"),
        ({"eval_window": 32}, "set eval_mode slide"),
        ({"eval_mode": "slide", "eval_window": 32, "eval_stride": 40}, "leaves gaps"),
        ({"eval_scales": [0.0]}, "give factors above 0"),
        ({"class_weights": [1.0]}, "1 entries for 3 classes"),
        ({"compressed_size": {"step": 8}}, "stride: 64"),
        ({"compressed_size": {"stride": 16}, "compressed_sizes": [[1, 1]]}, "give one of them"),
        ({"compressed_sizes": [[5, 9]]}, "does not fit the lookup grid"),
        ({"head": "fcn"}, "choose one of linear"),
        ({"head_args": {"layers": 2}}, "head_args='layers' is not known"),
        ({"args": {**TINY, "head": "compressed"}}, "the last block of this backbone"),
        ({"args": {**TINY, "infuse": False}}, "set fuse_compressed=True"),
        ({"schedule": "step"}, "choose one of cosine, poly"),
        ({"name": VIT, "compressed_sizes": [[2, 2]]}, "no compressed tokens"),
        ({"name": VIT, "head": "compressed_queries"}, "a plain ViT has no compressed tokens"),
        ({"sandwich": True}, "need compressed_sizes"),
    ],
)
def test_mistakes_get_one_line(options, text):
    with pytest.raises(ValueError, match=text) as caught:
        SegmentationTask(**{"name": NAME, "num_classes": 3, "img_size": (32, 40), "args": TINY, **options})
    assert "\n" not in str(caught.value)


# -- losses and gradients ----------------------------------------------------------------------------------------------


def test_loss_by_hand():
    logits = torch.tensor([[[[2.0, 0.0, 5.0]], [[0.0, 1.0, -5.0]]]])  # two classes, three pixels
    masks = torch.tensor([[[0, 1, 255]]])
    errors = [np.log(1 + np.exp(-2)), np.log(1 + np.exp(-1))]
    assert float(segmentation_loss(logits, masks)) == pytest.approx(sum(errors) / 2)
    weighted = segmentation_loss(logits, masks, class_weights=torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx((3 * errors[0] + errors[1]) / 4)
    p, q = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))  # of class 0 in the two pixels that count
    dice = 1 - (2 * p / (p + q + 1) + 2 * (1 - q) / (2 - p - q + 1)) / 2
    assert float(dice_loss(logits, masks, masks != 255)) == pytest.approx(dice)
    assert float(segmentation_loss(logits, masks, dice_weight=2.0)) == pytest.approx(sum(errors) / 2 + 2 * dice)
    nothing = segmentation_loss(logits.requires_grad_(), torch.full((1, 1, 3), 255), dice_weight=1.0)
    nothing.backward()
    assert float(nothing.detach()) == 0 and not logits.grad.any()


def test_poly_schedule_by_hand():
    factor = warmup_poly(12, 2, min_ratio=0.1)
    assert [factor(0), factor(2)] == pytest.approx([1 / 3, 1])
    assert factor(7) == pytest.approx(0.1 + 0.9 * 0.5**0.9) and factor(12) == pytest.approx(0.1)


@pytest.mark.parametrize("head", ["linear", "mask_transformer", "compressed_queries"])
@pytest.mark.parametrize("options", [{}, {"fuse_compressed": True}, {"name": VIT}, {"sandwich": True}])
def test_every_parameter_learns(head, options):
    if head == "compressed_queries" and options.get("name") == VIT:
        return
    sizes = {"compressed_sizes": [[1, 1], [2, 2], [3, 4]]} if "sandwich" in options else {}
    model = task(head=head, dice_weight=0.5, **options, **sizes)
    for parameter in model.parameters():  # what starts at zero would hide what lies behind it
        torch.nn.init.normal_(parameter, std=0.1)
    model.log = lambda *args, **kwargs: None
    model._trainer = None
    sizes = model.training_sizes(0)
    largest, *others = model._maps(batch()["images"], sizes)
    sum(model._loss(logits, batch()["masks"]) for logits in (largest, *others)).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_sizes_in_one_pass_equal_separate_passes():
    model, images = task().model.eval(), batch()["images"]
    with torch.no_grad():
        together = segment(model, images, [(1, 1), (4, 5), None], View(flip=True))
        for size, logits in zip([(1, 1), (4, 5), None], together, strict=True):
            assert torch.equal(logits, segment(model, images, [size], View(flip=True))[0])


def test_segmenter_of_any_size_crops_its_padding():
    model = task().model.eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 21, 45))
    assert logits.shape == (1, 3, 21, 45)


def test_mask_transformer_by_hand():
    torch.manual_seed(0)
    model = Segmenter(VIT, 3, (32, 40), head="mask_transformer", args=TINY).eval()
    head, images = model.head, batch()["images"]
    with torch.no_grad():
        tokens = head.fc_in(model.backbone.forward_features(images).lookup)
        x = torch.cat([tokens, head.queries.repeat(2, 1, 1)], dim=1)
        for block in head.blocks:
            x = block(x)
        x = head.norm(x)
        patches, classes = head.fc_tokens(x[:, :20]), head.fc_queries(x[:, 20:])
        cosines = F.cosine_similarity(patches[:, :, None], classes[:, None], dim=-1)  # (B, N, C)
        expected = head.norm_masks(cosines).reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
        torch.testing.assert_close(model.forward_maps(images, [None])[0], expected)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, VIT])
def test_it_learns_halves(name, tmp_path):
    seed_everything(0, verbose=False)
    model = task(name, lr=3e-3, schedule="poly", warmup_steps=2, layer_decay=0.9)
    trainer = Trainer(accelerator="cpu", max_steps=30, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, loader([batch(seed=step) for step in range(30)]))
    (scores,) = trainer.validate(model, loader([batch(((27, 33),), seed=99)]), verbose=False)
    assert scores["val/iou_0"] > 0.85 and scores["val/iou_1"] > 0.85


def test_a_classifier_starts_it_and_its_checkpoint_loads_at_another_size(tmp_path):
    classifier = create_model(NAME, num_classes=7, img_size=24, **TINY)
    classifier.set_preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    save_weights(classifier, tmp_path / "classifier.ckpt")
    seed_everything(0, verbose=False)
    model = task(init_from=str(tmp_path / "classifier.ckpt"), budget_gmacs=None)
    trainer = Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, loader([batch()]))
    weight = model.model.backbone.blocks[0].mlp.fc1.weight
    assert (weight - classifier.blocks[0].mlp.fc1.weight).abs().max() < 5e-3  # one step away
    trainer.save_checkpoint(tmp_path / "segmenter.ckpt")
    content = torch.load(tmp_path / "segmenter.ckpt", weights_only=True)
    assert content["trained_sizes"] == [[2, 2]] and content["hyper_parameters"]["init_from"] is None
    again = SegmentationTask(NAME, 3, (48, 40), compressed_size=(2, 2), args=TINY)
    again._trainer = None
    again.on_load_checkpoint(content)
    again.load_state_dict(content["state_dict"])
    assert torch.equal(again.model.backbone.blocks[0].mlp.fc1.weight, weight)
    other = task(init_from=str(tmp_path / "segmenter.ckpt"), head="mask_transformer")
    other.setup("fit")
    assert torch.equal(other.model.backbone.blocks[0].mlp.fc1.weight, weight)
