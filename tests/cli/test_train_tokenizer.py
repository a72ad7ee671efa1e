"""`lookupvit train-tokenizer`."""

import json
from pathlib import Path

import pytest

from datamodules.captions.tokenizer import Tokenizer
from lookupvit.cli.main import main

TEXTS = ["a red dog runs over the grass", "two cats sleep on the sofa", "a man rides a brown horse"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The annotations of a data set; its images are not asked for."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"image_id": i, "id": i, "caption": text} for i, text in enumerate(TEXTS)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_of_a_data_set(root: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    output = root / "new" / "x.model"
    argv = ["train-tokenizer", "--data.root", str(root), "--model_type", kind, "--output", str(output)]
    assert main(argv) == 0
    tokenizer, printed = Tokenizer.from_file(output), capsys.readouterr().out
    assert f"3 captions are too few for 32000 tokens: it has {tokenizer.vocab_size}" in printed
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


def test_of_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    sources = [str(tmp_path / "a.txt"), str(root / "annotations/captions_train2017.json")]
    for source in sources:
        main(["train-tokenizer", "--captions", source, "--output", source + ".model", "--vocab_size", "40"])
    first, second = (Tokenizer.from_file(source + ".model") for source in sources)
    assert first == second and first.vocab_size <= 40


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "needs --data.root DIR or --captions FILES"),
        (["--data.root", "ROOT", "--captions", "x"], "one of them"),
        (["--data.root", "ROOT", "--vocab_size", "9"], "a vocabulary of 9 is too small"),
        (["--data.root", "ROOT/none"], "no captions in"),
        (["--captions", "none.txt"], "no captions 'none.txt'"),
        (["--data.root", "ROOT", "--model_type", "word"], "word"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, root: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [part.replace("ROOT", str(root)) for part in argv]
    assert main(["train-tokenizer", *argv, "--output", str(root / "x.model")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
