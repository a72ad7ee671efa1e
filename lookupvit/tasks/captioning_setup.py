"""What a captioner needs before it can learn or write: a tokenizer, an encoder with weights, an optimiser for both."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from datamodules.captions.tokenizer import Tokenizer
from datamodules.loading.resumable import derived_seed, run_seed
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.interop.encoder import load_encoder
from lookupvit.model.caption.captioner import Captioner
from lookupvit.model.caption.generation import Special
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.feature_cache import Features, cache_path, write_features
from lookupvit.tasks.optim import clean_name, parameter_groups


class CaptionerSetup(Task):
    """The part of `CaptioningTask` that comes before its first step.

    A subclass sets the attributes below and calls `_prepare()`.
    """

    model: Captioner
    freeze_encoder: bool
    encoder_lr: float | None
    encoder_ckpt: str | None
    feature_cache: str | None
    tokenizer: Tokenizer | None = None
    has_weights: bool = False  # the encoder's are not those of its initialisation

    def use_tokenizer(self, tokenizer: Tokenizer, what: str = "the data") -> None:
        """Takes a tokenizer, and builds the decoder of its vocabulary where there is none.

        Args:
            tokenizer: The tokenizer.
            what: Where it is from, for the error.

        Raises:
            ValueError: If there is another one already, or a decoder of another vocabulary; one line.
        """
        if self.tokenizer is not None:
            self.tokenizer.check_same(tokenizer, what)
        if self.model.decoder is None:
            self.model.build_decoder(tokenizer.vocab_size)
            self._prepare()
        size = self.model.decoder.vocab_size
        check(
            tokenizer.vocab_size == size,
            f"the tokenizer of {what} has {tokenizer.vocab_size} tokens, the decoder {size}: give the tokenizer that "
            "it was trained with, or leave --model.vocab_size out",
        )
        self.tokenizer = tokenizer
        self.hparams["vocab_size"] = size

    @property
    def special(self) -> Special:
        """The tokenizer's special tokens."""
        check(
            self.tokenizer is not None,
            "the captioner has no tokenizer: train it on data that have one, load a checkpoint, or call use_tokenizer",
        )
        own = self.tokenizer
        return Special(own.bos_id, own.eos_id, own.pad_id, (own.unk_id,))

    def setup(self, stage: str) -> None:
        """Settles tokenizer and vocabulary with the data, and reads the encoder's weights."""
        data = self.trainer.datamodule
        context = getattr(data, "context_length", None)
        check(
            context is None or context <= self.model.context_length,
            f"the data's captions have up to {context} tokens, the decoder's context {self.model.context_length}: "
            f"set --data.context_length {self.model.context_length}, or --model.decoder.context_length {context}",
        )
        if self.tokenizer is not None:
            self._hand_over()
        elif stage == "fit" and self.model.decoder is None:  # else a checkpoint is to come, with a tokenizer in it
            self._take_over()
        if stage == "fit" and self.encoder_ckpt is not None:
            verbose = self.trainer.is_global_zero
            if line := load_encoder(self.model.encoder, self.encoder_ckpt, Pixels.of_data(data), verbose):
                rank_zero_info(line)
            self.has_weights = True
        if stage == "fit":
            self.summary_rows = self._summary()

    def _take_over(self) -> None:
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)
        check(
            tokenizer is not None,
            "the data have no tokenizer: give a DataModule of captions, or call use_tokenizer first",
        )
        # First weights of the decoder from the seed alone, whatever else a strategy drew before: alike on all ranks.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(run_seed(), 5))
            self.use_tokenizer(tokenizer)

    def _hand_over(self) -> None:
        if hasattr(type(self.trainer.datamodule), "tokenizer"):  # of the class: asking for the value would train one
            self.trainer.datamodule.tokenizer = self.tokenizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the tokenizer; and forgets where the encoder's first weights came from: they are in the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.base64
        hyper = {**checkpoint["hyper_parameters"], "encoder_ckpt": None}
        hyper.pop("num_classes", None)  # what the command line links from the data is no argument of a captioner
        checkpoint["hyper_parameters"] = hyper

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the tokenizer from the checkpoint, before its weights are read."""
        super().on_load_checkpoint(checkpoint)
        check("tokenizer" in checkpoint, "the checkpoint has no tokenizer: it is not of a captioner")
        self.use_tokenizer(Tokenizer.from_base64(checkpoint["tokenizer"]), "the checkpoint")
        self.has_weights = True
        if self._trainer is not None:
            self._hand_over()

    def configure_optimizers(self) -> dict[str, Any]:
        """As `Task`; the last moment before the training data are read, with every weight in place."""
        if self.tokenizer is None:
            self._take_over()
        check(
            self.has_weights or not self.freeze_encoder,
            "the encoder is frozen and has random weights: give --model.encoder_ckpt, a checkpoint of lookupvit fit, "
            "or set --model.freeze_encoder false",
        )
        if self.feature_cache is not None:
            self._cache_features()
        return super().configure_optimizers()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the decoder at `lr`; groups of the encoder at `encoder_lr`, by layer."""
        parts: dict[str, list] = {"decoder": [], "encoder": []}
        for name, parameter in self.model.named_parameters():
            parts[clean_name(name).partition(".")[0]].append((name, parameter))
        decay = {"decayed": self._decayed, "weight_decay": self.weight_decay}
        groups = parameter_groups(parts["decoder"], lr=self.lr, **decay)
        encoder = parameter_groups(
            parts["encoder"],
            lr=self.lr if self.encoder_lr is None else self.encoder_lr,
            layer_decay=self.layer_decay,
            layer_id=self.model.layer_id,
            top=self.model.encoder.num_layers - 1,
            **decay,
        )
        for key, part in (("decoder", groups), ("encoder", encoder)):
            for group in part:
                group["name"] = f"{key}_{group['name']}"
        return [*encoder, *groups]

    def _cache_features(self) -> None:
        data = self.trainer.datamodule
        check(
            all(hasattr(data, name) for name in ("encoding_dataloader", "use_features", "encoding_key")),
            f"{type(data).__name__} has no features to cache: set --model.feature_cache null",
        )
        model = self.model
        about = (
            data.encoding_key,
            model.compressed_size,
            model.memory,
            model.memory_positions,
            str(self.trainer.precision),
        )
        path = cache_path(self.feature_cache, model.encoder, *about)
        if self.trainer.is_global_zero and not path.is_file():
            loader = data.encoding_dataloader()
            with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
                write_features(path, loader, len(loader.dataset), lambda images: model.encode(images.to(self.device)))
        self.trainer.strategy.barrier("feature_cache")
        data.use_features(Features(path))

    def _summary(self) -> dict[str, str]:
        """Rows for the table at the start of a fit."""
        parts = (self.model.encoder, self.model.decoder)
        encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in parts)
        state = "frozen" if self.freeze_encoder else "learns"
        return {
            "parameters": f"encoder {encoder:.2f} M ({state}), decoder {decoder:.2f} M",
            "vocabulary": f"{self.model.decoder.vocab_size} tokens, texts of up to {self.model.context_length}",
            "decoder reads": {"both": "compressed and lookup"}.get(self.model.memory, self.model.memory) + " tokens",
        }
