"""Detection and instance segmentation: images with boxes and masks of objects, as samples and batches.

Letters: `H, W` height and width of an image, `n` objects in it.
"""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.dense.base import BadSampleError, DenseDataModule, DenseImages, ToPredict, normalise
from datamodules.dense.index import Instances, Records, report
from datamodules.dense.masks import palette_of
from datamodules.dense.rle import decode_segmentation
from datamodules.dense.transforms import JitterCrop, ResizeWhole, keep_visible, train_steps
from datamodules.images.collate import without_corrupt
from datamodules.images.decode import decode_rgb
from datamodules.loading.annotations import check_files
from datamodules.loading.untrusted import MAX_MASKS

Sample = tuple[Tensor, dict[str, Any], str]


class InstanceImages(DenseImages):
    """Images with objects. A sample is `(image (3, H, W) float, target, path)`; `DetectionDataModule` shows a target.

    Args:
        images: The objects of each.
        transform: Joint, of `Image`, `BoundingBoxes` and `Mask`.
        options: Normalisation.
        masks: Whether targets have masks.
        training: Leave crowds out, and after the transform what is not to be seen.
        skip_corrupt: As for `DenseImages`.
    """

    def __init__(
        self,
        images: list[Instances],
        transform: v2.Transform,
        options: dict[str, Any],
        masks: bool = True,
        training: bool = False,
        skip_corrupt: bool = False,
    ) -> None:
        super().__init__([(image.path, image.image_id) for image in images], transform, skip_corrupt)
        self.records = Records(images)
        self.options, self.masks, self.training = options, masks, training

    def check(self, index: int) -> list[tuple[str, str]]:
        """As for every data set of dense labels; boxes that were left out or cut off are among what is wrong."""
        path = self.samples[index][0]
        return [(path, problem) for problem in self.records.problems.get(index, ())] + super().check(index)

    def _decode(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        path = self.samples[index][0]
        image = decode_rgb(path)
        height, width = image.shape[-2:]
        number, size, objects = self.records[index]
        if size is not None and tuple(size) != (height, width):
            raise BadSampleError(
                f"the image {path!r} has {width} x {height} pixels (width x height, after the EXIF orientation), its "
                f"annotations say {size[1]} x {size[0]}; correct one of them, or leave it out with data.exclude"
            )
        if self.training:
            objects = [item for item in objects if not item["iscrowd"]]
        corners = torch.tensor([item["box"] for item in objects], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # x, y, width, height -> x1, y1, x2, y2
        area = torch.tensor([item["area"] for item in objects], dtype=torch.float64)
        if size is None:  # parts of the image's sides
            corners, area = corners * torch.tensor([width, height] * 2), area * width * height
        boxes = tv_tensors.BoundingBoxes(corners.float(), format="XYXY", canvas_size=(height, width))
        target = {"boxes": boxes, "labels": torch.tensor([item["label"] for item in objects], dtype=torch.int64)}
        if self.masks:
            target["masks"] = tv_tensors.Mask(self._masks(path, objects, height, width, size is None))
        target["iscrowd"] = torch.tensor([item["iscrowd"] for item in objects], dtype=torch.int64)
        return image, target | {"area": area.float(), "image_id": number}

    def _masks(self, path: str, objects: list[dict[str, Any]], height: int, width: int, parts: bool) -> Tensor:
        """`(n, H, W)` uint8."""
        if len(objects) * height * width > MAX_MASKS:
            raise BadSampleError(
                f"the {len(objects)} masks of the image {path!r} of {width} x {height} pixels have more than "
                f"{MAX_MASKS:,} pixels; make it smaller, or leave it out with data.exclude"
            )
        masks = np.zeros((len(objects), height, width), np.uint8)
        for mask, item in zip(masks, objects, strict=True):
            try:
                outline = item["segmentation"]
                if parts and outline is not None:  # parts of the image's sides
                    outline = [
                        [side * part for side, part in zip(cycle((width, height)), one, strict=False)]
                        for one in outline
                    ]
                mask[:] = decode_segmentation(outline, height, width)
            except ValueError as error:
                raise BadSampleError(
                    f"the annotation {item['id']} of the image {path!r}: {error}; correct it, set data.masks=false for "
                    "boxes alone, or leave the image out with data.exclude"
                ) from error
        return torch.from_numpy(masks)

    def __getitem__(self, index: int) -> Sample | None:
        read = self._read(index)
        if read is None:
            return None
        size = read[0].shape[-2:]
        image, target = self.transform(tv_tensors.Image(read[0]), read[1])
        if self.training:
            target = keep_visible(target)
        else:
            target["area"] = target["area"] * (image.shape[-2] / size[0]) * (image.shape[-1] / size[1])
            target["orig_size"] = torch.tensor(size)
        plain = {key: part.as_subclass(Tensor) if isinstance(part, Tensor) else part for key, part in target.items()}
        return normalise(image, self.options), plain, self.samples[index][0]


def collate_targets(samples: list[Sample | None]) -> dict[str, Any]:
    """Samples of `InstanceImages` -> a dict of lists: `images`, `targets` and `files`; those left out are dropped."""
    images, targets, files = (list(column) for column in zip(*without_corrupt(samples), strict=True))
    return {"images": images, "targets": targets, "files": files}


def collate_to_predict(samples: list[tuple[Tensor, tuple[int, int], str]]) -> dict[str, Any]:
    """Samples of `ToPredict` -> the same; a target has only `orig_size (2,)`."""
    images, sizes, files = (list(column) for column in zip(*samples, strict=True))
    return {"images": images, "targets": [{"orig_size": torch.tensor(size)} for size in sizes], "files": files}


class DetectionDataModule(DenseDataModule):
    """A subclass reads the objects of the images of a split.

    Batches are dicts of lists, one entry for each image:

    - `images`: `(3, H, W)`, normalised float, of different sizes;
    - `targets`: dicts of `boxes (n, 4)` float, (x1, y1, x2, y2) in pixels of that image, x2 and y2 behind the last
      pixel; `labels (n,)` int64 from 1 on; `masks (n, H, W)` uint8 (not with `masks=False`); `iscrowd (n,)`;
      `area (n,)` in square pixels of that image; `image_id`; in evaluation also `orig_size (2,)`, height and width in
      the file;
    - `files`: paths.

    Training is large-scale jitter: a factor of `scale` on the largest image that fits into `img_size`, then a crop of
    at most `img_size`, a flip, a change of colours. Crowds are left out; boxes are those of what the crop shows of the
    masks. In evaluation the boxes are those of the annotations, crowds among them. A prediction batch's targets have
    only `orig_size`; an image that cannot be read is blank there, and its name an `Unreadable`, which says why.

    Args:
        root: The folder of the data.
        img_size: Pixels of the crop in training, one number or (height, width).
        scale: Least and greatest factor of the random scale; 1 is the largest image that fits into `img_size`.
        masks: Whether the objects have masks; `false` for boxes alone.
        filter_empty: Leave out training images without objects.
        max_size: In evaluation, most pixels of the longer side; `None` = any.
        kwargs: As for `DenseDataModule`.
    """

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 1024,
        scale: tuple[float, float] = (0.1, 2.0),
        masks: bool = True,
        filter_empty: bool = False,
        max_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, img_size=img_size, scale=scale, **kwargs)
        self.masks, self.filter_empty, self.max_size = masks, filter_empty, max_size
        if max_size is not None:
            self._check_at_least(1, "max_size")

    # -- classes -----------------------------------------------------------------------------------------------------

    class_names: list[str]
    category_ids: list[int]  # of each class, in files of results

    @property
    def num_classes(self) -> int:
        """Number of classes, without the background."""
        return len(self.class_names)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Red, green and blue, 0 to 255, of each class."""
        return palette_of(self.num_classes)

    # -- data sets ---------------------------------------------------------------------------------------------------

    def _transform(self, training: bool) -> v2.Transform:
        if training:
            return v2.Compose(train_steps(JitterCrop(self.img_size, self.scale, "inside"), self.options))
        return ResizeWhole(None, self.short_side, self.max_size)

    def _labelled(self, samples: list[tuple[str, Any]], split: str, training: bool = False) -> InstanceImages:
        images = [image for _, image in samples]
        if training and self.filter_empty:
            images = [image for image in images if any(not item["iscrowd"] for item in image.objects)]
        return InstanceImages(images, self._transform(training), self.options, self.masks, training, self.skip_corrupt)

    def _check_samples(self, samples: list[tuple[str, Any]], split: str) -> None:
        where = self._source(split)
        if not samples:
            raise ValueError(f"{str(where)!r} has no images: name another split with data.{{train,val,test}}_split")
        check_files([path for path, _ in samples], where)
        report([image for _, image in samples], repr(str(where)))

    def _source(self, split: str) -> Path:
        """The file or the folder that the objects of a split come from, for errors."""
        return self.root

    def _predict_dataset(self, paths: list[str]) -> ToPredict:
        return ToPredict(paths, self._transform(False), self.options, self.img_size)

    def _collate(self, training: bool = False) -> Any:
        return collate_targets

    def _collate_predict(self) -> Any:
        return collate_to_predict
