"""The tokenizer of a DataModule of captions: a file's, one that is trained, or a checkpoint's."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from datamodules.captions.tokenizer import Tokenizer, train_tokenizer


class CaptionText:
    """What a DataModule needs to know its captions' tokens; it has `train_captions()`.

    Attributes:
        root: Folder of the data; its ``tokenizer.model`` is taken where no file is named.
        tokenizer_path: A ``.model`` file, or None.
        tokenizer_vocab_size: Tokens at most of a tokenizer that is trained.
        tokenizer_type: Its kind.
        context_length: Tokens of a caption at most.
    """

    root: Path
    tokenizer_path: str | None
    tokenizer_vocab_size: int
    tokenizer_type: str
    context_length: int
    _tokenizer: Tokenizer | None = None

    def train_captions(self) -> list[str]:
        """Every caption of the training images."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that was set, else that of the file, else one trained on the training captions."""
        if self._tokenizer is None:
            beside = self.root / "tokenizer.model"
            if self.tokenizer_path is not None:
                self._tokenizer = Tokenizer.from_file(self.tokenizer_path)
            elif beside.is_file():
                self._tokenizer = Tokenizer.from_file(beside)
            else:
                texts = self.train_captions()
                self._tokenizer = train_tokenizer(texts, self.tokenizer_vocab_size, self.tokenizer_type)
                rank_zero_info(
                    f"a {self.tokenizer_type} tokenizer of {self._tokenizer.vocab_size} tokens was trained on "
                    f"{len(texts)} captions (at most {self.tokenizer_vocab_size} were asked for)"
                )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        if self.tokenizer_path is not None:  # the user's word: it has to agree
            Tokenizer.from_file(self.tokenizer_path).check_same(tokenizer)
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer; asking for it may read or train it."""
        return self.tokenizer.vocab_size

    def tell_of_cuts(self, texts: list[str]) -> None:
        """Says how many captions are longer than the context, if any.

        Args:
            texts: The captions.
        """
        # A token is a character at least, and normalisation makes few characters more: most need not be counted.
        lengths = [len(self.tokenizer.encode(text)) for text in texts if len(text) + 8 > self.context_length]
        longer = [length for length in lengths if length > self.context_length]
        if longer:
            rank_zero_info(
                f"{len(longer)} of {len(texts)} captions are longer than data.context_length={self.context_length} "
                f"tokens and are cut; the longest has {max(longer)}"
            )
