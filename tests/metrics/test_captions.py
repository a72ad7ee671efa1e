import json
import math
import os
import shutil
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from lookupvit.metrics import captions as module
from lookupvit.metrics.captions import METRICS, CaptionMetrics, caption_scores, java_tokenize

HARD = [caption for caption, _ in json.loads(Path(__file__).with_name("ptb_golden.json").read_text())["hard"]]
COCO = Path(__file__).parents[3] / "shared/data/coco-mini/annotations/captions_train2017.json"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
needs_coco = pytest.mark.skipif(not COCO.is_file(), reason="no coco-mini here")


def coco() -> dict[int, list[str]]:
    images = defaultdict(list)
    for item in json.loads(COCO.read_text())["annotations"]:
        images[item["image_id"]].append(item["caption"])
    return dict(sorted(images.items()))


def official(images: dict[int, list[str]]) -> dict[str, float]:
    """pycocoevalcap from end to end, its Java tokeniser included."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not os.access(Path(ptbtokenizer.__file__).parent, os.W_OK):
        pytest.skip("the official tokeniser writes beside itself, and may not here")
    read = ptbtokenizer.PTBTokenizer().tokenize
    truth = read({key: [{"caption": text} for text in texts[1:]] for key, texts in images.items()})
    given = read({key: [{"caption": texts[0]}] for key, texts in images.items()})
    bleu, _ = Bleu(4).compute_score(truth, given, verbose=0)
    scores = {f"bleu{n}": value for n, value in enumerate(bleu, 1)}
    return scores | {"cider": Cider().compute_score(truth, given)[0], "rouge_l": Rouge().compute_score(truth, given)[0]}


def measure(images: dict[int, list[str]], **kwargs) -> dict[str, float]:
    metric = CaptionMetrics(**kwargs)
    metric.update([texts[0] for texts in images.values()], [texts[1:] for texts in images.values()], list(images))
    return {name: float(value) for name, value in metric.compute().items()}


@needs_coco
def test_real_captions_score_as_officially() -> None:
    # what pycocoevalcap 1.2 gave with Java: first caption as hypothesis, the others as references
    expected = {"cider": 1.0243090461352442, "rouge_l": 0.46747257654863994}
    bleu = (0.6535714285706505, 0.4319859281328449, 0.290139437429183, 0.1970006648708655)
    expected |= {f"bleu{n}": value for n, value in enumerate(bleu, 1)}
    assert measure(coco()) == pytest.approx(expected, abs=1e-9)


@needs_java
@needs_coco
def test_real_captions_score_as_the_official_code_does_here() -> None:
    assert measure(coco()) == pytest.approx(official(coco()), abs=1e-9)


@needs_java
def test_hard_captions_score_as_the_official_code_does_here() -> None:
    # line breaks other than \n shift the official program's captions, which is not worth copying
    texts = [text for text in HARD if not set(text) & set("\r\x0b\x0c\x85\u2028\u2029")]
    images = {i: [texts[i], texts[i - 1], f"a {texts[i]}", texts[(i * 7) % len(texts)]] for i in range(len(texts))}
    assert measure(images) == pytest.approx(official(images), abs=1e-9)


def test_worked_by_hand() -> None:
    scores = measure({1: ["A dog!", "a dog."], 2: ["the the cat", "the cat sat"]}, metrics=("bleu", "rouge"))
    assert scores["bleu1"] == pytest.approx(4 / 5)  # a, dog, the once, cat; as many words as the references have
    assert scores["bleu2"] == pytest.approx(math.sqrt(4 / 5 * 2 / 3))  # "a dog", "the cat" out of three pairs
    assert scores["rouge_l"] == pytest.approx((1 + 2 / 3) / 2)  # subsequences: 2 of 2; 2 of 3 both ways
    perfect = measure({i: [text, text] for i, text in enumerate(["one red dog runs", "two blue cats sleep here"])})
    assert perfect["cider"] == pytest.approx(10)
    assert perfect["bleu4"] == pytest.approx(1)


def test_empty_captions_score_and_do_not_fail() -> None:
    scores = measure({1: ["", "a dog runs"], 2: ["a cat", "a cat"], 3: ["!?", "..."]})
    assert 0 < scores["bleu1"] < 1
    assert measure({1: ["", "!"], 2: ["", "."]})["cider"] == 0


def one_rank(rank: int, file: str, expected: dict[str, float]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    metric = CaptionMetrics()
    images = {i: [text, HARD[i - 1], f"a {text}"] for i, text in enumerate(HARD)}
    # two ranks share the images out, some twice, as a distributed sampler does; the third has none
    share = {0: [0, *range(0, len(HARD), 2)], 1: [3, *range(1, len(HARD), 2), 2], 2: []}[rank]
    for start in range(0, len(share), 7):
        batch = share[start : start + 7]
        metric.update([images[i][0] for i in batch], [images[i][1:] for i in batch], torch.tensor(batch))
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(expected, abs=1e-12)
    torch.distributed.destroy_process_group()


def test_several_ranks_give_the_figures_of_one(tmp_path: Path) -> None:
    expected = measure({i: [text, HARD[i - 1], f"a {text}"] for i, text in enumerate(HARD)})
    # forked: a spawned process would import everything once more, which takes longer than the test
    mp.start_processes(one_rank, args=(str(tmp_path / "store"), expected), nprocs=3, start_method="fork")


def test_an_epoch_starts_afresh() -> None:
    metric = CaptionMetrics(metrics=("bleu",))
    metric.update(["a dog"], [["a cat"]], [1])
    metric.compute()
    metric.reset()
    metric.update(["a dog"], [["a dog"]], [1])
    assert float(metric.compute()["bleu1"]) == pytest.approx(1)


def test_without_java_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_java", lambda: False)
    with pytest.warns(UserWarning, match="no Java on this machine: METEOR is left out and Python tokenises"):
        metric = CaptionMetrics(METRICS, java=True)
    metric.update(["a dog", "a cat"], [["a dog"], ["a cat"]], [1, 2])
    assert set(metric.compute()) == {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CaptionMetrics()


def test_a_java_that_fails_costs_its_figures_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    metric = CaptionMetrics(METRICS, java=True)
    metric.update(["a dog", "a cat"], [["a dog"], ["a cat"]], [1, 2])
    with pytest.warns(UserWarning, match="failed with code 1: no memory; METEOR is left out"):
        assert float(metric.compute()["bleu1"]) == pytest.approx(1)
    metric = CaptionMetrics(("bleu", "meteor"))
    metric.update(["a dog"], [["a dog"]], [1])
    with pytest.warns(UserWarning, match="METEOR is left out"):
        assert set(metric.compute()) == {f"bleu{n}" for n in range(1, 5)}


@needs_java
@pytest.mark.slow
def test_java_tokenises_and_runs_meteor() -> None:
    images = {1: ["A dog's bowl ||| (red).", "a dog 's bowl"], 2: ["two cats", "a pair of cats"], 3: ["", "x"]}
    scores = measure(images, metrics=METRICS, java=True)
    assert {name: scores[name] for name in scores if name != "meteor"} == pytest.approx(measure(images))
    assert 0 < scores["meteor"] < 1
    assert java_tokenize([]) == []


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ((["a"], [["a"], ["b"]], [1]), "1 hypotheses, 2 lists of references and 1 image numbers do not fit"),
        (("a", [["a"]], [1]), "one of each per image"),
        (([["a", "b"]], [["a"]], [7]), "image 7 has 2 hypotheses, a list: these metrics score one text per image"),
        ((["a"], [[]], [7]), "image 7 needs a list of one reference caption or more"),
        ((["a"], ["a dog"], [7]), "image 7 needs a list of one reference"),
    ],
)
def test_what_does_not_fit_is_told(update: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionMetrics().update(*update)


def test_other_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="unknown caption metric 'ciderd': choose from cider, bleu, rouge, meteor"):
        CaptionMetrics(("ciderd",))
    with pytest.raises(ValueError, match="no caption was evaluated"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CaptionMetrics().compute()


def test_references_in_any_number_are_matched_to_their_image() -> None:
    scores = caption_scores({1: "a dog", 2: "a cat"}, {1: ["x", "y", "a dog"], 2: ["a cat"]}, ("bleu",))
    assert scores["bleu2"] == pytest.approx(1)
