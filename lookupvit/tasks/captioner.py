"""The captioner in training: encoder, decoder and tokenizer, the encoder's first weights, an optimiser for both.

Letters: B images, T text positions (begin and end counted), M tokens that the decoder reads, E their width, D the
decoder's, V vocabulary.
"""

from math import prod
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
from lookupvit.tasks.feature_cache import cache_features
from lookupvit.tasks.optim import clean_name, parameter_groups
from lookupvit.tasks.sampling import check_sizes


class CaptionerTask(Task):
    """What `CaptioningTask` trains and tests; the steps are there.

    Args:
        name: Encoder, one of `lookupvit.list_models()`, of images.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the encoder's own.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; None: the largest of `compressed_sizes`, or the
            encoder's own.
        compressed_sizes: Sizes of multi-resolution training. Each step draws one of them, from (seed, step) alone.
        size_weights: How often each of `compressed_sizes` is drawn, relative to the others; None: equally often.
        memory: Tokens that the decoder reads: `"compressed"`, `"lookup"` or `"both"`; None: the compressed ones, or
            all tokens of a ViT.
        memory_positions: Tell the decoder where each of these tokens lies, by sines and cosines added to it.
        args: Further arguments of `lookupvit.create_model`.
        decoder: Arguments of `lookupvit.model.caption.decoder.Decoder`, such as `{"depth": 6, "num_heads": 12}`.
        vocab_size: Number of tokens in the vocabulary; None, which is recommended, takes it from the data's tokenizer.
        freeze_encoder: The encoder does not learn; it needs `encoder_ckpt` then.
        encoder_lr: Highest learning rate of an encoder that learns; None: `lr`. It follows the same schedule.
        encoder_ckpt: Where the encoder's first weights come from: a `.ckpt` of `lookupvit fit`, of a classifier or a
            captioner; or anything that a classifier's `init_from` takes, such as a safetensors file.
        feature_cache: Folder for the frozen encoder's features of the training images, which are then computed once;
            needs data without augmentation.
        **options: Options of `Task`: optimiser, schedule, moving average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        img_size: int | tuple[int, int] | None = None,
        *,
        compressed_size: tuple[int, int] | None = None,
        compressed_sizes: list[list[int]] | None = None,
        size_weights: list[float] | None = None,
        memory: str | None = None,
        memory_positions: bool = True,
        args: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        freeze_encoder: bool = True,
        encoder_lr: float | None = None,
        encoder_ckpt: str | None = None,
        feature_cache: str | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()  # of this class and of those below it
        check(encoder_lr is None or encoder_lr > 0, f"encoder_lr {encoder_lr} is not positive: null takes lr")
        check(
            encoder_lr is None or not freeze_encoder,
            "encoder_lr is set, but the encoder is frozen: set --model.freeze_encoder false, or encoder_lr null",
        )
        check(
            size_weights is None or compressed_sizes is not None, "size_weights needs compressed_sizes: give them too"
        )
        check(
            feature_cache is None or (freeze_encoder and compressed_sizes is None),
            "feature_cache needs a frozen encoder and a single compressed_size: set --model.feature_cache null",
        )
        self.freeze_encoder, self.encoder_lr, self.encoder_ckpt = freeze_encoder, encoder_lr, encoder_ckpt
        self.feature_cache, self.size_weights = feature_cache, size_weights
        self.compressed_sizes = None if compressed_sizes is None else check_sizes(compressed_sizes, size_weights)
        if compressed_size is None and self.compressed_sizes:
            compressed_size = max(self.compressed_sizes, key=prod)
        self.model = Captioner(name, vocab_size, img_size, compressed_size, memory, args, decoder, memory_positions)
        for size in self.compressed_sizes or []:
            self.model.check_size(size)
        self.tokenizer: Tokenizer | None = None
        self.has_weights = False  # True once the encoder has other weights than those of its initialisation
        if freeze_encoder:
            self.model.encoder.requires_grad_(False)
        self._note_decayed()

    def use_tokenizer(self, tokenizer: Tokenizer, what: str = "the data") -> None:
        """Takes a tokenizer, and builds the decoder for its vocabulary if there is no decoder yet.

        Args:
            tokenizer: The tokenizer.
            what: Where it is from, for the error.

        Raises:
            ValueError: If there is another tokenizer already, or a decoder with another vocabulary; one line.
        """
        if self.tokenizer is not None:
            self.tokenizer.check_same(tokenizer, what)
        if self.model.decoder is None:
            self.model.build_decoder(tokenizer.vocab_size)
            self._note_decayed()
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
        ids = self.tokenizer
        return Special(ids.bos_id, ids.eos_id, ids.pad_id, (ids.unk_id,))

    def setup(self, stage: str) -> None:
        """Agrees on a tokenizer with the data, and reads the encoder's first weights."""
        data = self.trainer.datamodule
        context = getattr(data, "context_length", None)
        check(
            context is None or context <= self.model.context_length,
            f"the data's captions have up to {context} tokens, the decoder's context {self.model.context_length}: "
            f"set --data.context_length {self.model.context_length}, or --model.decoder.context_length {context}",
        )
        if self.tokenizer is not None:
            self._give_tokenizer()
        elif stage == "fit" and self.model.decoder is None:  # else a checkpoint will bring one
            self._take_tokenizer()
        if stage == "fit" and self.encoder_ckpt is not None:
            first = self.trainer.is_global_zero
            if line := load_encoder(self.model.encoder, self.encoder_ckpt, Pixels.of_data(data), first):
                rank_zero_info(line)
            self.has_weights = True
        if stage == "fit":
            self.summary_rows = self._summary()

    def _take_tokenizer(self) -> None:
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)
        check(
            tokenizer is not None,
            "the data have no tokenizer: give a DataModule of captions, or call use_tokenizer first",
        )
        # The decoder's first weights depend on the seed alone, not on what a strategy drew before: equal on all ranks.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(run_seed(), 5))
            self.use_tokenizer(tokenizer)

    def _give_tokenizer(self) -> None:
        if hasattr(type(self.trainer.datamodule), "tokenizer"):  # of the class: reading the value would train one
            self.trainer.datamodule.tokenizer = self.tokenizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the tokenizer, and removes the source of the encoder's first weights: the checkpoint has its own."""
        super().on_save_checkpoint(checkpoint)
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.base64
        hyper = {**checkpoint["hyper_parameters"], "encoder_ckpt": None}
        hyper.pop("num_classes", None)  # the command line links it from the data; it is no argument here
        checkpoint["hyper_parameters"] = hyper

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the tokenizer from the checkpoint, before its weights are read."""
        super().on_load_checkpoint(checkpoint)
        check("tokenizer" in checkpoint, "the checkpoint has no tokenizer: it is not of a captioner")
        self.use_tokenizer(Tokenizer.from_base64(checkpoint["tokenizer"]), "the checkpoint")
        self.has_weights = True
        if self._trainer is not None:
            self._give_tokenizer()

    def configure_optimizers(self) -> dict[str, Any]:
        """As in `Task`. Also caches features: all weights are in place now, and no training data were read yet."""
        if self.tokenizer is None:
            self._take_tokenizer()
        check(
            self.has_weights or not self.freeze_encoder,
            "the encoder is frozen and has random weights: give --model.encoder_ckpt, a checkpoint of lookupvit fit, "
            "or set --model.freeze_encoder false",
        )
        if self.feature_cache is not None:
            cache_features(self.model, self.trainer, self.feature_cache)
        return super().configure_optimizers()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the decoder at `lr`, and of the encoder at `encoder_lr` with a group for each layer."""
        parts: dict[str, list] = {"encoder": [], "decoder": []}
        for name, parameter in self.model.named_parameters():
            parts[clean_name(name).partition(".")[0]].append((name, parameter))
        layers = {"layer_decay": self.layer_decay, "layer_id": self.model.layer_id}
        encoder_lr = self.lr if self.encoder_lr is None else self.encoder_lr
        options = {
            "encoder": {"lr": encoder_lr, "top": self.model.encoder.num_layers - 1, **layers},
            "decoder": {"lr": self.lr},
        }
        return [
            {**group, "name": f"{part}_{group['name']}"}
            for part, named in parts.items()
            for group in parameter_groups(named, self._decayed, weight_decay=self.weight_decay, **options[part])
        ]

    def _summary(self) -> dict[str, str]:
        """Rows for the table at the start of `lookupvit fit`."""
        parts = (self.model.encoder, self.model.decoder)
        encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in parts)
        state = "frozen" if self.freeze_encoder else "learns"
        return {
            "parameters": f"encoder {encoder:.2f} M ({state}), decoder {decoder:.2f} M",
            "vocabulary": f"{self.model.decoder.vocab_size} tokens, texts of up to {self.model.context_length}",
            "decoder reads": {"both": "compressed and lookup"}.get(self.model.memory, self.model.memory) + " tokens",
        }
