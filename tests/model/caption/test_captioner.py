"""The decoder against attention written out in loops, and the captioner around it."""

import math

import pytest
import torch

from lookupvit.grid import sincos_positions
from lookupvit.model.caption.captioner import Captioner
from lookupvit.model.caption.decoder import Decoder

TINY = {"embed_dim": 12, "depth": 2, "num_heads": 3, "patch_size": 4}
TEXT = {"depth": 2, "num_heads": 3, "context_length": 9}
NAME = "lookupvit_tiny_patch4_32"


def decoder(vocab: int = 11, seed: int = 0, **options) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(vocab, **{"embed_dim": 12, "memory_dim": 8, **TEXT, **options}).double().eval()
    for p in model.parameters():  # large enough that every term shows
        torch.nn.init.normal_(p, std=0.4)
    return model


def captioner(**options) -> Captioner:
    torch.manual_seed(0)
    given = {"vocab_size": 11, "img_size": 16, "compressed_size": (2, 2), "encoder_args": TINY, "decoder_args": TEXT}
    return Captioner(**{"name": NAME, **given, **options})


def naive_norm(norm: torch.nn.LayerNorm, x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + norm.eps)
    return [(v - mean) / deviation * w + b for v, w, b in zip(x, norm.weight.tolist(), norm.bias.tolist(), strict=True)]


def naive_linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


def naive_attention(query: list[float], keys: list[list[float]], values: list[list[float]], heads: int) -> list[float]:
    d, out = len(query) // heads, []
    for part in (slice(h * d, (h + 1) * d) for h in range(heads)):
        scores = [sum(a * b for a, b in zip(query[part], key[part], strict=True)) / math.sqrt(d) for key in keys]
        weights = [math.exp(score) for score in scores]
        out += [
            sum(w * value[part][i] for w, value in zip(weights, values, strict=True)) / sum(weights) for i in range(d)
        ]
    return out


def naive_decoder(model: Decoder, text: list[int], memory: list[list[float]]) -> list[list[float]]:
    """Logits of each position of one text, number by number."""
    D = model.embed_dim
    xs = [
        [a + b for a, b in zip(model.embed.weight[token].tolist(), model.pos_embed[place].tolist(), strict=True)]
        for place, token in enumerate(text)
    ]

    def add(x: list[float], y: list[float]) -> list[float]:
        return [a + b for a, b in zip(x, y, strict=True)]

    for block in model.blocks:
        heads = block.text.num_heads
        qkv = [naive_linear(block.text.qkv, naive_norm(block.text.norm, x)) for x in xs]
        q, k, v = ([row[i * D : (i + 1) * D] for row in qkv] for i in range(3))
        seen = [naive_attention(q[i], k[: i + 1], v[: i + 1], heads) for i in range(len(xs))]  # itself and before
        xs = [add(x, naive_linear(block.text.proj, y)) for x, y in zip(xs, seen, strict=True)]
        kv = [naive_linear(block.image.kv, token) for token in memory]
        q = [naive_linear(block.image.q, naive_norm(block.image.norm, x)) for x in xs]
        seen = [naive_attention(row, [t[:D] for t in kv], [t[D:] for t in kv], heads) for row in q]
        xs = [add(x, naive_linear(block.image.proj, y)) for x, y in zip(xs, seen, strict=True)]
        hidden = [naive_linear(block.mlp.fc1, naive_norm(block.mlp.norm, x)) for x in xs]
        hidden = [[h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in row] for row in hidden]
        xs = [add(x, naive_linear(block.mlp.fc2, y)) for x, y in zip(xs, hidden, strict=True)]
    matrix = (model.embed if model.head is None else model.head).weight.tolist()
    return [[sum(a * b for a, b in zip(row, naive_norm(model.norm, x), strict=True)) for row in matrix] for x in xs]


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_equals_a_naive_one(tied: bool) -> None:
    model = decoder(tied=tied)
    tokens, memory = torch.tensor([[2, 7, 4, 10, 3]]), torch.randn(1, 4, 8, dtype=torch.float64)
    expected = torch.tensor([naive_decoder(model, tokens[0].tolist(), memory[0].tolist())], dtype=torch.float64)
    torch.testing.assert_close(model(tokens, memory), expected, rtol=1e-10, atol=1e-10)


def test_several_texts_of_an_image_read_its_memory_without_copies_of_it() -> None:
    model, memory = decoder(), torch.randn(2, 4, 8, dtype=torch.float64)
    tokens = torch.randint(11, (6, 5))  # three texts of each image
    expected = model(tokens, memory.repeat_interleave(3, dim=0))
    torch.testing.assert_close(model(tokens, memory), expected)


def test_padding_and_later_tokens_do_not_show() -> None:
    model, memory = decoder(), torch.randn(2, 4, 8, dtype=torch.float64)
    tokens = torch.randint(11, (2, 6))
    other = tokens.clone()
    other[:, 4:] = 0
    torch.testing.assert_close(model(tokens, memory)[:, :4], model(other, memory)[:, :4])
    assert not torch.allclose(model(tokens, memory)[:, 4], model(other, memory)[:, 4])


def test_attention_on_request_is_what_the_decoder_uses() -> None:
    model, memory = decoder(), torch.randn(2, 4, 8, dtype=torch.float64)
    tokens, maps = torch.randint(11, (4, 5)), []
    with_maps = model.hidden(tokens, memory, attention=maps)
    torch.testing.assert_close(with_maps, model.hidden(tokens, memory))
    assert [m.shape for m in maps] == [(4, 3, 5, 4)] * 2
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(4, 3, 5, dtype=torch.float64))
    # text 3 is the second one of image 1: its attention by hand, at the first position of the first block
    block = model.blocks[0]
    x = (model.embed.weight[tokens[3]] + model.pos_embed[:5])[None]
    x = x + block.text(x)
    q = block.image.q(block.image.norm(x))[0, 0].view(3, 4)
    k = block.image.kv(memory[1])[:, :12].view(4, 3, 4)
    expected = torch.einsum("hd,mhd->hm", q, k).div(2).softmax(-1)
    torch.testing.assert_close(maps[0][3, :, 0], expected)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 4, 12)),
        ({"memory": "lookup"}, (2, 16, 12)),
        ({"memory": "both"}, (2, 20, 12)),
        ({"name": "vit_tiny_patch4_32", "compressed_size": None}, (2, 16, 12)),
        ({"decoder_args": {**TEXT, "embed_dim": 18, "tied": False}}, (2, 4, 12)),
    ],
)
def test_every_parameter_gets_a_gradient(options: dict, shape: tuple[int, ...]) -> None:
    model, images = captioner(**options), torch.randn(2, 3, 16, 16)
    assert model.encode(images).shape == shape
    logits = model(images, torch.randint(11, (2, 9)))
    assert logits.shape == (2, 9, 11)
    logits.logsumexp(-1).sin().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_compressed_size_is_chosen_at_each_call() -> None:
    model, images = captioner().eval(), torch.randn(2, 3, 16, 16)
    assert model.encode(images, (3, 4)).shape == (2, 12, 12)
    tokens = torch.randint(11, (2, 5))
    torch.testing.assert_close(model(images, tokens, (3, 4)), model.decoder(tokens, model.encode(images, (3, 4))))
    assert not torch.allclose(model(images, tokens, (3, 4)), model(images, tokens))


def test_the_decoder_comes_later_where_the_vocabulary_does() -> None:
    model = captioner(vocab_size=None)
    assert model.decoder is None and model.context_length == 9
    model.build_decoder(13)
    assert model.decoder.vocab_size == 13 and model.decoder.memory_dim == 12
    assert model.no_weight_decay() == {"encoder.embed.pos_embed", "decoder.pos_embed"}
    layers = {model.layer_id(name) for name, _ in model.named_parameters()}
    assert layers == set(range(model.num_layers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_tiny_patch4_32"}, "no compressed tokens: leave compressed_size out"),
        ({"name": "vit_tiny_patch4_32", "compressed_size": None, "memory": "both"}, "memory='both' needs a LookupViT"),
        ({"memory": "nothing"}, "memory='nothing' is not known: choose one of both, compressed, lookup"),
        ({"name": "lookupvivit_tiny_joint_patch8x2_32"}, "is a model of clips"),
        ({"name": "lookupvit_tinny"}, "did you mean"),
        ({"encoder_args": {"head": "both"}}, "'head' is not for args"),
        ({"decoder_args": {"dept": 3}}, "no argument 'dept'"),
        ({"decoder_args": {"num_heads": 5}}, "num_heads=5 does not divide embed_dim=12"),
        ({"decoder_args": {"num_heads": 5}, "vocab_size": None}, "num_heads=5 does not divide embed_dim=12"),
        ({"decoder_args": {"num_heads": 3, "context_length": 2}}, "context_length=2 has no room"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        captioner(**options)
    assert "\n" not in str(error.value)


def test_wrong_calls_are_told() -> None:
    model, memory = decoder(), torch.randn(2, 4, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="text of 10 tokens does not fit the context of 9"):
        model(torch.zeros(2, 10, dtype=torch.int64), memory)
    with pytest.raises(ValueError, match="text of 10 tokens does not fit the context of 9"):
        model.hidden(torch.zeros(2, 7, dtype=torch.int64), memory, start=3)
    with pytest.raises(ValueError, match="3 texts do not belong to 2 images"):
        model(torch.zeros(3, 4, dtype=torch.int64), memory)


@pytest.mark.parametrize("memory, grids", [("compressed", [(2, 2)]), ("both", [(2, 2), (4, 4)])])
def test_positions_are_added_to_what_the_decoder_reads(memory: str, grids: list[tuple[int, int]]) -> None:
    images = torch.randn(2, 3, 16, 16)
    with_positions, without = (captioner(memory=memory, memory_positions=which) for which in (True, False))
    added = with_positions.encode(images) - without.encode(images)
    expected = torch.cat([0.5 * sincos_positions(grid, 12) for grid in grids])
    torch.testing.assert_close(added, expected.expand(2, -1, -1), atol=1e-5, rtol=0)
