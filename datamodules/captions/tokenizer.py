"""Captions to numbers and back: SentencePiece, with its begin, end and padding tokens always there.

Letters: B captions, T tokens of the longest of them.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

MODEL_TYPES = ("unigram", "bpe")
_THREADS = 4  # a fixed number: sums over threads, and so the pieces, depend on it


class Tokenizer:
    """A SentencePiece model, from this project or any other.

    A model that lacks a begin, end or padding token gets it behind its own pieces; `vocab_size` counts these.

    Args:
        proto: The bytes of a `.model` file.

    Attributes:
        vocab_size: Rows of the embedding that these tokens need.
        bos_id, eos_id, pad_id, unk_id: Begin, end, padding and unknown, all different.

    Raises:
        ValueError: If the bytes are no SentencePiece model.
    """

    def __init__(self, proto: bytes) -> None:
        self.proto = bytes(proto)
        self._load()

    def _load(self) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(self.proto)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"these {len(self.proto)} bytes are no SentencePiece model: give a .model file, such as "
                "lookupvit train-tokenizer writes"
            ) from error
        self._size = self._pieces.GetPieceSize()
        self.vocab_size, self.unk_id = self._size, self._pieces.unk_id()
        self.bos_id, self.eos_id, self.pad_id = (
            self._own_or_new(number) for number in (self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.pad_id())
        )

    def _own_or_new(self, number: int) -> int:
        if number >= 0:
            return number
        self.vocab_size += 1
        return self.vocab_size - 1

    def __getstate__(self) -> dict[str, Any]:
        return {"proto": self.proto}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.proto == other.proto

    def __hash__(self) -> int:
        return hash(self.proto)

    # -- where it comes from, where it goes --------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """The model of a `.model` file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is no SentencePiece model.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no tokenizer {str(path)!r}: give a SentencePiece .model; lookupvit train-tokenizer writes one"
            )
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"tokenizer {str(path)!r}: {error}") from error

    @classmethod
    def from_base64(cls, text: str) -> "Tokenizer":
        """The model out of what `base64` gave.

        Raises:
            ValueError: If the text holds no SentencePiece model.
        """
        try:
            return cls(base64.b64decode(text, validate=True))
        except ValueError as error:
            raise ValueError(f"the tokenizer in the checkpoint is damaged: {error}") from error

    @property
    def base64(self) -> str:
        """The model as text, to be kept in a checkpoint."""
        return base64.b64encode(self.proto).decode()

    @property
    def fingerprint(self) -> str:
        """12 digits that tell two models apart."""
        return hashlib.sha256(self.proto).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Writes a `.model` file, and the folder above it where it is missing."""
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.proto)

    def check_same(self, other: "Tokenizer", what: str = "the checkpoint") -> None:
        """Refuses another model.

        Args:
            other: The tokenizer of `what`.
            what: Whose it is, for the message.

        Raises:
            ValueError: If the two differ.
        """
        if self != other:
            raise ValueError(
                f"the tokenizer ({self.vocab_size} tokens, {self.fingerprint}) is not that of {what} "
                f"({other.vocab_size} tokens, {other.fingerprint}): leave data.tokenizer out, or give that one"
            )

    # -- text ----------------------------------------------------------------------------------------------------------

    def encode(self, text: str, special: bool = True) -> list[int]:
        """A caption as token numbers, from the begin token to the end token.

        Args:
            text: A caption.
            special: False leaves begin and end out.
        """
        ids = self._pieces.EncodeAsIds(text)
        return [self.bos_id, *ids, self.eos_id] if special else ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Token numbers as text, up to the first end token; begin, padding and unknown tokens are left out.

        Args:
            ids: A list, or a tensor `(T,)`.

        Raises:
            ValueError: If a number is outside the vocabulary.
        """
        ids = [int(number) for number in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        for number in ids:
            if not 0 <= number < self.vocab_size:
                raise ValueError(f"token {number} is outside the vocabulary of {self.vocab_size} tokens")
        special = (self.bos_id, self.pad_id, self.unk_id)
        return self._pieces.DecodeIds([number for number in ids if number < self._size and number not in special])

    def batch(self, texts: Sequence[str], context: int | None = None) -> tuple[Tensor, Tensor]:
        """Captions as one tensor.

        Args:
            texts: B captions.
            context: Tokens at most, begin and end among them; what is longer is cut, and ends with the end token.

        Returns:
            Tokens `(B, T)` int64, filled up with the padding token, and lengths `(B,)` int64.
        """
        return self.pad([self.cut(self.encode(text), context) for text in texts])

    def cut(self, ids: list[int], context: int | None) -> list[int]:
        """Token numbers of at most `context` tokens, the end token last."""
        return ids if context is None or len(ids) <= context else [*ids[: context - 1], self.eos_id]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Lists of token numbers as tokens `(B, T)` and lengths `(B,)`, both int64."""
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), max(map(len, rows), default=0)), self.pad_id)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        return tokens, lengths


def train_tokenizer(texts: Iterable[str], vocab_size: int = 32000, model_type: str = "unigram") -> Tokenizer:
    """A SentencePiece model of some texts; the same texts in the same order give the same model.

    Padding, unknown, begin and end are tokens 0 to 3. Where the texts are too few for the vocabulary it gets smaller.

    Args:
        texts: Captions.
        vocab_size: Tokens, at most.
        model_type: `unigram` or `bpe`.

    Raises:
        ValueError: If there is no text, or an argument does not fit.
    """
    texts = [" ".join(text.split()) for text in texts]
    texts = [text for text in texts if text]
    if model_type not in MODEL_TYPES:
        raise ValueError(f"unknown kind of tokenizer {model_type!r}: choose from {', '.join(MODEL_TYPES)}")
    if not texts:
        raise ValueError("a tokenizer needs captions to be trained on: there are none")
    least = len(set("".join(texts)) | {" "}) + 4  # a token for each character
    if vocab_size < least:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: these captions have {least - 4} different characters and need "
            f"{least} tokens at least"
        )
    # SentencePiece names the largest vocabulary that its pieces allow only when it has failed at a larger one.
    for _ in range(20):
        try:
            return _train(texts, vocab_size, model_type)
        except RuntimeError as error:
            limit = re.search(r"value <= (\d+)", str(error))
            if limit:
                vocab_size = int(limit[1])
            elif "Vocabulary size is smaller than required_chars" in str(error):
                raise ValueError(f"a vocabulary of {vocab_size} is too small for these captions") from error
            else:
                raise
    raise ValueError(f"no vocabulary of {vocab_size} tokens or fewer can be made of these {len(texts)} captions")


def _train(texts: list[str], vocab_size: int, model_type: str) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=1.0,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=_THREADS,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())
