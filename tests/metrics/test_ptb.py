import json
import shutil
import sys
from pathlib import Path

import pytest

from lookupvit.metrics.captions import java_tokenize
from lookupvit.metrics.ptb.tokenize import tokenize

sys.path.insert(0, str(Path(__file__).parent))
from make_ptb_golden import digest, draw

GOLDEN = json.loads(Path(__file__).with_name("ptb_golden.json").read_text())
COCO = Path(__file__).parents[3] / "shared/data/coco-mini/annotations/captions_train2017.json"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
needs_coco = pytest.mark.skipif(not COCO.is_file(), reason="no coco-mini here")


def coco_captions() -> list[str]:
    return [item["caption"] for item in json.loads(COCO.read_text())["annotations"]]


@pytest.mark.parametrize("part", ["hard", "drawn"])
def test_the_tokens_are_javas(part: str) -> None:
    captions, expected = zip(*GOLDEN[part], strict=True)
    for caption, found, java in zip(captions, tokenize(captions), expected, strict=True):
        assert found == java, caption


@needs_coco
def test_the_tokens_of_real_captions_are_javas() -> None:
    assert digest(tokenize(coco_captions())) == GOLDEN["coco_sha256"]


@needs_java
def test_new_random_captions_as_java_has_them() -> None:
    captions = draw(1000, seed=1)
    for caption, found, java in zip(captions, tokenize(captions), java_tokenize(captions), strict=True):
        assert found == java, caption


def test_what_the_next_caption_begins_with_decides_about_an_abbreviation() -> None:
    assert tokenize(["shoes etc.", "A dog"]) == ["shoes etc.", "a dog"]  # the doubled stop is punctuation and goes
    assert tokenize(["in the U.S.", "A dog"]) == ["in the u.s.", "a dog"]
    assert tokenize(["on Oct. the", "a dog"]) == ["on oct. the", "a dog"]


def test_line_breaks_do_not_shift_captions() -> None:
    assert tokenize(["a man\nwith\r\na dog", "x\u2028y", ""]) == ["a man with a dog", "x y", ""]
    assert tokenize([]) == []
    assert tokenize(["", " ", "😀"]) == ["", "", ""]


def test_worked_by_hand() -> None:
    assert tokenize(['He said: "I can\'t (really), can I?!"']) == ["he said i ca n't -lrb- really -rrb- can i ?!"]
