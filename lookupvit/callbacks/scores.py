"""What `test` and `validate` measured, as files beside the checkpoint."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lookupvit.writing import WriteError, say, write_text


class ScoresFile(Callback):
    """Writes `test.json` and `test.csv`, or `validate.json` and `validate.csv`, beside the checkpoint.

    The JSON has `checkpoint`, `metrics` by name, `data` (class, and root where it has one) and, where not all batches
    were scored, `limit_batches`; the CSV has the columns `metric, value`. A later run replaces them.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what `test` measured."""
        self._write("test", trainer, trainer.limit_test_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what `validate` measured; a validation of `fit` is in its curves."""
        if trainer.state.fn == "validate":
            self._write("validate", trainer, trainer.limit_val_batches)

    def _write(self, name: str, trainer: Trainer, limit: int | float) -> None:
        if not trainer.is_global_zero or not trainer.ckpt_path or "://" in str(trainer.ckpt_path):
            return
        path, data = Path(trainer.ckpt_path), trainer.datamodule
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        document: dict[str, Any] = {"checkpoint": str(path), "metrics": metrics, "data": {"class": type(data).__name__}}
        if hasattr(data, "root"):
            document["data"]["root"] = str(data.root)
        if isinstance(limit, int) or limit != 1.0:  # 1 is a batch, 1.0 all of them
            document["limit_batches"] = limit
        stem = path.absolute().parent / name
        rows = [f"{key},{value!r}\n" for key, value in metrics.items()]
        try:
            write_text(stem.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
            write_text(stem.with_suffix(".csv"), "metric,value\n" + "".join(rows))
        except WriteError as error:  # of a model on a read-only disk; the figures stand on the screen
            say(f"warning: {error}", error=True)
            return
        say(f"wrote {stem}.json and {stem}.csv")
