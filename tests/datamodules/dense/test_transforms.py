"""Images, masks and boxes stay together through every transform."""

import numpy as np
import pytest
import torch
from dense_trees import COLOURS, blocks
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.dense.transforms import JitterCrop, ResizeWhole, keep_visible, train_steps
from datamodules.images.transforms import transform_options


def drawn(labels: np.ndarray) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    image = torch.from_numpy(np.array(COLOURS, np.uint8)[labels]).permute(2, 0, 1)
    return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels))


def classes_seen(image: torch.Tensor) -> torch.Tensor:
    """The class of the nearest colour, and whether the pixel is a mixture."""
    away = (image.float()[None] - torch.tensor(COLOURS).float()[:, :, None, None]).norm(dim=1)  # (4, H, W)
    return away.argmin(0), away.amin(0) > 30


@pytest.mark.parametrize("fit", [None, 37, "inside"])
def test_a_mask_is_what_the_colours_of_its_image_say(fit):
    options = transform_options("light", hflip=0.5)
    sizes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        steps = v2.Compose(train_steps(JitterCrop((40, 48), (0.5, 2.0), fit), options))
        image, mask = steps(*drawn(blocks(44, 60, seed)))
        assert image.shape[-2:] == mask.shape and mask.shape[0] <= 40 and mask.shape[1] <= 48
        seen, mixed = classes_seen(image)
        assert torch.equal(seen[~mixed], mask[~mixed].long())
        assert mixed.float().mean() < 0.3
        sizes.add(tuple(mask.shape))
    assert len(sizes) >= 3


def test_scale_is_drawn_evenly_and_means_what_fit_says():
    heights = []
    for seed in range(200):
        torch.manual_seed(seed)
        params = JitterCrop((1000, 1000), (0.5, 2.0), 50).make_params([tv_tensors.Image(torch.zeros(3, 100, 200))])
        heights.append(params["size"][0])
        assert params["window"] == (0, 0, 100, 200)
        assert abs(params["size"][1] - 2 * params["size"][0]) <= 1
    assert 25 <= min(heights) < 30 and 95 < max(heights) <= 100 and abs(np.mean(heights) - 62.5) < 3


def test_a_crop_of_one_class_is_drawn_anew():
    labels = np.zeros((40, 400), np.uint8)
    labels[:, 200:] = 1
    crop = JitterCrop((40, 40), (1.0, 1.0), None, max_class_ratio=0.9)
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        mask = crop(*drawn(labels))[1]
        share = float((mask == 1).float().mean())
        shares.append(max(share, 1 - share))
    plain = 1 - (40 - 2 * 4) / 360  # part of the places at which one class has more than 90 %
    assert np.mean(np.array(shares) > 0.9) < plain**5


def test_a_box_is_the_bounds_of_its_mask_after_training_transforms():
    objects = 0
    for seed in range(10):
        torch.manual_seed(seed)
        labels = torch.from_numpy(blocks(44, 60, seed))
        masks = torch.stack([(labels == label).to(torch.uint8) for label in (1, 2, 3)])
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.rand(3, 4) * 40, format="XYXY", canvas_size=(44, 60)),
            "masks": tv_tensors.Mask(masks),
            **{"labels": torch.tensor([1, 2, 3]), "iscrowd": torch.zeros(3, dtype=torch.int64), "area": torch.ones(3)},
        }
        steps = v2.Compose(train_steps(JitterCrop((32, 32), (0.3, 3.0), "inside"), transform_options("light")))
        image, target = steps(drawn(labels.numpy())[0], target)
        target = keep_visible(target)
        seen, mixed = classes_seen(image)
        for box, mask, label, area in zip(*(target[k] for k in ("boxes", "masks", "labels", "area")), strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(side) for side in bounds]
            assert area == mask.sum()
            assert set(seen[(mask > 0) & ~mixed].tolist()) <= {int(label)}  # the label went with its mask
            objects += 1
    assert objects > 10


def test_boxes_alone_are_cropped_and_lost_with_what_they_show():
    target = {
        "boxes": tv_tensors.BoundingBoxes([[0, 0, 10, 10], [50, 0, 60, 10]], format="XYXY", canvas_size=(20, 60)),
        **{"labels": torch.tensor([1, 2]), "iscrowd": torch.zeros(2, dtype=torch.int64), "area": torch.ones(2)},
    }
    for seed in range(5):
        torch.manual_seed(seed)
        image, crop = JitterCrop((20, 30), (1.0, 1.0))(tv_tensors.Image(torch.zeros(3, 20, 60)), dict(target))
        kept = keep_visible(crop)
        assert image.shape == (3, 20, 30)
        assert (kept["boxes"] >= 0).all() and (kept["boxes"][:, 2] <= 30).all()
        assert len(kept["boxes"]) == len(kept["labels"]) == len(kept["area"]) <= 1
        assert torch.equal(kept["area"], 10 * (kept["boxes"][:, 2] - kept["boxes"][:, 0]))


def test_evaluation_resizes_all_alike():
    image, mask = drawn(blocks(40, 60, 0))
    boxes = tv_tensors.BoundingBoxes([[6, 4, 30, 20]], format="XYXY", canvas_size=(40, 60))
    assert ResizeWhole()(image, mask, boxes)[0] is image
    image2, mask2, boxes2 = ResizeWhole(short_side=80)(image, mask, boxes)
    assert image2.shape == (3, 80, 120) and mask2.shape == (80, 120) and boxes2.tolist() == [[12, 8, 60, 40]]
    seen, mixed = classes_seen(image2)
    assert torch.equal(seen[~mixed], mask2[~mixed].long())
    assert torch.equal(mask2[::2, ::2], mask) and torch.equal(mask2[1::2, 1::2], mask)  # no shift by half a pixel
    assert ResizeWhole(short_side=80, max_size=90)(image).shape == (3, 60, 90)
    assert ResizeWhole(exact=(30, 30))(mask).shape == (30, 30)
