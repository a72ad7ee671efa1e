"""What an epoch lost to bad video files, in the log."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from datamodules.video_dataset import VideoDataset


class BadVideoReport(Callback):
    """Says at the end of each epoch how many clips were replaced, and logs the share as ``train/replaced_share``.

    Args:
        datasets: the data sets of a DataModule by name, of which ``train`` is watched.
    """

    def __init__(self, datasets: dict[str, VideoDataset]) -> None:
        self._datasets, self._before = datasets, 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by the trainer."""
        dataset = self._datasets["train"]
        now = dataset.replaced
        replaced, self._before = now - self._before, now
        share = replaced / max(1, len(dataset) // trainer.world_size)
        pl_module.log("train/replaced_share", share, sync_dist=True, on_epoch=True, on_step=False)
        if replaced:
            rank_zero_info(
                f"epoch {trainer.current_epoch}: {replaced} clips ({share:.1%}) were of another video, in place of one "
                f"of {len(dataset.bad)} bad files"
            )
