"""Captions to numbers and back."""

import pickle
from pathlib import Path

import pytest
import sentencepiece

from datamodules.captions.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["a red dog runs over the grass", "two cats sleep on the sofa", "a man rides a brown horse", "an old boat"] * 5


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, model_type=kind)
    assert 20 < tokenizer.vocab_size < 32000  # lowered by itself
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[0] == 2 and ids[-1] == 3 and tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, 0, 0]) == text  # nothing after the end is read
        assert tokenizer.encode(text, special=False) == ids[1:-1]
    assert train_tokenizer(TEXTS, model_type=kind) == tokenizer
    tokenizer.save(tmp_path / "deep" / "x.model")
    for other in (
        Tokenizer.from_file(tmp_path / "deep" / "x.model"),
        Tokenizer.from_base64(tokenizer.base64),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other == tokenizer and other.fingerprint == tokenizer.fingerprint
        assert other.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_batches_are_padded_and_cut() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokens, lengths = tokenizer.batch(["an old boat", TEXTS[0]], context=6)
    assert tokens.shape == (2, 6) and lengths.max() == 6
    assert tokens[1, -1] == tokenizer.eos_id
    assert tokenizer.encode(TEXTS[0])[:5] == tokens[1, :5].tolist()


def test_an_unknown_character_is_left_out_of_the_text() -> None:
    tokenizer = train_tokenizer(TEXTS)
    assert "猫" not in tokenizer.decode(tokenizer.encode("two 猫 cats"))


def test_a_foreign_model_without_special_tokens_gets_them(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=40, hard_vocab_limit=False,
        bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0, minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(tmp_path / "m.model")
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model")).GetPieceSize()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (size, size + 1, size + 2)
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.decode(tokenizer.encode(TEXTS[2])) == TEXTS[2]


def test_mistakes_are_told(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS)
    (tmp_path / "bad.model").write_bytes(b"no model")
    for ask, message in (
        (lambda: Tokenizer.from_file(tmp_path / "bad.model"), "bad.model': these 8 bytes are no SentencePiece model"),
        (lambda: Tokenizer.from_file(tmp_path / "none.model"), "lookupvit train-tokenizer writes one"),
        (lambda: Tokenizer.from_base64("!!"), "the tokenizer in the checkpoint is damaged"),
        (lambda: train_tokenizer([" ", ""]), "there are none"),
        (lambda: train_tokenizer(TEXTS, 5), "a vocabulary of 5 is too small"),
        (lambda: train_tokenizer(TEXTS, model_type="word"), "unknown kind of tokenizer 'word'"),
        (lambda: tokenizer.decode([tokenizer.vocab_size]), "is outside the vocabulary"),
        (lambda: tokenizer.check_same(train_tokenizer(TEXTS[:2])), "is not that of the checkpoint"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            ask()
        assert "\n" not in str(error.value)
