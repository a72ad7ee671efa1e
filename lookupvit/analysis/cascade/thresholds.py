"""Every cascade that validation data offer, with its accuracy and its cost.

Every chain of sizes, from one size alone to `max_stages` of them, is tried with every combination of thresholds on a
grid of quantiles. How many images each stage hands on, and what they gain there, are sums over the images below each
threshold: cumulative histograms over the stages' confidences, so all combinations of a chain cost one pass over the
images.

Letters: n images, C classes, G thresholds per stage. A size is a compressed grid such as (3, 3).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

import torch
from torch import Tensor

from lookupvit.analysis.cascade.cascade import Cascade, CascadeCosts, Size
from lookupvit.analysis.cascade.confidence import ALWAYS, CONFIDENCES, confidence, fit_temperature, stage_answers
from lookupvit.checks import check_choice


@dataclass
class _Table:
    """One chain at all its thresholds: images classified correctly and average cost, `(G_1, ..., G_k)`.

    Attributes:
        cascade: The chain; its thresholds are placeholders.
        thresholds: Thresholds along each axis.
        right: Images classified correctly, whole numbers in float64, so that equals are equal.
        cost: Average cost per image.
    """

    cascade: Cascade
    thresholds: list[Tensor]
    right: Tensor
    cost: Tensor

    def at(self, index: int) -> Cascade:
        """The cascade at a flat index."""
        places = torch.unravel_index(torch.tensor(index), self.right.shape)
        chosen = (values[place].item() for values, place in zip(self.thresholds, places, strict=True))
        return replace(self.cascade, thresholds=tuple(chosen))


class Candidates:
    """The tables of every chain and option, ready for any number of targets; see `calibrate_cascade` for the arguments.

    Raises:
        ValueError: For arguments that do not fit, in one line.
    """

    def __init__(
        self,
        logits_by_size: dict[Size, Tensor],
        targets: Tensor,
        costs: CascadeCosts,
        confidence: str | None = None,
        temperature: bool | None = None,
        average: bool | None = None,
        max_stages: int = 3,
        grid: int = 64,
    ):
        if not logits_by_size or max_stages < 1 or grid < 2:
            raise ValueError("a calibration needs logits of one size or more, max_stages from 1 on and grid from 2 on")
        if missing := [size for size in logits_by_size if size not in costs.stages]:
            raise ValueError(f"no cost for size {missing[0]}: give the costs of every size that has logits")
        if confidence is not None:
            check_choice("confidence", confidence, CONFIDENCES)
        self.sizes = sorted(logits_by_size, key=lambda size: costs.stages[size])
        self.logits = {size: logits_by_size[size].detach().cpu() for size in self.sizes}
        self.targets, self.costs, self.grid = targets.cpu(), costs, grid
        n = len(self.targets)
        if not n or any(value.ndim != 2 or len(value) != n for value in self.logits.values()):
            raise ValueError("logits and targets differ in their number of images: give (n, C) and (n,), n from 1 on")
        self._seen: dict[tuple, tuple[Tensor, Tensor]] = {}  # of each stage: confidences and what is right, `(n,)`
        ones = dict.fromkeys(self.sizes, 1.0)
        fitted = {size: fit_temperature(self.logits[size], self.targets) for size in self.sizes}
        heats = {None: (ones, fitted), True: (fitted,), False: (ones,)}[temperature]
        kinds = CONFIDENCES if confidence is None else (confidence,)
        averages = (False, True) if average is None else (average,)
        self.tables = []
        for chain in _chains(self.sizes, max_stages):
            # whether and how to go on means nothing to one size
            options = product(kinds, heats, averages) if len(chain) > 1 else [(kinds[0], heats[0], averages[0])]
            for kind, heat, mean in options:
                cascade = Cascade(chain, (ALWAYS,) * (len(chain) - 1), kind, tuple(heat[s] for s in chain), mean)
                self.tables.append(self._table(cascade))

    def within_cost(self, target: float) -> Cascade:
        """The most accurate cascade of an average cost of at most `target`; of equals the cheaper one.

        Raises:
            ValueError: Where none is so cheap.
        """

        def best(table: _Table) -> tuple[float, float, int] | None:
            fits = table.cost <= target * (1 + 1e-9)
            if not fits.any():
                return None
            most = table.right[fits].max()
            cost, index = torch.where(fits & (table.right >= most), table.cost, torch.inf).flatten().min(dim=0)
            return -most.item(), cost.item(), int(index)

        if (found := self._best(best)) is None:
            least = min(table.cost.min().item() for table in self.tables)
            raise ValueError(f"no cascade costs {target:.4g} or less: the cheapest costs {least:.4g} per image")
        return found

    def with_accuracy(self, target: float) -> Cascade:
        """The cheapest cascade of an accuracy of at least `target`; of equals the more accurate one.

        Raises:
            ValueError: Where none is so accurate.
        """
        n = len(self.targets)

        def best(table: _Table) -> tuple[float, float, int] | None:
            good = table.right >= target * n - 1e-6
            if not good.any():
                return None
            least = table.cost[good].min()
            right, index = torch.where(good & (table.cost <= least), table.right, -1.0).flatten().max(dim=0)
            return least.item(), -right.item(), int(index)

        if (found := self._best(best)) is None:
            most = max(table.right.max().item() for table in self.tables) / n
            raise ValueError(f"no cascade reaches an accuracy of {target:.4f}: the best has {most:.4f} on these data")
        return found

    def _best(self, best: Callable[[_Table], tuple[float, float, int] | None]) -> Cascade | None:
        found = [(*key[:2], i, key[2]) for i, table in enumerate(self.tables) if (key := best(table))]
        if not found:
            return None
        _, _, number, index = min(found)
        return self.tables[number].at(index)

    def _stage(self, cascade: Cascade, stage: int) -> tuple[Tensor, Tensor]:
        """Confidences and which answers are right, `(n,)` each; chains share what they have in common."""
        sizes, heat = cascade.sizes[: stage + 1], cascade.temperatures[: stage + 1]
        if not cascade.average:
            sizes, heat = sizes[-1:], heat[-1:]
        key = (sizes, heat, cascade.confidence)
        if key not in self._seen:
            answer = stage_answers([self.logits[size].double() for size in sizes], heat, cascade.average)[-1]
            right = (answer.argmax(dim=1) == self.targets).double()
            self._seen[key] = confidence(answer, cascade.confidence), right
        return self._seen[key]

    def _table(self, cascade: Cascade) -> _Table:
        spent, stages = [self.costs.stages[size] for size in cascade.sizes], len(cascade.sizes)
        sure, right = zip(*(self._stage(cascade, i) for i in range(stages)), strict=True)
        n = len(self.targets)
        rights, cost = right[0].sum(), torch.tensor(self.costs.shared + spent[0], dtype=torch.float64)
        thresholds, cell = [], torch.zeros(n, dtype=torch.int64)
        for i in range(stages - 1):
            thresholds.append(_threshold_grid(sure[i], self.grid))
            # an image goes on at every threshold above its confidence: from this index on
            cell = cell * len(thresholds[-1]) + torch.searchsorted(thresholds[-1], sure[i], right=True)
            shape = tuple(map(len, thresholds))
            rights = rights.unsqueeze(-1) + _below(right[i + 1] - right[i], cell, shape)
            cost = cost.unsqueeze(-1) + spent[i + 1] * _below(torch.ones_like(right[0]), cell, shape) / n
        return _Table(cascade, thresholds, rights, cost)


def _below(weight: Tensor, cell: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Total weight of the images that go on from every stage so far, at each combination of thresholds.

    Args:
        weight: Weight of each image, `(n,)`.
        cell: For each image the flat index of the lowest thresholds at which it goes on, `(n,)`.
        shape: Thresholds of each stage.
    """
    sums = torch.bincount(cell, weight, minlength=torch.Size(shape).numel()).view(shape)
    for axis in range(len(shape)):
        sums = sums.cumsum(axis)
    return sums


def _chains(sizes: list[Size], max_stages: int) -> Iterator[tuple[Size, ...]]:
    for stages in range(1, min(max_stages, len(sizes)) + 1):
        yield from combinations(sizes, stages)


def _threshold_grid(sure: Tensor, grid: int) -> Tensor:
    """Thresholds halfway between neighbouring confidences, evenly spaced in the share of images below; and `ALWAYS`.

    Halfway, so that rounding in a batch of another size does not move an image to the other side.
    """
    values, counts = sure.unique(return_counts=True)  # sorted
    between = (values[1:] + values[:-1]) / 2
    if len(between) >= grid:
        shares = counts.cumsum(0)[:-1] / len(sure)  # of the images that lie below each of them
        wanted = torch.arange(1, grid) / grid
        between = between[torch.searchsorted(shares, wanted).clamp(max=len(between) - 1).unique()]
    return torch.cat([between, between.new_tensor([ALWAYS])])
