"""What reliability costs a training step: the demo's step with and without its callbacks and its loader.

Each round runs the same steps twice, in random order: as `lookupvit fit` runs them (LastCheckpoint with its signals,
SkipNonFinite, StabilityMonitor, the resumable loader, atomic checkpoints), and with torch's own shuffled loader and
none of these. Both in one process, so that a machine that slows down slows both. A step's time varies by more than the
goal, under 2 %, so the time spent inside the callbacks is measured too, by Lightning's profiler.

    python benchmarks/step_cost.py --rounds 9
"""

import argparse
import logging
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from datamodules import DemoDataModule
from lookupvit.callbacks import LastCheckpoint, SkipNonFinite, StabilityMonitor
from lookupvit.checkpoints.atomic import AtomicCheckpointIO
from lookupvit.tasks import ClassificationTask

ROOT = Path(__file__).resolve().parents[1]
WITHOUT, WITH = "without", "with"
CLIP = 1.0


class PlainData(DemoDataModule):
    """The demo with torch's own shuffled loader in training."""

    def train_dataloader(self) -> DataLoader:
        """The loader of torch itself, which cannot be resumed."""
        loader = super().train_dataloader()
        dataset, collate = loader.dataset._inner, loader.collate_fn.collate
        return DataLoader(dataset, self.batch_size, shuffle=True, num_workers=0, collate_fn=collate, drop_last=True)


class Clock(Callback):
    """Seconds from the end of a batch to the end of the next one of the same epoch, after the first `skip`."""

    def __init__(self, skip: int) -> None:
        self.skip, self.seconds, self._last = skip, [], 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Notes the time of one step."""
        now = time.perf_counter()
        if batch_idx > 0 and trainer.global_step > self.skip:
            self.seconds.append(now - self._last)
        self._last = now


def inside(profiler: SimpleProfiler, names: tuple[str, ...]) -> float:
    """Seconds that the callbacks with these names spend in the hooks of a step."""
    return sum(
        sum(seconds)
        for action, seconds in profiler.recorded_durations.items()
        if action.startswith(tuple(f"[Callback]{name}." for name in names)) and ("batch" in action or "_step" in action)
    )


def steps(kind: str, count: int, data: Path, folder: Path) -> tuple[float, float]:
    """Mean seconds of a step, every hundredth of which `StabilityMonitor` looks at; and those inside the callbacks."""
    seed_everything(0, verbose=False)
    args = {"embed_dim": 96, "depth": 4, "num_heads": 3, "patch_size": 8}
    task = ClassificationTask("lookupvit_tiny_patch4_32", 10, 48, compressed_size=(3, 3), args=args, lr=2e-3)
    module = (DemoDataModule if kind == WITH else PlainData)(str(data), batch_size=64, num_workers=0)
    clock = Clock(skip=5)
    # The clock is the last callback, so that its steps include the others' end of a batch. One checkpoint at the end in
    # both: what is compared is the step.
    callbacks: list[Callback] = [ModelCheckpoint(folder / kind, save_top_k=0)]
    if kind == WITH:
        callbacks += [SkipNonFinite(), StabilityMonitor(), LastCheckpoint(folder / kind)]
    own, profiler = tuple(type(callback).__name__ for callback in callbacks[1:]), SimpleProfiler()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=count,
        limit_val_batches=0,
        gradient_clip_val=CLIP,
        log_every_n_steps=10,
        logger=TensorBoardLogger(folder, kind),
        profiler=profiler,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()] if kind == WITH else None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if kind == WITHOUT:
        task.configure_callbacks = lambda: []
        task.on_train_batch_start = lambda *_: None  # the seeding of a step
    trainer.callbacks.append(clock)
    trainer.fit(task, module)
    return statistics.fmean(clock.seconds), inside(profiler, own) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=210, help="steps of each run; an epoch has 93")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=ROOT / "demo_data")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    chance, ratios, shares, times = random.Random(0), [], [], {WITH: [], WITHOUT: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            order = [WITH, WITHOUT]
            chance.shuffle(order)
            both = {kind: steps(kind, args.steps, args.root, Path(folder)) for kind in order}
            seconds = {kind: step for kind, (step, _) in both.items()}
            if number == 0:  # a warm-up
                continue
            for kind in order:
                times[kind].append(seconds[kind])
            ratios.append(seconds[WITH] / seconds[WITHOUT] - 1)
            shares.append(both[WITH][1] / seconds[WITH])
            print(
                f"round {number}: {1000 * seconds[WITH]:.2f} ms with, {1000 * seconds[WITHOUT]:.2f} ms without",
                flush=True,
            )
    low, high = sorted(ratios)[len(ratios) // 4], sorted(ratios)[-1 - len(ratios) // 4]
    print(
        f"\nmedian step: {1000 * statistics.median(times[WITH]):.2f} ms with, "
        f"{1000 * statistics.median(times[WITHOUT]):.2f} ms without; cost {100 * statistics.median(ratios):+.2f} % "
        f"(quartiles of {len(ratios)} rounds {100 * low:+.2f} to {100 * high:+.2f} %), goal under 2 %; "
        f"inside the callbacks {100 * statistics.median(shares):.2f} % of the step"
    )


if __name__ == "__main__":
    main()
