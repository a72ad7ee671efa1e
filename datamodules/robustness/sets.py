"""Several test sets in one pass: images that each carry the number of their set.

The sets are scored by `lookupvit.metrics.robustness`, which is told what each of them asks for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images.transforms import Pipeline


@dataclass(frozen=True)
class TestSet:
    """What is asked of the images of one test set.

    Attributes:
        name: The data set, such as "imagenet-c".
        part: The corruption, where it has those.
        severity: Severity of the corruption, 1 to 5; 0 where there is none.
        classes: Class indices that the logits are restricted to; None for all of the model's.
        role: "accuracy"; or for detecting what is no known class, "out" for such images and "in" for the others of the
            same `name`.
    """

    __test__ = False  # not for pytest

    name: str
    part: str = ""
    severity: int = 0
    classes: tuple[int, ...] | None = None
    role: str = "accuracy"


class TestSets(Dataset):
    """The samples of many data sets one after the other, as `(image, (target, set))`.

    Args:
        sets: What each asks for.
        data: One data set of `(image, target)` for each.
    """

    __test__ = False

    def __init__(self, sets: Sequence[TestSet], data: Sequence[Dataset]) -> None:
        if len(sets) != len(data):
            raise ValueError(f"{len(sets)} test sets, but {len(data)} data sets")
        self.sets, self.data = list(sets), list(data)
        self.ends = torch.tensor([len(dataset) for dataset in data]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[int, int]] | None:
        place = int(torch.searchsorted(self.ends, index, right=True))
        start = int(self.ends[place - 1]) if place else 0
        sample = self.data[place][index - start]
        return None if sample is None else (sample[0], (sample[1], place))

    @property
    def skipped(self) -> list[str]:
        """Paths of the corrupt images left out so far."""
        return [path for dataset in self.data for path in getattr(dataset, "skipped", ())]


class SeveralTestSets:
    """A DataModule whose test goes through many sets; for multiple inheritance, before an image DataModule."""

    @property
    def test_sets(self) -> list[TestSet]:
        """What is asked of each set, in the order of the numbers that the test batches carry."""
        return self.dataset("test").sets

    def setup(self, stage: str | None = None) -> None:
        """Opens every test set for `test`; the other stages are those of the parent class."""
        if stage != "test":
            super().setup(stage)
        elif "test" not in self._datasets:
            self._datasets["test"] = TestSets(*zip(*self._find_sets(), strict=True))

    def _find_sets(self) -> Iterable[tuple[TestSet, Dataset]]:
        """The test sets, at least one."""
        raise NotImplementedError

    def test_dataloader(self) -> DataLoader:
        """Batches `(images (B, 3, H, W), [targets (B,), sets (B,)])`."""
        return self._loader("test")


class ResizedTestSets(SeveralTestSets):
    """`SeveralTestSets` whose images are resized one by one, before they are put into a batch."""

    def _build_pipeline(self, training: bool) -> Pipeline:
        pipeline = super()._build_pipeline(training)
        if not training:
            pipeline.sample, pipeline.resize = pipeline.resize, None
        return pipeline
