"""Image captioning, step by step: a decoder learns to write what a LookupViT sees.

Letters: B images, T text positions (begin and end counted), M tokens that the decoder reads, E their width, D the
decoder's, V vocabulary.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.loading.resumable import run_seed
from lookupvit.callbacks.answers.captions import CaptionPictures, CaptionWriter
from lookupvit.metrics.captions import CaptionMetrics
from lookupvit.model.caption.generation import Caption, Generation, generate
from lookupvit.tasks.base import check
from lookupvit.tasks.captioner import CaptionerTask
from lookupvit.tasks.sampling import Size, draw_size
from lookupvit.tasks.scores import STAGES, new_samples


class CaptioningTask(CaptionerTask):
    """Trains and tests a captioner: LookupViT's compressed tokens, or all tokens of a ViT, and a text decoder.

    Training batches are `(images (B, 3, H, W), tokens (B, T), lengths (B,))`, or features `(B, M, E)` in place of the
    images; evaluation batches `(images, image_ids (B,), references)`, with a list of captions for each
    image; batches of `predict` `(images, image_ids (B,), files)`.

    In training the tokenizer comes from the data. It is kept in the checkpoint, which is then enough to write captions.

    Logged: `train/loss`, `val/loss` (of each image's first reference), `val/cider`, `val/bleu1` to `bleu4`,
    `val/rouge_l` and, where asked for, `val/meteor`; `val/true_captions`, the share of captions that the
    data find true, where they have a method `check(image_id, caption)`; `test/...` likewise; `train/compressed_tokens`
    where sizes are drawn.

    Args:
        name: Encoder, one of `lookupvit.list_models()`, of images.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the encoder's own.
        label_smoothing: Weight of the uniform distribution mixed into the targets.
        generation: How captions are written in `test` and `predict`, see
            `lookupvit.model.caption.generation.Generation`; beam search of width 3 by default.
        val_generation: The same for validation; greedy by default.
        metrics: Any of `"cider"`, `"bleu"`, `"rouge"`, `"meteor"`.
        java: Tokenise for the metrics with the official Java program, where Java is installed.
        pictures: Validation images shown with their captions in TensorBoard; 0: none.
        **options: Options of `CaptionerTask`: encoder, decoder, sizes, first weights; and of `Task`: optimiser,
            schedule, moving average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    prediction_writer = CaptionWriter

    monitor = ("val/cider", "max")

    def __init__(
        self,
        name: str,
        img_size: int | tuple[int, int] | None = None,
        *,
        label_smoothing: float = 0.1,
        generation: dict[str, Any] | None = None,
        val_generation: dict[str, Any] | None = None,
        metrics: list[str] | tuple[str, ...] = ("cider", "bleu", "rouge"),
        java: bool = False,
        pictures: int = 8,
        **options,
    ) -> None:
        check(0 <= label_smoothing < 1, f"label_smoothing {label_smoothing} is not in [0, 1)")
        super().__init__(name, img_size, **options)
        self.label_smoothing, self.pictures = label_smoothing, pictures
        self.generation = {
            "val": Generation.of({"method": "greedy"} if val_generation is None else val_generation),
            "test": Generation.of(generation),
        }
        for how in self.generation.values():
            how.limit(self.model.context_length)
        self._encode, self._hidden = self.model.encode, None
        self.scores = nn.ModuleDict({stage: CaptionMetrics(metrics, java) for stage in STAGES})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in STAGES})
        self.truths = nn.ModuleDict({stage: MeanMetric() for stage in STAGES})
        self.train()

    def setup(self, stage: str) -> None:
        """Agrees on a tokenizer, reads the first weights, and compiles what runs in training."""
        super().setup(stage)
        if self.compile_model:
            self._encode = torch.compile(self.model.encode, dynamic=False)
            if self.model.decoder is not None:
                self._hidden = torch.compile(self.model.decoder.hidden, dynamic=True)

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of `Task`, and in training the pictures with their captions."""
        shown = self.pictures > 0 and self.trainer.state.fn == "fit"
        return [*super().configure_callbacks(), *([CaptionPictures(self.pictures)] if shown else [])]

    def train(self, mode: bool = True) -> "CaptioningTask":
        """As in `nn.Module`, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.model.encoder.eval()
        return self

    # -- steps ---------------------------------------------------------------------------------------------------------

    def training_size(self, step: int) -> Size | None:
        """Compressed size of the training step `step`; None keeps the encoder's own."""
        if self.compressed_sizes is None:
            return None
        return draw_size(self.compressed_sizes, self.size_weights, run_seed(), step)

    def memory(self, images: Tensor, compressed_size: Size | None = None) -> Tensor:
        """The tokens `(B, M, E)` that the decoder reads, of images `(B, 3, H, W)`; cached tokens are passed through."""
        if images.ndim == 3:  # from the feature cache
            return images
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            return self._encode(images, compressed_size)

    def loss(self, memory: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Cross-entropy of every token but the first, given those before it; padding does not count.

        Args:
            memory: Tokens that the decoder reads, `(B, M, E)`.
            tokens: Token numbers `(B, T)`, from begin to end, padded.
            lengths: Number of tokens in each text without padding, `(B,)`.

        Returns:
            A scalar, in nats per token.
        """
        hidden = (self._hidden or self.model.decoder.hidden)(tokens[:, :-1], memory)  # (B, T - 1, D)
        real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
        logits = self.model.decoder.logits(hidden[real])  # (n, D) -> (n, V): no logits of padding
        return F.cross_entropy(logits.float(), tokens[:, 1:][real], label_smoothing=self.label_smoothing)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss with teacher forcing: every token is predicted from the true tokens before it."""
        images, tokens, lengths = batch
        size = self.training_size(self.global_step)
        loss = self.loss(self.memory(images, size), tokens, lengths)
        if size is not None:
            self.log("train/compressed_tokens", float(prod(size)), batch_size=len(images))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        if self._trainer is None or (ranks := self.trainer.world_size) == 1:
            return loss
        # The strategy averages over ranks. Their captions differ in length, and every token has to count the same.
        tokens_here = (lengths - 1).sum().to(loss)
        return loss * tokens_here * ranks / self.trainer.strategy.reduce(tokens_here.clone(), reduce_op="sum")

    def write(self, memory: Tensor, how: Generation | None = None) -> list[list[tuple[str, Caption]]]:
        """Texts for each image, the best first.

        Args:
            memory: Tokens that the decoder reads, `(B, M, E)`, from `memory()`.
            how: Options of generation; those of `test` and `predict` by default.
        """
        generated = generate(self.model.decoder, memory, self.special, how or self.generation["test"])
        return [[(self.tokenizer.decode(caption.tokens), caption) for caption in captions] for captions in generated]

    @torch.no_grad()
    def caption(self, images: Tensor, how: Generation | None = None) -> list[str]:
        """One text for each image `(B, 3, H, W)`, normalised as the data are; call `eval()` first."""
        return [texts[0][0] for texts in self.write(self.memory(images), how)]

    def validation_step(self, batch: tuple[Tensor, Tensor, list[list[str]]], batch_idx: int) -> dict[str, list[str]]:
        """Writes captions and updates the metrics `val/...`."""
        return self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: tuple[Tensor, Tensor, list[list[str]]], batch_idx: int) -> dict[str, list[str]]:
        """Writes captions and updates the metrics `test/...`."""
        return self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: tuple, batch_idx: int, stage: str, loader: Any) -> dict[str, list[str]]:
        images, image_ids, references = batch
        memory = self.memory(images)
        texts = [captions[0][0] for captions in self.write(memory, self.generation[stage])]
        self.scores[stage].update(texts, references, image_ids)  # counts each image once
        new = new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        if new:
            first = [captions[0] for captions in references[:new]]
            tokens, lengths = (x.to(self.device) for x in self.tokenizer.batch(first, self.model.context_length))
            self.losses[stage].update(self.loss(memory[:new], tokens, lengths), weight=int((lengths - 1).sum()))
        if new and hasattr(self.trainer.datamodule, "check"):
            find_error = self.trainer.datamodule.check
            true = [not find_error(int(i), text) for i, text in zip(image_ids[:new], texts[:new], strict=True)]
            self.truths[stage].update(torch.tensor(true, dtype=torch.float32, device=self.device))
            self.log(f"{stage}/true_captions", self.truths[stage], batch_size=len(images))
        self.log(f"{stage}/loss", self.losses[stage], batch_size=len(images))
        return {"captions": texts}

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over all images."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores over all images."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = self.scores[stage].compute()  # equal on all ranks
        self.scores[stage].reset()
        # They are equal on all ranks already, but Lightning warns unless it may average them.
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()}, sync_dist=True)

    def predict_step(self, batch: tuple[Tensor, Tensor, list[str]], batch_idx: int) -> dict[str, list]:
        """Captions of each file: `{"files", "image_ids", "captions"}`, each a list of `(text, score)`, best first.

        A file that could not be read, whose name has an `error`, gets `("", NaN)`.
        """
        images, image_ids, files = batch
        texts_by_image = self.write(self.memory(images))
        captions = [
            [("", float("nan"))] if hasattr(file, "error") else [(text, caption.score) for text, caption in texts]
            for file, texts in zip(files, texts_by_image, strict=True)
        ]
        return {"files": list(files), "image_ids": [int(number) for number in image_ids], "captions": captions}
