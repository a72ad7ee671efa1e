"""Exported folders in Hugging Face transformers: the same numbers as the model itself, offline, without remote code."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from lookupvit import LookupViT, ViT, load_model

transformers = pytest.importorskip("transformers", minversion="5")

from lookupvit.interop import transformers_models as ours  # noqa: E402

TINY = {"img_size": 32, "patch_size": 4, "num_classes": 3, "embed_dim": 24, "depth": 2, "num_heads": 2}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NORMALISED = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    torch.manual_seed(0)


@pytest.fixture
def model():
    model = LookupViT(**TINY, compressed_size=(3, 3)).eval()
    model.set_preprocessing(*NORMALISED, crop_pct=0.8, class_names=["ant", "bee", "cat"])
    model.trained_sizes = [(2, 2), (3, 3)]
    return model


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


@torch.no_grad()
def test_a_classifier_is_the_model_at_every_size(model, folder):
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert classifier.config.id2label == {0: "ant", 1: "bee", 2: "cat"} and not classifier.training
    torch.testing.assert_close(classifier(X).logits, model(X), rtol=0, atol=0)
    for size in (2, (1, 2), [4, 4]):
        expected = model(X, compressed_size=tuple(size) if isinstance(size, list) else size)
        torch.testing.assert_close(classifier(X, compressed_size=size).logits, expected, rtol=0, atol=0)
    smaller = transformers.AutoModelForImageClassification.from_pretrained(folder, compressed_size=(2, 2))
    torch.testing.assert_close(smaller(X).logits, model(X, compressed_size=(2, 2)), rtol=0, atol=0)
    smaller.config.compressed_size = (1, 1)  # and of a loaded model, as for a pipeline's
    torch.testing.assert_close(smaller(X).logits, model(X, compressed_size=(1, 1)), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"\(9, 9\) does not fit") as error:
        classifier(X, compressed_size=(9, 9))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_plain_vit_is_taken_as_well(tmp_path):
    vit = ViT(**TINY).eval()
    vit.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    output = again(X, output_hidden_states=True)
    torch.testing.assert_close(output.logits, vit(X), rtol=0, atol=0)
    # timm's own function gives the states after the blocks
    torch.testing.assert_close(
        output.hidden_states[1:], tuple(vit.vit.forward_intermediates(X, output_fmt="NLC", intermediates_only=True))
    )
    assert [type(load_model(tmp_path)), output.hidden_states[0].shape] == [ViT, (2, 64, 24)]
    with pytest.raises(ValueError, match="plain ViT has no compressed tokens"):
        again(X, compressed_size=(2, 2))


@torch.no_grad()
def test_the_encoder_gives_compressed_tokens_states_and_attention(model, folder):
    encoder = transformers.AutoModel.from_pretrained(folder)
    assert not any("heads" in name and "fc" in name for name, _ in encoder.named_parameters())
    output = encoder(X, compressed_size=(2, 2), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, model.encode(X, (2, 2)))
    torch.testing.assert_close(output.pooler_output, model.encode(X, (2, 2)).mean(dim=1))
    _, states = model.forward_intermediates(X, compressed_size=(2, 2))
    assert len(output.hidden_states) == 3
    for own, other in zip(states, zip(output.hidden_states[1:], output.attentions, strict=True), strict=True):
        torch.testing.assert_close((own.compressed, own.attention), other)


@torch.no_grad()
def test_a_backbone_gives_maps_of_the_chosen_stages(model, folder):
    backbone = ours.LookupViTBackbone.from_pretrained(folder, out_indices=[0, 2])
    output = backbone(X, compressed_size=(2, 2))
    assert backbone.out_features == ["stem", "stage2"] and backbone.channels == [24, 24]
    lookup, _ = model.embed_images(X)
    last = model.get_intermediate_layers(X, n=1, reshape=True, compressed_size=(2, 2))[0]
    torch.testing.assert_close(output.feature_maps, (lookup.transpose(1, 2).reshape(2, 24, 8, 8), last))
    config = transformers.AutoConfig.from_pretrained(folder, out_features=["stage1"])
    assert type(transformers.AutoBackbone.from_config(config)) is ours.LookupViTBackbone


def test_a_pipeline_answers_as_the_model_does(model, folder):
    pixels = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8)
    classify = transformers.pipeline("image-classification", model=str(folder))
    answers = classify(Image.fromarray(pixels.numpy()), top_k=3)
    # by hand: 40 px are the shorter side of 32 / 0.8, so that only the crop and the normalisation are left
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISED)
    images = (pixels.permute(2, 0, 1)[:, 4:36, 4:36] / 255 - mean) / std  # (3, 32, 32)
    expected = model(images[None]).softmax(dim=1)[0]
    by_name = {answer["label"]: answer["score"] for answer in answers}
    torch.testing.assert_close(torch.tensor([by_name[name] for name in ("ant", "bee", "cat")]), expected)


class Brightness(torch.utils.data.Dataset):
    """Images whose class is their brightness."""

    def __len__(self):
        return 24

    def __getitem__(self, place):
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(place))
        return {"pixel_values": 0.1 * noise + place % 3 - 1, "labels": place % 3}


def trainer(model, folder, steps):
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_steps": 10, "logging_steps": 1, "seed": 1}
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=12, learning_rate=3e-3, **options
    )
    return transformers.Trainer(model, arguments, train_dataset=Brightness(), eval_dataset=Brightness())


def test_a_trainer_learns_and_its_folders_are_ours(folder, tmp_path):
    changed = {"num_labels": 5, "ignore_mismatched_sizes": True, "compressed_size": (2, 2)}
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder, **changed)
    run = trainer(classifier, tmp_path / "run", 20)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < 0.6 * before
    expected = classifier.eval()(X).logits
    again = load_model(tmp_path / "run" / "checkpoint-20")
    torch.testing.assert_close(again(X), expected)
    assert (again.compressed_size, again.num_classes, again.class_names) == ((2, 2), 5, None)
    assert again.pixels.mean == NORMALISED[0] and again.trained_sizes == [(2, 2), (3, 3)]
    torch.testing.assert_close(LookupViT.from_pretrained(tmp_path / "run" / "checkpoint-20")(X), expected)
    fresh = transformers.AutoModelForImageClassification.from_pretrained(folder, **changed)
    resumed = trainer(fresh, tmp_path / "run", 20)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    torch.testing.assert_close(fresh.eval()(X).logits, expected)


def test_the_loss_is_the_mean_of_the_heads(model, folder):
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder)
    labels = torch.tensor([0, 2])
    heads = model.forward_logits(model.forward_features(X))
    expected = sum(torch.nn.functional.cross_entropy(logits, labels) for logits in heads.values()) / 2
    torch.testing.assert_close(classifier(X, labels=labels).loss, expected)


def test_lora_trains_and_merges(folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForImageClassification.from_pretrained(folder)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["fc"]))
    trainable, _ = tuned.get_nb_trainable_parameters()
    assert trainable == 2 * 2 * (24 + 72) + 2 * (24 * 3 + 3)  # two blocks of rank 2, two classifiers
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        tuned(pixel_values=X, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    tuned.eval().save_pretrained(tmp_path / "lora")
    fresh = transformers.AutoModelForImageClassification.from_pretrained(folder)
    plain = fresh(X).logits
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()
    torch.testing.assert_close(loaded(X).logits, tuned(X).logits)
    assert not torch.allclose(tuned(X).logits, plain, atol=1e-3)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(X), tuned(X).logits, rtol=1e-4, atol=1e-5)


def test_transformers_own_llava_reads_the_compressed_tokens(folder):
    text = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
    )
    vision = transformers.AutoConfig.from_pretrained(folder, compressed_size=(2, 2))
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=49,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    llava = transformers.LlavaForConditionalGeneration(config)
    assert type(llava.model.vision_tower) is ours.LookupViTModel
    ids = torch.tensor([[1] + [49] * 4 + [2]])  # four compressed tokens in place of 64 patches
    output = llava(input_ids=ids, pixel_values=X[:1], labels=ids)
    output.loss.backward()
    assert output.logits.shape == (1, 6, 50)
    gradient = llava.model.vision_tower.lookupvit.embed.proj.weight.grad
    assert gradient is not None and gradient.abs().max() > 0  # the loss reaches the patches through four tokens


def test_lookupvit_alone_does_not_import_transformers():
    code = "import sys, lookupvit; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
