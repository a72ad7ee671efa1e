"""Cascades: what is decided, what it costs, what really runs, and the file."""

import json
from math import log

import pytest
import torch

from lookupvit import create_model
from lookupvit.analysis.cascade.cascade import Cascade, CascadeCosts, cascade_costs
from lookupvit.analysis.cascade.confidence import confidence, fit_temperature
from lookupvit.analysis.cost import count_macs, embedding_macs

SIZES = ((1, 1), (2, 2), (4, 4))


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows).log()


# Three images, two classes; probabilities of the first class at each of two sizes.
TWO = {(1, 1): logits_of((0.9, 0.1), (0.6, 0.4), (0.3, 0.7)), (2, 2): logits_of((0.2, 0.8), (0.2, 0.8), (0.9, 0.1))}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 5, "compressed_size": (2, 2)}
    model = create_model("lookupvit_tiny_patch4_32", **options).eval()
    for parameter in model.parameters():  # untrained logits are nearly equal; spread them
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_confidences_by_hand():
    logits = logits_of((0.5, 0.3, 0.2), (0.8, 0.1, 0.1)) + 7
    assert confidence(logits).tolist() == pytest.approx([0.5, 0.8])
    assert confidence(logits, "margin").tolist() == pytest.approx([0.2, 0.7])
    entropy = -(0.8 * log(0.8) + 0.2 * log(0.1)) / log(3)
    assert confidence(logits, "entropy")[1].item() == pytest.approx(1 - entropy, abs=1e-6)
    for kind in ("probability", "margin", "entropy"):
        assert confidence(torch.tensor([[100.0, 0, 0]]), kind).item() == pytest.approx(1)
        assert confidence(torch.zeros(1, 1), kind).item() == pytest.approx(1)  # a single class


def test_temperature_by_hand():
    # three of four images are of class 0, whose odds are 3 at temperature 1
    targets = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[log(3), 0.0]]).repeat(4, 1)
    for scale in (0.5, 1.0, 2.5):
        assert fit_temperature(scale * logits, targets) == pytest.approx(scale, rel=1e-6)


def test_decisions_and_cost_by_hand():
    costs = CascadeCosts(shared=10.0, stages={(1, 1): 1.0, (2, 2): 5.0})
    targets = torch.tensor([0, 1, 1])
    cascade = Cascade(((1, 1), (2, 2)), (0.8,))  # the second and the third image go on
    logits, stage = cascade.decide(TWO)
    assert stage.tolist() == [0, 1, 1]
    assert logits.argmax(dim=1).tolist() == [0, 1, 0]
    accuracy, cost, shares = cascade.evaluate(TWO, targets, costs)
    assert accuracy == pytest.approx(2 / 3)
    assert cost == pytest.approx(10 + 1 + 5 * 2 / 3)
    assert shares == pytest.approx((1 / 3, 2 / 3))
    assert costs.fixed((2, 2)) == 15 and Cascade(((2, 2),), ()).evaluate(TWO, targets, costs).cost == 15


def test_temperature_and_average_by_hand():
    # the first size at temperature 2: odds 9 become 3, so that 0.9 becomes 0.75 and goes on as well
    cascade = Cascade(((1, 1), (2, 2)), (0.8,), temperatures=(2.0, 1.0))
    assert cascade.decide(TWO)[1].tolist() == [1, 1, 1]
    # means of the logits: odds sqrt(9 / 4), sqrt(1.5 / 4), sqrt(9 * 3 / 7)
    logits, stage = Cascade(((1, 1), (2, 2)), (2.0,), average=True).decide(TWO)
    assert stage.tolist() == [1, 1, 1]
    odds = (logits[:, 0] - logits[:, 1]).exp().square().tolist()
    assert odds == pytest.approx([9 / 4, 1.5 / 4, 9 * 3 / 7], rel=1e-5)


@pytest.mark.parametrize("head", [None, "compressed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"confidence": "margin", "average": True}, {"confidence": "entropy", "temperatures": (0.7, 1.3, 2.0)}],
    ids=str,
)
def test_predict_does_what_evaluate_says(model, head, options):
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        by_size = {size: model(images, size, head) for size in SIZES}
    # thresholds so that some images end at each stage, away from any confidence
    cascade = Cascade(SIZES, (0.5, 0.5), **options)
    first = sorted(confidence(by_size[SIZES[0]] / cascade.temperatures[0], cascade.confidence).tolist())
    cascade = Cascade(SIZES, ((first[9] + first[10]) / 2, 0.0), **options)
    waiting = cascade.decide(by_size)[1] == 1
    answers = [by_size[size].double() / t for size, t in zip(SIZES, cascade.temperatures, strict=True)]
    second = (answers[0] + answers[1]) / 2 if cascade.average else answers[1]
    second = sorted(confidence(second[waiting], cascade.confidence).tolist())
    cascade = Cascade(SIZES, (cascade.thresholds[0], (second[3] + second[4]) / 2), **options)

    calls = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, args: calls.append((len(args[0]), args[0].shape[1])))
    embeds = model.embed.register_forward_pre_hook(lambda _, args: calls.append(("embed", len(args[0]))))
    try:
        logits, stage = cascade.predict(model, images, head)
    finally:
        hook.remove()
        embeds.remove()
    expected, expected_stage = cascade.decide(by_size)
    assert stage.tolist() == expected_stage.tolist()
    assert [stage.tolist().count(i) for i in range(3)] == [6, 6, 4]
    torch.testing.assert_close(logits, expected.float(), rtol=1e-4, atol=1e-4)
    assert calls == [("embed", 16), (16, 1), (10, 4), (4, 16)]

    costs = cascade_costs(model, list(SIZES), head=head)
    spent = [count_macs(model, 32, size, head) - embedding_macs(model) for size in SIZES]
    by_hand = embedding_macs(model) + (16 * spent[0] + 10 * spent[1] + 4 * spent[2]) / 16
    assert cascade.evaluate(by_size, torch.zeros(16, dtype=torch.int64), costs).cost == pytest.approx(by_hand)


def test_predict_when_nobody_goes_on(model):
    images = torch.randn(2, 3, 32, 32)
    logits, stage = Cascade(((1, 1), (2, 2)), (0.0,)).predict(model, images)
    assert stage.tolist() == [0, 0]
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images, (1, 1)))


def test_costs_add_up_to_the_fixed_ones(model):
    costs = cascade_costs(model, list(SIZES), img_size=(40, 24))
    for size in SIZES:
        assert costs.fixed(size) == count_macs(model, (40, 24), size)


def test_a_file_round_trips(tmp_path):
    cascade = Cascade(((1, 1), (2, 5, 5)), (1 / 3,), "entropy", (0.1, 1.7), True)
    path = cascade.save(tmp_path / "new" / "cascade.json", about={"images": 100})
    assert Cascade.load(path) == cascade
    assert json.loads(path.read_text())["sizes"] == ["1x1", "2x5x5"]
    assert Cascade.from_dict(cascade.as_dict()) == cascade
    assert Cascade.from_dict({"sizes": ["3x3"], "thresholds": []}) == Cascade(((3, 3),), ())


GOOD = {"sizes": ["1x1", "2x2"], "thresholds": [0.5]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read: Expecting"),
        ("[]", "expected a mapping with sizes and thresholds, got a list"),
        ("{}", "sizes and thresholds missing"),
        (json.dumps({**GOOD, "treshold": 1}), "unknown entry 'treshold': known are sizes"),
        (json.dumps({**GOOD, "sizes": ["1x1", "x"]}), "compressed size 'x' is not of the form"),
        (json.dumps({**GOOD, "sizes": [1, 2]}), "sizes=.* is not a list of text"),
        (json.dumps({**GOOD, "sizes": ["1x1", "1x1"]}), "different sizes"),
        (json.dumps({**GOOD, "sizes": [], "thresholds": []}), "one or more"),
        (json.dumps({**GOOD, "thresholds": [0.5, 0.6]}), "2 sizes has 1 thresholds, got 2"),
        (json.dumps({**GOOD, "thresholds": [True]}), "is not a list of numbers"),
        (json.dumps({**GOOD, "thresholds": [float("inf")]}), "not all finite"),
        (json.dumps({**GOOD, "temperatures": [1, 0]}), "not all positive"),
        (json.dumps({**GOOD, "temperatures": [1]}), "2 sizes has 2 temperatures, got 1"),
        (json.dumps({**GOOD, "average": "yes"}), "neither true nor false"),
        (json.dumps({**GOOD, "confidence": "max"}), "choose one of probability, margin, entropy"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "cascade.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"cascade {path} cannot be read: ") as error:
        Cascade.load(path)
    assert error.match(message) and "\n" not in str(error.value)


def test_other_mistakes(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        Cascade.load(tmp_path / "nowhere.json")
    vit = create_model("vit_tiny_patch4_32", depth=1)
    with pytest.raises(ValueError, match="needs a model with compressed tokens, not a ViT"):
        Cascade(((1, 1),), ()).predict(vit, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="needs a model with compressed tokens"):
        cascade_costs(vit, [(1, 1)])
    with pytest.raises(ValueError, match="does not fit the lookup grid"):
        Cascade(((9, 9),), ()).predict(model, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no logits for size 4x4: there are 1x1, 2x2"):
        Cascade(((4, 4),), ()).decide(TWO)
    with pytest.raises(ValueError, match="of the same one or more images"):
        Cascade(((1, 1), (2, 2)), (0.5,)).decide({(1, 1): torch.zeros(2, 3), (2, 2): torch.zeros(3, 3)})
