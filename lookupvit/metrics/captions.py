"""Scores of captions as the official COCO evaluation has them, without Java and on any number of devices."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from lookupvit.metrics.ptb.tokenize import one_line, tokenize, without_punctuation

METRICS = ("cider", "bleu", "rouge", "meteor")
_JAVA_SECONDS = 600


class JavaError(RuntimeError):
    """A Java program is installed, but does not work."""


class CaptionMetrics(Metric):
    """CIDEr-D, BLEU-1 to 4, ROUGE-L and METEOR of one generated caption per image against its references.

    The scorers are pycocoevalcap's. The tokens are those of its Java tokeniser, which is reproduced in Python unless
    `java` is set. An image that several devices saw (a distributed sampler repeats some to fill its last round) counts
    once. Images are scored in the order of their numbers, so that the scores do not depend on the number of devices.

    Args:
        metrics: Names out of `METRICS`. METEOR needs Java; without it METEOR is left out with a warning.
        java: Tokenise with the Java program, where Java is installed.

    Raises:
        ValueError: For an unknown name.
    """

    full_state_update = False
    higher_is_better = True

    records: list[Tensor]

    def __init__(self, metrics: Sequence[str] = ("cider", "bleu", "rouge"), java: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"unknown caption metric {name!r}: choose from {', '.join(METRICS)}")
        self.metrics, self.java = tuple(metrics), java
        if (java or "meteor" in metrics) and not has_java():
            what = " and ".join(["METEOR is left out"] * ("meteor" in metrics) + ["Python tokenises"] * java)
            rank_zero_warn(f"there is no Java on this machine: {what}; CIDEr, BLEU and ROUGE-L are the same without it")
            self.metrics, self.java = tuple(name for name in metrics if name != "meteor"), False
        # Text travels between devices as bytes: lines of JSON, each [image, hypothesis, references].
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def update(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], image_ids: Tensor | Sequence[int]
    ) -> None:
        """Adds a batch of n images.

        Args:
            hypotheses: n captions, one per image.
            references: n lists of at least one caption each.
            image_ids: `(n,)` numbers that identify the images.

        Raises:
            ValueError: If the lengths differ, an image has no reference, or a hypothesis is no single text.
        """
        ids = [int(number) for number in image_ids]
        if isinstance(hypotheses, str) or not len(hypotheses) == len(references) == len(ids):
            given = 1 if isinstance(hypotheses, str) else len(hypotheses)
            raise ValueError(
                f"{given} hypotheses, {len(references)} lists of references and {len(ids)} image numbers do not fit: "
                "give one of each per image"
            )
        lines = []
        for number, hypothesis, captions in zip(ids, hypotheses, references, strict=True):
            if not isinstance(hypothesis, str):
                raise ValueError(
                    f"image {number} has {len(hypothesis)} hypotheses, a {type(hypothesis).__name__}: these metrics "
                    "score one text per image; take the best"
                )
            if isinstance(captions, str) or not captions:
                raise ValueError(f"image {number} needs a list of one reference caption or more, got {captions!r}")
            lines.append(json.dumps([number, hypothesis, list(captions)]) + "\n")
        data = bytearray("".join(lines).encode())
        self.records.append(torch.frombuffer(data, dtype=torch.uint8).clone().to(self.device) if data else self._none())

    def _none(self) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8, device=self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics; a rank without images takes part too."""
        if not self.records:
            self.records.append(self._none())
        super().sync(*args, **kwargs)

    def _images(self) -> dict[int, tuple[str, list[str]]]:
        records = torch.cat([self._none(), *self.records]) if isinstance(self.records, list) else self.records
        images: dict[int, tuple[str, list[str]]] = {}
        for line in records.cpu().numpy().tobytes().decode().splitlines():
            number, hypothesis, references = json.loads(line)
            images.setdefault(number, (hypothesis, references))
        if not images:
            raise ValueError("no caption was evaluated: the data are empty")
        return dict(sorted(images.items()))

    def compute(self) -> dict[str, Tensor]:
        """The scores over all images: `cider` (10 at best), `bleu1` to `bleu4`, `rouge_l`, `meteor` (1 at best).

        Raises:
            ValueError: If there are no images.
        """
        images = self._images()
        hypotheses = {number: hypothesis for number, (hypothesis, _) in images.items()}
        references = {number: captions for number, (_, captions) in images.items()}
        try:
            scores = caption_scores(hypotheses, references, self.metrics, self.java)
        except JavaError as error:  # a missing score must not end a training of hours
            rank_zero_warn(f"{error}; METEOR is left out, and Python tokenises")
            metrics = [name for name in self.metrics if name != "meteor"]
            scores = caption_scores(hypotheses, references, metrics)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in scores.items()}


def caption_scores(
    hypotheses: dict[int, str],
    references: dict[int, list[str]],
    metrics: Sequence[str] = ("cider", "bleu", "rouge"),
    java: bool = False,
) -> dict[str, float]:
    """Scores of captions, as `CaptionMetrics` computes them.

    Args:
        hypotheses: The caption of each image.
        references: The reference captions of the same images, in the same order.
        metrics: Names out of `METRICS`.
        java: Tokenise with the Java program.

    Raises:
        JavaError: If Java is asked for and fails.
    """
    read = java_tokenize if java else tokenize
    flat = read([caption for captions in references.values() for caption in captions])
    rest = iter(flat)
    truth = {number: [next(rest) for _ in captions] for number, captions in references.items()}
    given = {number: [caption] for number, caption in zip(hypotheses, read(list(hypotheses.values())), strict=True)}

    scores: dict[str, float] = {}
    for name in metrics:
        if name == "bleu":
            from pycocoevalcap.bleu.bleu import Bleu

            values, _ = Bleu(4).compute_score(truth, given, verbose=0)
            scores |= {f"bleu{n}": float(value) for n, value in enumerate(values, 1)}
        elif name == "rouge":
            from pycocoevalcap.rouge.rouge import Rouge

            scores["rouge_l"] = float(Rouge().compute_score(truth, given)[0])
        elif name == "cider":
            from pycocoevalcap.cider.cider import Cider

            # The scorer fails where no reference has any word.
            scores["cider"] = float(Cider().compute_score(truth, given)[0]) if any(flat) else 0.0
        elif name == "meteor":
            scores["meteor"] = _meteor(truth, given)
    return scores


def has_java() -> bool:
    """Whether Java is installed."""
    return shutil.which("java") is not None


def java_tokenize(captions: Sequence[str]) -> list[str]:
    """As `ptb.tokenize`, but with the Java program of pycocoevalcap; nothing is written to disk.

    Args:
        captions: The texts to tokenise.

    Raises:
        JavaError: If the program fails.
    """
    if not captions:
        return []
    import pycocoevalcap.tokenizer.ptbtokenizer as official

    jar = Path(official.__file__).with_name(official.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "\n".join(one_line(caption) for caption in captions).encode("utf-8", "replace")
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=_JAVA_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"the Java tokeniser does not run: {error}") from error
    lines = done.stdout.decode().split("\n")[: len(captions)]
    if done.returncode or len(lines) < len(captions):
        reason = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise JavaError(f"the Java tokeniser failed with code {done.returncode}: {reason}")
    return [without_punctuation(line) for line in lines]


def _meteor(truth: dict[int, list[str]], given: dict[int, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    def plain(captions: list[str]) -> list[str]:  # three bars separate the fields of the program's input
        return [" ".join(caption.replace("|||", " ").split()) for caption in captions]

    scorer = Meteor()
    try:
        score, _ = scorer.compute_score(
            {number: plain(captions) for number, captions in truth.items()},
            {number: plain(captions) for number, captions in given.items()},
        )
    except (OSError, ValueError) as error:  # the pipe breaks, or the answer is no number
        scorer.lock.release()  # a failure leaves it locked, and the scorer's destructor would wait for it forever
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()
        raise JavaError(f"METEOR's Java program failed: {error}") from error
    return float(score)
