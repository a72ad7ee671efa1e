"""Tokens of captions as in the official COCO evaluation, which runs Stanford's PTBTokenizer in Java.

The rules are written anew, in Python; the tests hold their answers against those of the Java program.
"""

import functools
import re
from collections.abc import Sequence

from lookupvit.metrics.ptb.chars import LINES
from lookupvit.metrics.ptb.rules import RULES, Rule

# Tokens that the COCO evaluation drops. Its list also has "-LRB-", but tokens are in lower case there: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_LINES = re.compile(f"\r\n|[{LINES}]")
# A word between spaces is one token, unless a rule splits it into two.
_PLAIN = re.compile(r" *(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)[ \n])([A-Za-z]+)[ \n]")


@functools.cache
def _rules_of(char: str) -> tuple[Rule, ...]:
    """The rules that can match at a character."""
    return tuple(rule for rule in RULES if rule.starts.match(char))


def _scan(text: str) -> str:
    """The text with a space after each token."""
    out, place = [], 0
    while place < len(text):
        if plain := _PLAIN.match(text, place):
            out.append(plain[1].lower() + " ")
            place = plain.end(1)
            continue
        rule, length, end = None, 0, place + 1
        for candidate in _rules_of(text[place]):
            match = candidate.pattern.match(text, place)
            if match and match.end() - place > length:
                rule, length, end = candidate, match.end() - place, match.end(1)
        if rule is None:  # a line's end, or a character that belongs to no token
            if text[place] == "\n":
                out.append("\n")
        else:
            token = rule.text(text[place : end if rule.doubled else end - rule.back])
            if token:
                out.append(token.lower() + " ")
            end -= rule.back
        place = end
    return "".join(out)


def one_line(caption: str) -> str:
    """A caption with a space in place of each line break."""
    return _LINES.sub(" ", caption)


def without_punctuation(line: str) -> str:
    """A line of tokens as the Java program prints it, without the tokens that the evaluation drops."""
    return " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokens of each caption in lower case, one space between them, without punctuation.

    The captions are read as the lines of one text, as in the official evaluation: whether "etc." at the end of a
    caption is followed by a full stop of its own depends on whether the next caption begins with a capital.

    Args:
        captions: The texts. A line break within one counts as a space (there the official program mixes captions up).

    Returns:
        n texts; that of an empty caption is empty.
    """
    if not captions:
        return []
    text = "\n".join(one_line(caption) for caption in captions)
    # Java's characters have 16 bits. A character beyond them, such as most emoji, is two that no rule knows.
    units = text.encode("utf-16-le", "surrogatepass")
    text = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
    lines = _scan(text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").split("\n")
    return [without_punctuation(line) for line in lines]
