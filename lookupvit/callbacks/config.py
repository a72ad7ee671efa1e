"""The configuration of a run, as `config.yaml` in its folder."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lookupvit.writing import whole


class WholeConfig(SaveConfigCallback):
    """Lightning's `SaveConfigCallback`, but the file is whole or not there."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file, through a name beside its own."""
        save = self.parser.save

        def through(config: Any, path: str, **options: Any) -> None:
            with whole(path) as partial:
                save(config, str(partial), **options)

        self.parser.save = through
        try:
            super().setup(trainer, pl_module, stage)
        finally:
            self.parser.save = save
