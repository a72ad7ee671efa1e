"""The searches behind `lookupvit.model.caption.generation`: greedy, sampling, beams.

Letters: B images, b of them not done, K texts of each (beams, samples), n texts of each to return, V vocabulary, t
    tokens
written so far.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookupvit.model.caption.decoding import CachedText, WholeText
from lookupvit.model.caption.options import Caption, Generation, Special


class Search:
    """The part that all methods share: the loop over positions, which leaves out images that are done.

    A subclass keeps its tensors in `state`, with images as the first axis. `result` names those that are returned,
    whose shapes must not change.
    """

    result: tuple[str, ...]

    def __init__(self, text: CachedText | WholeText, special: Special, how: Generation, limit: int):
        self.text, self.special, self.how, self.limit = text, special, how, limit
        self.state: dict[str, Tensor] = {}

    def run(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Writes until every image is done; returns the result, all images in order."""
        images = torch.arange(count, device=device)  # (b,) those that `state` is of
        tokens = torch.full((count, 1), self.special.bos, dtype=torch.int64, device=device)
        self.start(count, device)
        results = {name: self.state[name].clone() for name in self.result}
        for t in range(self.limit + 1):
            tokens, done = self.write(t, self._allowed(t, self.text.step(tokens)))
            running = (~done).nonzero().flatten()
            # Images are left out only when half of them are done, so that the memory is copied only a few times.
            if 2 * len(running) <= len(done):
                for name in self.result:
                    results[name][images] = self.state[name]
                if not len(running):
                    break
                images, tokens = images[running], tokens[running]
                self.state = {name: value[running] for name, value in self.state.items()}
                self.text.keep(running)
        return results

    def _allowed(self, t: int, logits: Tensor) -> Tensor:
        """Logits `(b, K, V)`, set to minus infinity for tokens that may not come at place t."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        logits[..., [self.special.bos, self.special.pad, *self.special.banned]] = -torch.inf
        if t < self.how.min_length:
            logits[..., self.special.eos] = -torch.inf
        return logits

    def _captions(self, tokens: Tensor, log_probs: Tensor, scores: Tensor) -> list[list[Caption]]:
        """Captions of texts `(B, n, limit + 1)`, ended by eos, and scores `(B, n)`, without impossible ones."""
        rows = zip(tokens.tolist(), log_probs.tolist(), scores.tolist(), strict=True)
        return [
            [
                Caption(text[: text.index(self.special.eos)], log_prob, score)
                for text, log_prob, score in zip(*row, strict=True)
                if score > -torch.inf
            ]
            for row in rows
        ]

    def start(self, count: int, device: torch.device) -> None:
        """Fills `state`."""
        raise NotImplementedError

    def write(self, t: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one more token, from logits `(b, K, V)`: returns tokens `(b, K')` and which images are done, `(b,)`.

        At place `limit` only the end token is possible, and all images are done.
        """
        raise NotImplementedError

    def captions(self, results: dict[str, Tensor]) -> list[list[Caption]]:
        """Turns the result of `run` into captions."""
        raise NotImplementedError


class Walk(Search):
    """Greedy search and sampling: each text is continued by itself."""

    result = ("tokens", "log_probs")

    def __init__(self, *args, generator: torch.Generator | None = None):
        super().__init__(*args)
        self.generator = generator

    def start(self, count: int, device: torch.device) -> None:
        """Starts with empty texts."""
        shape = (count, self.how.num_return)
        self.state["tokens"] = torch.full((*shape, self.limit + 1), self.special.pad, device=device)
        self.state["log_probs"] = torch.zeros(shape, dtype=torch.float64, device=device)
        self.state["ended"] = torch.zeros(shape, dtype=torch.bool, device=device)

    def write(self, t: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one more token of each text that has not ended, and padding after those that have."""
        ended = self.state["ended"]
        if logits.shape[1] < ended.shape[1]:  # at the first token the samples of an image are one text
            self.text.move(torch.zeros(ended.shape, dtype=torch.int64, device=ended.device))
            logits = logits.expand(-1, ended.shape[1], -1)  # (b, 1, V) -> (b, K, V)
        if t == self.limit:
            tokens = torch.full_like(ended, self.special.eos, dtype=torch.int64)
        elif self.how.method == "greedy":
            tokens = logits.argmax(dim=-1)
        else:
            probabilities = nucleus(logits / self.how.temperature, self.how.top_p)
            tokens = torch.multinomial(probabilities.flatten(0, 1), 1, generator=self.generator).view(ended.shape)
        own = logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]  # (b, K)
        self.state["log_probs"] += own.masked_fill(ended, 0)
        tokens = tokens.masked_fill(ended, self.special.pad)
        self.state["tokens"][..., t] = tokens
        self.state["ended"] = ended | (tokens == self.special.eos)
        return tokens, self.state["ended"].all(dim=1)

    def captions(self, results: dict[str, Tensor]) -> list[list[Caption]]:
        """Captions, ranked by probability."""
        order = results["log_probs"].argsort(dim=1, descending=True, stable=True)
        tokens = results["tokens"].gather(1, order[..., None].expand_as(results["tokens"]))
        log_probs = results["log_probs"].gather(1, order)
        return self._captions(tokens, log_probs, log_probs)


class Beams(Search):
    """Beam search. At each step every beam is also ended, and the n best ended texts are kept beside the beams."""

    result = ("ended", "ended_log_probs", "ended_scores")

    def start(self, count: int, device: torch.device) -> None:
        """Starts with one empty text and no ended ones."""
        n, real = self.how.num_return, {"dtype": torch.float64, "device": device}
        self.state["texts"] = torch.zeros(count, 1, 0, dtype=torch.int64, device=device)  # (b, K, t)
        self.state["log_probs"] = torch.zeros(count, 1, **real)  # (b, K), falling
        self.state["ended"] = torch.full((count, n, self.limit + 1), self.special.pad, device=device)
        for name in ("ended_log_probs", "ended_scores"):
            self.state[name] = torch.full((count, n), -torch.inf, **real)

    def write(self, t: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ends each text, then continues the best ones with one more token."""
        b, K, V = logits.shape
        total = logits.logsumexp(dim=-1)  # (b, K); cheaper than the logarithm of every probability
        self._end(t, logits[..., self.special.eos] - total)
        if t == self.limit:
            return self.state["texts"][..., -1], torch.ones(b, dtype=torch.bool, device=logits.device)

        logits[..., self.special.eos] = -torch.inf
        few = min(self.how.beams, V)
        best, tokens = logits.topk(few, dim=-1)  # (b, K, few): no beam has more successors among the best
        log_probs = self.state["log_probs"][..., None] + (best - total[..., None])
        log_probs, where = log_probs.flatten(1).topk(min(self.how.beams, K * few), dim=1)  # (b, K few) -> (b, K')
        parent, tokens = where // few, tokens.flatten(1).gather(1, where)  # (b, K')
        old = self.state["texts"].gather(1, parent[..., None].expand(-1, -1, t))
        self.state["texts"] = torch.cat([old, tokens[..., None]], dim=2)
        self.text.move(parent)

        # The best text has t + 1 tokens; its end comes one token later at the earliest.
        length = self.limit + 1 if self.how.exhaust and self.how.length_penalty > 0 else t + 2
        done = log_probs[:, 0] / length**self.how.length_penalty <= self.state["ended_scores"][:, -1]
        self.state["log_probs"] = log_probs.masked_fill(done[:, None], -torch.inf)  # these are not continued
        return tokens, done

    def _end(self, t: int, end: Tensor) -> None:
        """Merges the texts of t tokens, with the log-probability `(b, K)` of their end, into those that have ended."""
        state, n = self.state, self.how.num_return
        log_probs = state["log_probs"] + end
        scores = log_probs / (t + 1) ** self.how.length_penalty
        new = F.pad(state["texts"], (0, self.limit + 1 - t), value=self.special.pad)
        new[..., t] = self.special.eos
        state["ended_scores"], order = torch.cat([state["ended_scores"], scores], dim=1).topk(n, dim=1)  # of (b, n + K)
        state["ended_log_probs"] = torch.cat([state["ended_log_probs"], log_probs], dim=1).gather(1, order)
        texts = torch.cat([state["ended"], new], dim=1)
        state["ended"] = texts.gather(1, order[..., None].expand(-1, -1, self.limit + 1))

    def captions(self, results: dict[str, Tensor]) -> list[list[Caption]]:
        """Captions, best first."""
        return self._captions(results["ended"], results["ended_log_probs"], results["ended_scores"])


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Probabilities `(..., V)` of the fewest likeliest tokens whose sum reaches `top_p`, scaled to a sum of 1."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens together
    kept = probabilities.masked_fill(likelier >= top_p, 0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept)
