"""The classifier in training: its model, the sizes that it runs at, its scores, and what its checkpoints carry."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.grid import Tokens, check_compressed_size
from lookupvit.interop.warm_start import initialise
from lookupvit.model.zoo import create_model
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.belonging import check_cascade
from lookupvit.tasks.losses import mean_logits
from lookupvit.tasks.sampling import Size
from lookupvit.tasks.scores import STAGES, Scores
from lookupvit.tasks.sizes import budgeted_size, keep_sizes, plan_sizes, sizes_of_checkpoint
from lookupvit.tasks.starting import freeze_layers, resize_loaded_positions


class ClassifierTask(Task):
    """What `ClassificationTask` trains and tests; the steps are there.

    Args:
        name: Model, one of `lookupvit.list_models()`.
        num_classes: Number of classes; the command line takes it from the data. None keeps the model's own.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the model's own.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; None: the largest of `compressed_sizes`, or
            the model's own.
        compressed_sizes: Sizes of multi-resolution training; None trains at `compressed_size` alone.
        size_weights: How often each of `compressed_sizes` is drawn, relative to the others; None: equally often.
        eval_compressed_sizes: Sizes to evaluate; None: `compressed_sizes`, or `compressed_size` alone.
        budget_gmacs: Instead of `compressed_size`: the largest size that costs at most this many GMACs per image. For
            a checkpoint, only the sizes that it was trained at are considered.
        budget_ms: For `validate`, `test` and `predict`: likewise, within so many milliseconds per call with one image,
            measured on the device when the checkpoint is loaded.
        untrained_sizes: Let a budget choose a size that the checkpoint was not trained at.
        cascade: For `predict`: a file of `lookupvit sweep` with sizes and thresholds. Each image runs at the smallest
            size first, and at the next larger one only while the model is not sure of it.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        args: Further arguments of `lookupvit.create_model`, such as `{"reuse": "renormalize"}`.
        head_bias: Initial value of the classifiers' biases; -6.9 suits the sigmoid loss with 1000 classes. None keeps
            the model's own.
        eval_head: Head that is evaluated, `"compressed"` or `"lookup"`; None evaluates every head and their mean.
        init_from: Where the first weights come from: a checkpoint, a safetensors file, a folder of
            `save_pretrained`, or the name of a timm ViT such as `"vit_base_patch16_224.augreg_in21k"`. Image size,
            patch and classes may differ; a LookupViT takes a plain ViT's weights as `lookupvit.warm_start` does.
        freeze: Number of layers that do not learn, counted from below: 1 is the embedding, 2 also the first block, and
            so on; `"backbone"`: all but the linear classifiers (a linear probe).
        **options: Options of `Task`: optimiser, schedule, moving average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        *,
        compressed_size: tuple[int, ...] | None = None,
        compressed_sizes: list[list[int]] | None = None,
        size_weights: list[float] | None = None,
        eval_compressed_sizes: list[list[int]] | None = None,
        budget_gmacs: float | None = None,
        budget_ms: float | None = None,
        untrained_sizes: bool = False,
        cascade: str | None = None,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        head_bias: float | None = None,
        eval_head: str | None = None,
        init_from: str | None = None,
        freeze: int | str = 0,
        **options,
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()  # of this class and of those below it
        self.init_from, self.eval_head, self.size_weights = init_from, eval_head, size_weights
        sizes = plan_sizes(name, compressed_size, compressed_sizes, size_weights, eval_compressed_sizes)
        self.compressed_size, self.compressed_sizes, self.eval_sizes = sizes
        self.trained_sizes: list[Size] | None = None  # those of the checkpoint that was loaded

        arguments = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path_rate, **(args or {})}
        if self.compressed_size is not None:
            arguments["compressed_size"] = self.compressed_size
        self.model = create_model(name, **arguments)
        candidates = None if untrained_sizes else self.compressed_sizes
        if (size := budgeted_size(self.model, budget_gmacs, budget_ms, candidates, eval_head)) is not None:
            self.compressed_size = self.model.compressed_size = size
        self.cascade = None if cascade is None else Cascade.load(cascade)
        for size in [*self.eval_sizes, *(self.compressed_sizes or []), *(self.cascade.sizes if self.cascade else ())]:
            check_compressed_size(size, self.model.embed.grid_size)
        heads = list(getattr(self.model, "heads", ())) or ["pooled"]
        check(
            eval_head is None or (eval_head in heads and heads != ["pooled"]),
            f"eval_head {eval_head!r} does not exist: {name} has {', '.join(heads)}; null evaluates every head",
        )
        if head_bias is not None:
            self.model.init_head_bias(head_bias)
        freeze_layers(self.model, freeze)
        self._note_decayed()
        self._features = self.model.forward_features
        self._tokens = getattr(self.model, "forward_tokens", None)
        self._build_scores()

    def _build_scores(self) -> None:
        heads = list(getattr(self.model, "heads", ()))
        shown = heads if self.eval_head is None and len(heads) > 1 else []
        what = (self.model.compressed_size, self.eval_sizes, shown, self.model.num_classes)
        self.scores = nn.ModuleDict({stage: Scores(stage, *what) for stage in STAGES}).to(self.device)

    def setup(self, stage: str) -> None:
        """Reads the first weights where training starts, and compiles the model in this process."""
        check(
            self.cascade is None or stage == "predict",
            f"cascade is of predict, not of {getattr(stage, 'value', stage)}: set --model.cascade null; "
            "lookupvit sweep scores cascades",
        )
        self._refuse_timed_budget(stage)
        if stage == "fit" and self.init_from is not None:
            initialise(self.model, self.init_from, verbose=rank_zero_only.rank == 0)
        if self.compile_model:
            shapes = 4 * max(len(self.eval_sizes), len(self.compressed_sizes or []), 1)  # train and eval, last batches
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, shapes)
            self._features = torch.compile(self.model.forward_features, dynamic=False)
            if self._tokens is not None:
                self._tokens = torch.compile(self.model.forward_tokens, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(B, C)` of images `(B, 3, H, W)`: the mean of the heads, or `eval_head` alone."""
        return mean_logits(self.head_logits(images, self.compressed_size, self.eval_head))

    def head_logits(
        self, images: torch.Tensor, compressed_size: Size | None = None, head: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Logits `(B, C)` by head, of images `(B, 3, H, W)`; None keeps the model's own size and heads."""
        return self.logits_at_sizes(images, [compressed_size], head)[compressed_size]

    def logits_at_sizes(
        self, images: torch.Tensor, sizes: list[Size | None], head: str | None = None
    ) -> dict[Size | None, dict[str, torch.Tensor]]:
        """Logits `(B, C)` by size and head, of images `(B, 3, H, W)` that are embedded once."""
        tokens = self.tokens_at_sizes(images, sizes, head)
        return {size: self.model.forward_logits(value) for size, value in tokens.items()}

    def tokens_at_sizes(
        self, images: torch.Tensor, sizes: list[Size | None], head: str | None = None
    ) -> dict[Size | None, Tokens]:
        """Normalised tokens by size, of images `(B, 3, H, W)` that are embedded once."""
        if len(sizes) > 1:
            lookup, grid = self.model.embed_images(images)
            return {size: self._tokens(lookup, grid, size, head) for size in sizes}
        return {sizes[0]: self._features(images, sizes[0], head)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sizes that were trained, and puts the results of `init_from` and `budget_gmacs` in their place."""
        super().on_save_checkpoint(checkpoint)
        keep_sizes(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Chooses the size where a budget is given, and warns of sizes that the checkpoint was not trained at.

        Outside training the positions are resized where the checkpoint has another image size (training at another
        size starts with `init_from`).
        """
        stage = None if self._trainer is None else self.trainer.state.fn
        if self.model.compressed_size is not None and stage != "fit":
            sizes = list(self.cascade.sizes) if self.cascade else [self.model.compressed_size]
            sizes += self.eval_sizes if stage in ("validate", "test") else ()
            contents, size = sizes_of_checkpoint(self, checkpoint, self._checkpoint_name, self.eval_head, sizes)
            self.trained_sizes = contents.trained_sizes
            if size is not None:
                self.compressed_size = self.model.compressed_size = size
                self._build_scores()
            if self.cascade is not None:
                check_cascade(self.cascade, self.hparams.cascade, checkpoint, self.model.img_size)
        super().on_load_checkpoint(checkpoint)
        if stage != "fit":
            resize_loaded_positions(self, checkpoint)
