"""Which compressed sizes a classifier was trained at: kept in its checkpoints, and minded by what comes after."""

import contextlib
from typing import Any

from torch import nn

from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.checkpoints.contents import TRAINED_SIZES, contents_of
from lookupvit.tasks.base import check
from lookupvit.tasks.belonging import check_cascade, choose_size, say_sizes, say_untrained
from lookupvit.tasks.sampling import Size
from lookupvit.tasks.scores import STAGES, Scores
from lookupvit.tasks.starting import StartingTask


class TrainedSizes(StartingTask):
    """The part of ``ClassificationTask`` that knows what its weights were trained at.

    A subclass sets the attributes below and calls ``_build_scores()``.
    """

    compressed_size: Size | None
    compressed_sizes: list[Size] | None
    eval_sizes: list[Size]
    eval_head: str | None
    cascade: Cascade | None
    trained_sizes: list[Size] | None = None  # of the checkpoint that was loaded

    def _build_scores(self) -> None:
        heads = list(getattr(self.model, "heads", ()))
        shown = heads if self.eval_head is None and len(heads) > 1 else []
        about = (self.model.compressed_size, self.eval_sizes, shown, self.model.num_classes)
        self.scores = nn.ModuleDict({stage: Scores(stage, *about) for stage in STAGES}).to(self.device)

    def _check_budgets(self, gmacs: float | None, ms: float | None) -> None:
        check(gmacs is None or ms is None, "budget_gmacs and budget_ms are two budgets: give one of them")
        check(
            ms is None or self.model.compressed_size is not None,
            "budget_ms chooses a compressed size, which a plain ViT does not have: leave it out",
        )

    def setup(self, stage: str) -> None:
        """Refuses to train at a size that was chosen by the clock.

        Raises:
            ValueError: If it would.
        """
        check(
            self.hparams.get("budget_ms") is None or stage != "fit",
            "budget_ms is measured anew on each machine, so that it chooses no size to train at: give budget_gmacs or "
            "compressed_size",
        )
        super().setup(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sizes that were trained; a budget has become the size that it chose."""
        super().on_save_checkpoint(checkpoint)
        own = self.compressed_sizes or [self.model.compressed_size]
        sizes = own if self.trained_sizes is None or self.trainer.state.fn == "fit" else self.trained_sizes
        if self.model.compressed_size is not None:
            checkpoint[TRAINED_SIZES] = [list(size) for size in sizes]
        hyper = checkpoint.get("hyper_parameters", {})
        if hyper.get("budget_gmacs") is not None:
            chosen = {"budget_gmacs": None, "compressed_size": list(self.model.compressed_size)}
            checkpoint["hyper_parameters"] = {**hyper, **chosen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Settles the compressed size where a budget chooses it, and says what does not belong to the checkpoint."""
        contents = contents_of(checkpoint, getattr(self._trainer, "ckpt_path", None) or "the checkpoint")
        stage = None if self._trainer is None else self.trainer.state.fn
        if self.model.compressed_size is not None and stage != "fit":
            gmacs, ms = self.hparams.get("budget_gmacs"), self.hparams.get("budget_ms")
            self.trained_sizes = contents.trained_sizes
            if gmacs is not None or ms is not None:
                about = (gmacs, ms, contents, self.eval_head, self.hparams.get("untrained_sizes", False))
                with contextlib.ExitStack() as stack:
                    if ms is not None and self._trainer is not None:  # timed where, and as precisely as, it will run
                        self.to(self.trainer.strategy.root_device)
                        stack.enter_context(self.trainer.precision_plugin.forward_context())
                    self.compressed_size = self.model.compressed_size = choose_size(self.model, *about)
                self._build_scores()
            else:
                sizes = list(self.cascade.sizes) if self.cascade else [self.model.compressed_size]
                sizes += self.eval_sizes if stage in ("validate", "test") else ()
                say_untrained(contents, sizes)
                if stage is not None and not hasattr(self.model, "num_frames"):  # costs are counted of images alone
                    say_sizes(self.model, contents, sizes, self.eval_head)
            if self.cascade is not None:
                check_cascade(self.cascade, self.hparams.cascade, checkpoint, self.model.img_size)
        super().on_load_checkpoint(checkpoint)
