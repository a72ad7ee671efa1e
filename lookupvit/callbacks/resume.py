"""Exact resume: restores the training loader, and says what other ranks or batches make inexact."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.loading.resumable import run_seed
from lookupvit.writing import say


class ExactResume(Callback):
    """Lets the training loader go on where the checkpoint left it, and says what is not exact after the resume."""

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the loader's state, which Lightning drops where the schedule built the loader before the restore."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        self._states = loop.get("state_dict", {}).get("combined_loader", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the training loader with the one that the checkpoint knew, once it was restored."""
        loader = trainer.train_dataloader
        if len(self._states) == 1 and getattr(loader, "resumed", 0) is None:
            loader.load_state_dict(self._states[0])
        self._states = []
        saved = getattr(loader, "resumed", None)
        if not saved:
            return
        now = loader.sampler
        notes = []
        if saved["samples"] != len(now.dataset):
            notes.append(
                f"the data have {len(now.dataset)} samples, the checkpoint had {saved['samples']}: the rest of this "
                "epoch is in another order, so samples repeat or are missed"
            )
        if saved["seed"] != run_seed():
            notes.append(
                f"the seed of this run is {run_seed()}, it was {saved['seed']}: the data keep the order and the "
                "augmentation of the latter, so that no sample is missed; dropout and drawn sizes differ"
            )
        if saved["global_batch"] != now.global_batch:
            notes.append(
                f"the global batch is {now.global_batch}, it was {saved['global_batch']}: steps, schedule and "
                f"noise differ from here on; the epoch goes on at sample {now.start * now.global_batch}"
            )
            progress = trainer.fit_loop.epoch_loop.batch_progress.current
            shift = now.start - progress.processed if saved["batches"] else 0
            for count in ("ready", "started", "processed", "completed"):
                setattr(progress, count, getattr(progress, count) + shift)
        elif any(saved.get(name) != value for name, value in now.order.items()):  # of streamed shards
            was, new = ({name: state.get(name) for name in now.order} for state in (saved, now.order))
            notes.append(
                f"the order of streamed samples depends on {_text(new)}, the checkpoint had {_text(was)}: the rest of "
                "this epoch is in another order, so samples repeat or are missed"
            )
        elif saved["ranks"] != now.num_replicas:
            notes.append(
                f"{now.num_replicas} ranks instead of {saved['ranks']}, the same global batch: each step sees the same "
                "samples; mixing within a rank's batch, dropout and the last digits of sums differ"
            )
        if trainer.is_global_zero:
            for note in notes:
                say(f"Not exact after this resume: {note}")


def _text(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())
