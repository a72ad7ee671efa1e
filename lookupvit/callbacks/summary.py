"""The summary at the start of a fit."""

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from lookupvit.analysis.cost import count_macs, count_parameters
from lookupvit.grid import size_name


class RunSummary(Callback):
    """Prints one panel at the start of `fit`: model, cost, global batch, learning rate, steps, output folder.

    A run of fewer steps than `log_every_n_steps` logs ten times or at each step, so that it has a training curve.
    """

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Counts parameters and multiply-adds, before a strategy may shard the model."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        model = getattr(pl_module.model, "encoder", pl_module.model)  # of a captioner the encoder alone
        self.rows["model"] = str(getattr(pl_module.hparams, "name", type(model).__name__))
        self.rows["parameters"] = f"{count_parameters(model) / 1e6:.2f} M"
        height, width = model.img_size
        if model.compressed_size is None:
            macs = f"{count_macs(model, model.img_size) / 1e9:.3g}"
        else:
            sizes = getattr(pl_module, "compressed_sizes", None) or [model.compressed_size]
            macs = ", ".join(
                f"{count_macs(model, model.img_size, size) / 1e9:.3g} ({size_name(size)})" for size in sizes
            )
        if hasattr(model, "num_frames"):
            self.rows["GMACs per clip"] = f"{macs} at {model.num_frames} frames of {height}x{width} px"
        else:
            self.rows["GMACs per image"] = f"{macs} at {height}x{width} px"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds what is known once data and optimiser stand, and prints."""
        # Both on every rank: the first may have to set up the data, the second asks rank 0 for it.
        steps, folder = trainer.estimated_stepping_batches, trainer.log_dir
        if steps < trainer.log_every_n_steps:  # it would have no training curve at all
            trainer.log_every_n_steps = max(1, int(steps) // 10)
        if not trainer.is_global_zero:
            return
        batch = getattr(trainer.datamodule, "batch_size", None) or getattr(trainer.train_dataloader, "batch_size", 1)
        devices, accumulation = trainer.world_size, trainer.accumulate_grad_batches
        self.rows["global batch"] = (
            f"{devices * batch * accumulation} = {devices} device{'s' * (devices > 1)} x {batch} x {accumulation}"
            f" accumulation{'s' * (accumulation > 1)}"
        )
        self.rows["learning rate"] = f"{getattr(pl_module, 'lr', float('nan')):g} (as given, whatever the global batch)"
        epochs = f", {trainer.max_epochs} epochs" if (trainer.max_epochs or 0) > 0 else ""
        resumed = f", from step {trainer.global_step}" if trainer.global_step else ""
        self.rows["steps"] = f"{steps}{epochs}{resumed}"
        if (note := _unvalidated(trainer)) is not None:
            self.rows["validation"] = note
        self.rows |= getattr(pl_module, "summary_rows", {})
        self.rows["precision"] = str(trainer.precision)
        self.rows["output folder"] = str(folder or trainer.default_root_dir)
        table = Table.grid(padding=(0, 2))
        for name, value in self.rows.items():
            table.add_row(f"[bold]{name}[/bold]", value)
        Console().print(Panel(table, title="lookupvit fit", title_align="left", expand=False))


def _unvalidated(trainer: Trainer) -> str | None:
    """What to say of a run that `max_steps` ends before its first validation, which chooses the best checkpoint."""
    batches, most = trainer.val_check_batch, trainer.max_steps
    if most < 1 or not isinstance(batches, int) or not trainer.enable_validation:
        return None
    first = batches * (trainer.check_val_every_n_epoch or 1) // trainer.accumulate_grad_batches
    if trainer.global_step + first <= most:
        return None
    return (
        f"none: max_steps {most} ends before the first, at step {first}: no best checkpoint; set "
        f"--trainer.val_check_interval {most * trainer.accumulate_grad_batches} to have one"
    )
