"""Generation against searches by brute force, and the cache against none."""

import itertools
import math

import pytest
import torch

from lookupvit.model.caption.decoder import Decoder
from lookupvit.model.caption.decoding import CachedText
from lookupvit.model.caption.generation import Generation, Special, generate
from lookupvit.model.caption.search import nucleus

BOS, EOS, PAD, UNK = 2, 3, 0, 1
SPECIAL = Special(BOS, EOS, PAD, (UNK,))
E = 8


def decoder(vocab: int = 30, context: int = 12, seed: int = 3, **options) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(vocab, 12, E, depth=2, num_heads=3, context_length=context, **options).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model


def memory(count: int = 7) -> torch.Tensor:
    return 3 * torch.randn(count, 4, E, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def texts(model: Decoder, images: torch.Tensor, cached: bool = True, **how) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(3)
    found = generate(model, images, SPECIAL, Generation(**how), cached, generator)
    return [[caption.tokens for caption in captions] for captions in found]


METHODS = [
    {"method": "greedy"},
    {"method": "beam", "beams": 1},
    {"method": "beam", "beams": 4, "num_return": 4},
    {"method": "beam", "beams": 3, "length_penalty": 0.0},
    {"method": "sample", "num_return": 3, "top_p": 0.95},
]


@pytest.mark.parametrize("how", METHODS, ids=lambda how: "-".join(map(str, how.values())))
@pytest.mark.parametrize("vocab", [6, 30])
def test_the_cache_changes_nothing(how: dict, vocab: int) -> None:
    model, images = decoder(vocab), memory()
    cached = texts(model, images, True, **how)
    assert cached == texts(model, images, False, **how)
    lengths = {len(tokens) for captions in cached for tokens in captions}
    # They end at different times; but where nothing rewards length, all of them at once.
    assert len(lengths) > 1 or how.get("length_penalty") == 0
    assert all(1 <= length <= 10 for length in lengths)
    assert not {BOS, EOS, PAD, UNK} & {token for captions in cached for tokens in captions for token in tokens}


@pytest.mark.parametrize("how", METHODS[:4], ids=lambda how: "-".join(map(str, how.values())))
def test_a_batch_is_written_as_its_images_are_alone(how: dict) -> None:
    model, images = decoder(6), memory(9)
    together = generate(model, images, SPECIAL, Generation(**how))
    for i, captions in enumerate(together):
        (alone,) = generate(model, images[i : i + 1], SPECIAL, Generation(**how))
        assert [c.tokens for c in alone] == [c.tokens for c in captions]
        assert [c.score for c in alone] == pytest.approx([c.score for c in captions], rel=1e-9)


@torch.no_grad()
def log_prob(model: Decoder, image: torch.Tensor, tokens: tuple[int, ...], min_length: int = 1) -> float:
    """Of a text and its end, by one pass over all of it."""
    text = torch.tensor([[BOS, *tokens, EOS]])
    logits = model(text[:, :-1], image[None])[0]
    logits[:, [BOS, PAD, UNK]] = -torch.inf
    logits[:min_length, EOS] = -torch.inf
    return float(logits.log_softmax(-1)[range(len(tokens) + 1), text[0, 1:]].sum())


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, -0.5])
def test_wide_beams_find_what_brute_force_finds(penalty: float) -> None:
    model, images, longest, n = decoder(7), memory(3), 4, 5
    words = [4, 5, 6]
    how = Generation("beam", 3**longest, n, penalty, exhaust=True, max_length=longest)
    found = generate(model, images, SPECIAL, how)
    for image, captions in zip(images, found, strict=True):
        every = [
            (log_prob(model, image, tokens), tokens)
            for length in range(1, longest + 1)
            for tokens in itertools.product(words, repeat=length)
        ]
        best = sorted(((p / (len(t) + 1) ** penalty, p, t) for p, t in every), reverse=True)[:n]
        assert [tuple(c.tokens) for c in captions] == [t for _, _, t in best]
        assert [c.log_prob for c in captions] == pytest.approx([p for _, p, _ in best], rel=1e-9)
        assert [c.score for c in captions] == pytest.approx([score for score, _, _ in best], rel=1e-9)


def test_a_beam_keeps_the_best_prefixes_of_each_length() -> None:
    """Width 2 against the same search written out in lists."""
    model, images, longest = decoder(9), memory(4), 5
    how = Generation("beam", 2, 2, 0.6, max_length=longest, min_length=0, exhaust=True)
    for image, captions in zip(images, generate(model, images, SPECIAL, how), strict=True):
        beams, ended = [(0.0, ())], []
        for t in range(longest + 1):
            following = []
            for total, tokens in beams:
                logits = model(torch.tensor([[BOS, *tokens]]), image[None])[0, -1]
                logits[[BOS, PAD, UNK]] = -torch.inf
                logs = logits.log_softmax(-1).tolist()
                ended.append(((total + logs[EOS]) / (t + 1) ** 0.6, tokens))
                following += [(total + logs[token], (*tokens, token)) for token in range(4, 9)]
            beams = sorted(following, reverse=True)[:2]
        ended.sort(reverse=True)
        assert [tuple(c.tokens) for c in captions] == [tokens for _, tokens in ended[:2]]
        assert [c.score for c in captions] == pytest.approx([score for score, _ in ended[:2]])


def test_stopping_early_misses_nothing_that_a_text_of_its_length_could_beat() -> None:
    model, images = decoder(30), memory()
    early = generate(model, images, SPECIAL, Generation("beam", 4, length_penalty=0.0))
    late = generate(model, images, SPECIAL, Generation("beam", 4, length_penalty=0.0, exhaust=True))
    assert early == late  # without a reward for length the early stop is exact


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model, images = decoder(), memory()
    for image, (tokens,) in zip(images, texts(model, images, method="greedy", min_length=2, max_length=6), strict=True):
        expected: list[int] = []
        while len(expected) < 6:
            logits = model(torch.tensor([[BOS, *expected]]), image[None])[0, -1]
            logits[[BOS, PAD, UNK] + ([EOS] if len(expected) < 2 else [])] = -torch.inf
            token = int(logits.argmax())
            if token == EOS:
                break
            expected.append(token)
        assert tokens == expected


def test_log_probabilities_are_those_of_the_whole_text() -> None:
    model, images = decoder(), memory()
    for how in ({"method": "greedy"}, {"method": "sample", "num_return": 3, "temperature": 0.7}):
        for image, captions in zip(images, generate(model, images, SPECIAL, Generation(**how)), strict=True):
            assert [c.log_prob for c in captions] == sorted((c.log_prob for c in captions), reverse=True)
            for caption in captions:
                assert caption.log_prob == pytest.approx(log_prob(model, image, tuple(caption.tokens)), rel=1e-9)


def test_the_nucleus_is_the_fewest_tokens_of_enough_probability() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64).log()
    third = torch.tensor([0.0, 5 / 9, 1 / 6, 5 / 18], dtype=torch.float64)
    for top_p, expected in {0.3: [0, 1, 0, 0], 0.6: [0, 2 / 3, 0, 1 / 3], 1.0: [0.1, 0.5, 0.15, 0.25]}.items():
        torch.testing.assert_close(nucleus(logits, top_p), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(nucleus(logits, 0.8), third)
    torch.testing.assert_close(nucleus(logits - 1000, 0.8), third)


def test_samples_follow_the_distribution() -> None:
    """Texts of one token, many times: frequencies within five standard deviations of the nucleus's probabilities."""
    model, image, n = decoder(12), memory(1), 4000
    how = Generation("sample", num_return=n, top_p=0.8, temperature=1.5, max_length=1)
    (captions,) = generate(model, image, SPECIAL, how, generator=torch.Generator().manual_seed(0))
    logits = model(torch.tensor([[BOS]]), image)[0, -1]
    logits[[BOS, PAD, UNK, EOS]] = -torch.inf  # at least one token
    ranked = sorted(((p, token) for token, p in enumerate((logits / 1.5).softmax(-1).tolist())), reverse=True)
    kept, total = {}, 0.0
    for p, token in ranked:
        if total < 0.8:
            kept[token] = p
        total += p
    counts = {token: sum(c.tokens == [token] for c in captions) for token in range(12)}
    assert 1 < len(kept) < 8 and sum(counts.values()) == n
    for token, count in counts.items():
        p = kept.get(token, 0.0) / sum(kept.values())
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)), token


def test_keys_and_values_of_the_memory_exist_once_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, calls, shapes = decoder(), memory(3), [], set()
    project = Decoder.project
    monkeypatch.setattr(Decoder, "project", lambda self, memory: calls.append(1) or project(self, memory))
    step = CachedText.step

    def watched(self: CachedText, tokens: torch.Tensor) -> torch.Tensor:
        shapes.update(tensor.shape[0] for pair in self.memory for tensor in pair)
        return step(self, tokens)

    monkeypatch.setattr(CachedText, "step", watched)
    generate(model, images, SPECIAL, Generation("beam", 5))
    assert len(calls) == 1 and max(shapes) == 3


def test_lengths_are_kept_to() -> None:
    model, images = decoder(6), memory()
    for method in ("greedy", "beam", "sample"):
        for least, most in ((1, 1), (3, 5), (10, 10)):
            found = texts(model, images, method=method, min_length=least, max_length=most)
            assert {least <= len(tokens) <= most for (tokens,) in found} == {True}
    empty = texts(model, images, method="beam", min_length=0, length_penalty=-3.0)  # a premium on shortness
    assert [] in [tokens for (tokens,) in empty]
    assert generate(model, images[:0], SPECIAL) == []


def test_fewer_texts_than_asked_for_where_there_are_no_more() -> None:
    model = decoder(6)  # two words: two texts of one, four of two
    found = texts(model, memory(2), method="beam", beams=8, num_return=8, max_length=2, exhaust=True)
    assert [len(captions) for captions in found] == [6, 6]
    assert all(len({tuple(tokens) for tokens in captions}) == 6 for captions in found)


def test_half_precision_is_searched_in_float32() -> None:
    model, images = decoder().bfloat16(), memory().bfloat16()
    for how in METHODS:
        assert all(captions for captions in generate(model, images, SPECIAL, Generation(**how)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "bean"}, "generation method='bean' is not known: choose one of greedy, beam, sample"),
        ({"beams": 0}, "beams=0 is less than 1"),
        ({"beams": 2, "num_return": 3}, "num_return=3 is more than the 2"),
        ({"method": "greedy", "num_return": 2}, "num_return=2 is more than the 1"),
        ({"top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"),
        ({"temperature": 0.0}, "temperature=0.0 is not positive"),
        ({"min_length": 5, "max_length": 4}, "leave no length"),
        ({"beam": 3}, "generation has no option 'beam': did you mean beams"),
        ({"max_length": 11}, "do not fit a context of 12 tokens: give at most 10"),
    ],
)
def test_wrong_options_are_told(how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Generation.of(how).limit(12)
    assert "\n" not in str(error.value)
