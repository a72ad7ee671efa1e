"""Layers that somebody wrapped, hooked, parametrised or quantised are called, on every path and in training."""

import warnings

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from lookupvit.model.block import LookupViTBlock
from lookupvit.model.products.unwrapped import unwrapped

PATHS = ("auto", "plain", "absorbed", "tiled")
LINEAR = ("cross.q", "cross.kv", "cross.proj", "cross.v_infuse", "cross.proj_infuse", "attn.qkv", "attn.proj")
LINEAR += ("mlp.fc1", "mlp.fc2", "lookup_mlp.fc1", "lookup_mlp.fc2")


def _block(path: str) -> tuple[LookupViTBlock, Tensor, Tensor]:
    torch.manual_seed(0)
    block = LookupViTBlock(12, 3, path=path)
    return block, torch.randn(2, 2, 12), torch.randn(2, 25, 12)  # "auto" absorbs: M H is half of D


def _loss(block: nn.Module, compressed: Tensor, lookup: Tensor) -> Tensor:
    compressed, lookup, _ = block(compressed, lookup)
    return compressed.sin().sum() + lookup.cos().sum()


@pytest.mark.parametrize("path", PATHS)
def test_lora_adapters_act_and_learn(path):
    block, *tokens = _block(path)
    config = peft.LoraConfig(r=2, target_modules=[name.split(".")[-1] for name in LINEAR], init_lora_weights=False)
    adapted = peft.get_peft_model(block, config)
    training = _loss(adapted, *tokens)
    training.backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(grads) == 2 * len(LINEAR) and all(g is not None and g.any() for g in grads.values())
    with torch.no_grad():
        torch.testing.assert_close(_loss(adapted, *tokens), training)
        merged = adapted.merge_and_unload()  # the adapters' products added to the weights: plain layers again
        assert type(merged.cross.kv) is nn.Linear
        torch.testing.assert_close(_loss(merged, *tokens), training)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward_pre", "global"])
def test_hooks_fire_on_every_layer_and_change_nothing_else(path, kind):
    block, *tokens = _block(path)
    expected = torch.autograd.grad(_loss(block, *tokens), list(block.parameters()))
    names = {module: name for name, module in block.named_modules()}
    layers = [block.get_submodule(name) for name in (*LINEAR, "mlp.norm", "lookup_mlp.norm")]
    fired = set()

    def hook(module: nn.Module, *_) -> None:
        fired.add(module)

    if kind == "global":
        handles = [register_module_forward_hook(hook)]
    else:
        method = {"forward": "forward_hook", "pre": "forward_pre_hook", "backward": "full_backward_hook"}
        register = f"register_{method.get(kind, 'full_backward_pre_hook')}"
        handles = [getattr(layer, register)(hook) for layer in layers]
    try:
        for p in block.parameters():
            p.grad = None
        _loss(block, *tokens).backward()
    finally:
        for handle in handles:
            handle.remove()
    assert {names[layer] for layer in layers} <= {names[module] for module in fired}
    for parameter, grad in zip(block.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_dynamic_quantization(path):
    block, *tokens = _block(path)
    expected = block(*tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move to torchao
        quantized = torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.cross.kv) is not nn.Linear
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for out, other in zip(quantized(*tokens)[:2], expected[:2], strict=True):
                error = (out - other).norm() / other.norm()
                assert 0 < error < 0.02


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_act_and_learn(path, parametrization):
    results = []
    for taken in ("plain", path):
        block, *tokens = _block(taken)
        block.eval()  # spectral_norm's power iteration stands still
        for name in LINEAR:
            parametrization(block.get_submodule(name))
        loss = _loss(block, *tokens)
        results.append([loss, *torch.autograd.grad(loss, list(block.parameters()))])
        assert all(grad.any() for grad in results[-1])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


class _Wrapped(Tensor):
    """Such a weight as torchao and DTensor put into a plain `nn.Linear`."""

    def __tensor_flatten__(self):
        return [], None


def test_what_counts_as_torchs_own_layer():
    linear = nn.Linear(2, 2)
    assert unwrapped(linear, nn.LayerNorm(2), nn.Linear(2, 2, bias=False))
    assert not unwrapped(linear, nn.Identity())
    assert not unwrapped(type("Linear", (nn.Linear,), {})(2, 2))
    handle = linear.register_forward_hook(lambda *_: None)
    assert not unwrapped(linear)
    handle.remove()
    assert unwrapped(linear)
    linear.forward = lambda x: x
    assert not unwrapped(linear)
    del linear.forward
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(_Wrapped))
    assert not unwrapped(linear)
