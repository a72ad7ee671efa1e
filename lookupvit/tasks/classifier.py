"""The classifier in training: its model, the sizes that it runs at, its scores, and what its checkpoints carry."""

import contextlib
from math import prod
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lookupvit.analysis.budget import largest_size
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.checkpoints.contents import TRAINED_SIZES, contents_of
from lookupvit.grid import Tokens, check_compressed_size
from lookupvit.interop.warm_start import initialise
from lookupvit.model.zoo import create_model, model_arguments
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.belonging import check_cascade, choose_size, say_sizes, say_untrained
from lookupvit.tasks.losses import mean_logits
from lookupvit.tasks.sampling import Size, check_sizes
from lookupvit.tasks.scores import STAGES, Scores
from lookupvit.tasks.starting import freeze_layers, resize_loaded_positions


class ClassifierTask(Task):
    """Everything of a `ClassificationTask` but the steps of training, evaluation and prediction.

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
        budget_ms: Likewise, for `validate`, `test` and `predict`: the largest size that takes at most this many
            milliseconds per call with one image, measured on the device when the checkpoint is loaded.
        untrained_sizes: Let a budget choose a size that the checkpoint was not trained at.
        cascade: For `predict`: a file of `lookupvit sweep` with sizes and thresholds. Each image runs at the smallest
            size first, and again at the next larger one as long as the model is not sure.
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
        check(
            compressed_sizes is not None or not size_weights,
            "sandwich and size_weights need compressed_sizes: give those too, such as [[3, 3], [5, 5]]",
        )
        self.compressed_sizes = None if compressed_sizes is None else check_sizes(compressed_sizes, size_weights)
        evaluated = self.compressed_sizes if eval_compressed_sizes is None else check_sizes(eval_compressed_sizes)
        self.eval_sizes = evaluated or []
        check(
            not (self.eval_sizes or self.compressed_sizes) or "compressed_size" in model_arguments(name),
            f"{name} has no compressed tokens: leave compressed_sizes and eval_compressed_sizes out",
        )
        if compressed_size is None and self.compressed_sizes:
            compressed_size = max(self.compressed_sizes, key=prod)
        self.compressed_size = tuple(compressed_size) if compressed_size is not None else None
        self.trained_sizes: list[Size] | None = None  # those of the checkpoint that was loaded

        arguments = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path_rate, **(args or {})}
        if self.compressed_size is not None:
            arguments["compressed_size"] = self.compressed_size
        self.model = create_model(name, **arguments)
        check(budget_gmacs is None or budget_ms is None, "budget_gmacs and budget_ms are two budgets: give one of them")
        check(
            budget_ms is None or self.model.compressed_size is not None,
            "budget_ms chooses a compressed size, which a plain ViT does not have: leave it out",
        )
        if budget_gmacs is not None:
            candidates = None if untrained_sizes else self.compressed_sizes
            fitting = largest_size(self.model, gmacs=budget_gmacs, head=eval_head, candidates=candidates)
            self.compressed_size = self.model.compressed_size = fitting
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
            f"cascade is for predict, not for {getattr(stage, 'value', stage)}: set --model.cascade null; "
            "lookupvit sweep scores cascades",
        )
        check(
            self.hparams.get("budget_ms") is None or stage != "fit",
            "budget_ms is measured anew on each machine, so that it chooses no size to train at: give budget_gmacs or "
            "compressed_size",
        )
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
        """Notes the trained sizes, and replaces `init_from` and `budget_gmacs` by what became of them."""
        super().on_save_checkpoint(checkpoint)
        trains = self.trained_sizes is None or self.trainer.state.fn == "fit"
        if self.model.compressed_size is not None:
            sizes = (self.compressed_sizes or [self.model.compressed_size]) if trains else self.trained_sizes
            checkpoint[TRAINED_SIZES] = [list(size) for size in sizes]
        if "hyper_parameters" not in checkpoint:
            return
        hyper = {**checkpoint["hyper_parameters"], "init_from": None}  # the checkpoint's weights replace the first ones
        if hyper.get("budget_gmacs") is not None:
            hyper |= {"budget_gmacs": None, "compressed_size": list(self.model.compressed_size)}
        checkpoint["hyper_parameters"] = hyper

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Chooses the size where a budget is given, and warns of sizes that the checkpoint was not trained at.

        Outside training the positions are resized where the checkpoint has another image size (training at another
        size starts with `init_from`).
        """
        stage = None if self._trainer is None else self.trainer.state.fn
        if self.model.compressed_size is not None and stage != "fit":
            contents = contents_of(checkpoint, self._checkpoint_name)
            gmacs, ms = self.hparams.get("budget_gmacs"), self.hparams.get("budget_ms")
            self.trained_sizes = contents.trained_sizes
            if gmacs is not None or ms is not None:
                untrained = self.hparams.get("untrained_sizes", False)
                with contextlib.ExitStack() as stack:
                    if ms is not None and self._trainer is not None:  # timed where, and as precisely as, it will run
                        self.to(self.trainer.strategy.root_device)
                        stack.enter_context(self.trainer.precision_plugin.forward_context())
                    size = choose_size(self.model, gmacs, ms, contents, self.eval_head, untrained)
                self.compressed_size = self.model.compressed_size = size
                self._build_scores()
            else:
                sizes = list(self.cascade.sizes) if self.cascade else [self.model.compressed_size]
                sizes += self.eval_sizes if stage in ("validate", "test") else ()
                say_untrained(contents, sizes)
                if stage is not None and not hasattr(self.model, "num_frames"):  # costs are counted for images only
                    say_sizes(self.model, contents, sizes, self.eval_head)
            if self.cascade is not None:
                check_cascade(self.cascade, self.hparams.cascade, checkpoint, self.model.img_size)
        super().on_load_checkpoint(checkpoint)
        if stage != "fit":
            resize_loaded_positions(self, checkpoint)
