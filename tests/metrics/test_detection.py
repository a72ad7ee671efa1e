"""Average precision against pycocotools, where COCO's own figures come from, and against a number by hand."""

import contextlib
import io

import numpy as np
import pytest
import torch

from lookupvit.metrics.detection import DetectionScores

SIDE = 192
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def boxes(count, generator):
    corner = torch.rand(count, 2, generator=generator) * SIDE * 0.6
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) ** 2 * SIDE * 0.8], dim=1)


def masks_of(found):
    """An ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    masks = torch.zeros(len(found), SIDE, SIDE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, found.tolist(), strict=True):
        mask |= ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return masks


def random_case(images=25, seed=0):
    """Targets, some of them crowds and some images empty, and detections, near to them and far from them."""
    generator = torch.Generator().manual_seed(seed)
    targets, found = [], []
    for place in range(images):
        count = 0 if place % 7 == 3 else int(torch.randint(1, 9, (1,), generator=generator))
        own, labels = boxes(count, generator), torch.randint(1, 4, (count,), generator=generator)
        masks = masks_of(own)
        crowd = (torch.rand(count, generator=generator) < 0.15).long()
        targets.append(
            {
                "boxes": own,
                "labels": labels,
                "masks": masks.to(torch.uint8),
                "iscrowd": crowd,
                "area": masks.sum((1, 2)).float(),
            }
        )
        near = own + 0.06 * SIDE * torch.rand(count, 1, generator=generator) * torch.randn(
            own.shape, generator=generator
        )
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        more = 0 if place % 5 == 1 else 12
        guesses = torch.cat([near, boxes(more, generator)])
        classes = torch.cat([labels, torch.randint(1, 4, (more,), generator=generator)])
        scores = torch.rand(len(guesses), generator=generator)
        found.append({"boxes": guesses, "labels": classes, "scores": scores, "masks": masks_of(guesses)})
    return found, targets


def by_pycocotools(found, targets, kind, most=(1, 10, 100)):
    """The same figures from pycocotools, fed with COCO's own format."""
    mask = pytest.importorskip("pycocotools.mask")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entries(images, truth):
        number = 0
        for image, one in enumerate(images):
            for k in range(len(one["labels"])):
                number += 1
                x1, y1, x2, y2 = one["boxes"][k].double().tolist()
                rle = mask.encode(np.asfortranarray(one["masks"][k].numpy().astype(np.uint8)))
                entry = {"id": number, "image_id": image, "category_id": int(one["labels"][k])}
                if truth:
                    area, crowd = float(one["area"][k]), int(one["iscrowd"][k])
                    yield {
                        **entry,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "segmentation": rle,
                        "area": area,
                        "iscrowd": crowd,
                    }
                elif kind == "bbox":
                    yield {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(one["scores"][k])}
                else:
                    yield {**entry, "segmentation": rle, "score": float(one["scores"][k])}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": place, "height": SIDE, "width": SIDE} for place in range(len(targets))],
            "annotations": list(entries(targets, True)),
            "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(entries(found, False))), kind)
        evaluation.params.maxDets = list(most)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # all areas, the largest limit
    return dict(zip(NAMES, evaluation.stats[:6], strict=True)) | {
        "ar": evaluation.stats[8],
        "ap": precision[precision > -1].mean(),  # pycocotools prints -1 for limits other than 100
    }


@pytest.mark.parametrize("batch", [1, 7])
def test_scores_are_those_of_pycocotools(batch):
    found, targets = random_case()
    scores = DetectionScores(masks=True)
    for start in range(0, len(found), batch):
        scores.update(found[start : start + batch], targets[start : start + batch])
    computed = scores.compute()
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        expected = by_pycocotools(found, targets, kind)
        assert 0.05 < expected["ap"] < 0.95 and min(expected.values()) > 0
        for name, value in expected.items():
            assert abs(float(computed[prefix + name]) - value) < 1e-6, prefix + name


def test_boxes_alone_and_another_limit_of_detections():
    found, targets = random_case(seed=1)
    scores = DetectionScores(masks=False, max_detections=3)
    scores.update(found, targets)
    computed = scores.compute()
    expected = by_pycocotools(found, targets, "bbox", (1, 3, 3))
    assert not any(name.startswith("mask") for name in computed)
    assert abs(float(computed["ap"]) - expected["ap"]) < 1e-6
    full = by_pycocotools(found, targets, "bbox")
    assert expected["ap"] < full["ap"] - 0.01  # the limit counts


def test_a_number_by_hand():
    # One class, two objects. By falling score: a hit, a miss, a hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    # Interpolated: 1 up to recall 0.5 (51 of COCO's 101 points), 2/3 beyond (50 points), at every IoU from 0.5 to 0.95.
    target = {"boxes": torch.tensor([[0.0, 0, 50, 50], [60, 60, 90, 100]]), "labels": torch.tensor([1, 1])}
    target |= {"iscrowd": torch.tensor([0, 0]), "area": torch.tensor([2500.0, 1200.0])}
    guess = torch.cat([target["boxes"][:1], torch.tensor([[70.0, 0, 100, 20]]), target["boxes"][1:]])
    found = {"boxes": guess, "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    scores = DetectionScores(masks=False)
    scores.update([found], [target])
    expected = (51 + 50 * 2 / 3) / 101
    computed = scores.compute()
    for name in ("ap", "ap50", "ap75"):
        assert float(computed[name]) == pytest.approx(expected, abs=1e-6)
    assert float(computed["ar"]) == 1
    assert "ap_small" not in computed and "ap_large" not in computed  # both objects are medium


def test_nothing_to_find_and_nothing_found():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "iscrowd": torch.zeros(0).long()}
    empty |= {"area": torch.zeros(0), "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.bool)}
    nothing = {**empty, "scores": torch.zeros(0)}
    scores = DetectionScores(masks=True)
    scores.update([nothing], [empty])
    assert {name: float(value) for name, value in scores.compute().items()} == {"ap": -1.0}
    _, targets = random_case(3)
    scores = DetectionScores(masks=True)
    scores.update([nothing] * 3, targets)
    assert all(float(value) == 0 for value in scores.compute().values())


def test_a_limit_that_does_not_fit():
    with pytest.raises(ValueError, match="max_detections 0: at least 1 detection"):
        DetectionScores(masks=True, max_detections=0)
