"""The options of text generation and its result: plain values that the search and its callers share."""

import difflib
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from lookupvit.checks import check_choice

METHODS = ("greedy", "beam", "sample")


class Special(NamedTuple):
    """Tokens with a meaning of their own.

    Attributes:
        bos: Begins a text.
        eos: Ends it.
        pad: Follows its end.
        banned: Others that are never written, such as the unknown token.
    """

    bos: int
    eos: int
    pad: int
    banned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
    """How texts are written.

    Attributes:
        method: "greedy" (the likeliest token each time), "beam", or "sample" (a random token of the nucleus).
        beams: Texts that beam search carries along.
        num_return: Texts of each image, best first; at most `beams`. Samples may be any number.
        length_penalty: A beam's score is its log-probability over the number of its tokens, its end counted, to this
            power: 0 ranks by probability, which prefers short texts; 1 ranks by the mean over the tokens.
        exhaust: When beam search stops for an image. By default it stops when the best unfinished text, at its present
            length, scores less than the n-th finished one; with this option, when it would do so at every length.
        top_p: The nucleus is the fewest likeliest tokens that have this probability together.
        temperature: Temperature of the sampled distribution; below 1 it is sharper.
        min_length: Smallest number of tokens, without begin and end.
        max_length: Largest number of tokens, without begin and end; None takes what the decoder's context has room for.

    Raises:
        ValueError: For a value that does not fit, in one line.
    """

    method: str = "beam"
    beams: int = 3
    num_return: int = 1
    length_penalty: float = 1.0
    exhaust: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    min_length: int = 1
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_choice("generation method", self.method, METHODS)
        for name in ("beams", "num_return"):
            if getattr(self, name) < 1:
                raise ValueError(f"generation {name}={getattr(self, name)} is less than 1: give a positive number")
        most = {"greedy": 1, "beam": self.beams, "sample": self.num_return}[self.method]
        if self.num_return > most:
            raise ValueError(
                f"generation num_return={self.num_return} is more than the {most} text(s) of method {self.method!r}: "
                "lower it, or raise beams with method 'beam'"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generation top_p={self.top_p} is not in (0, 1]: 1 samples from all tokens")
        if self.temperature <= 0:
            raise ValueError(f"generation temperature={self.temperature} is not positive: use method 'greedy' for 0")
        if self.min_length < 0 or (self.max_length is not None and self.max_length < max(1, self.min_length)):
            raise ValueError(
                f"generation min_length={self.min_length} and max_length={self.max_length} leave no length: give "
                "0 <= min_length <= max_length and max_length >= 1"
            )

    @classmethod
    def of(cls, options: dict[str, Any] | None) -> "Generation":
        """Builds it from data such as `{"method": "beam", "beams": 5}`; raises a ValueError for an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in options or {}:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise ValueError(f"generation has no option {key!r}: {hint}")
        return cls(**(options or {}))

    def limit(self, context_length: int) -> int:
        """Largest number of tokens of a text, without begin and end, for a decoder with this context."""
        room = context_length - 2
        if (self.max_length or 0) > room or self.min_length > room:
            raise ValueError(
                f"generation max_length={self.max_length}, min_length={self.min_length} do not fit a context of "
                f"{context_length} tokens: give at most {room}, since a text also has a beginning and an end"
            )
        return self.max_length or room


class Caption(NamedTuple):
    """One text.

    Attributes:
        tokens: Without beginning, end and padding.
        log_prob: Natural logarithm of its probability, its end counted; at temperature 1, over every
            token that may be written.
        score: What texts of one image are ranked by.
    """

    tokens: list[int]
    log_prob: float
    score: float
