"""What hand-written backward passes owe to autograd: second derivatives, torch.func, halves on CUDA, torch.compile."""

from multiprocessing import get_context

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from lookupvit.model.block import LookupViTBlock
from lookupvit.model.layers import Mlp
from lookupvit.model.products.absorbed import (
    AbsorbedInfusion,
    AbsorbedScores,
    AbsorbedValues,
    absorbed_infusion,
    absorbed_scores,
    absorbed_values,
)
from lookupvit.model.products.norm_mlp import NormMlp
from lookupvit.model.products.tiled import TiledGather, TiledInfusion

B, M, H, N, d = 2, 3, 2, 4, 2
D, F = H * d, 3
PATHS = ("plain", "absorbed", "tiled")
SHAPES = {
    NormMlp: [(B, M, D), (D,), (D,), (F, D), (F,), (D, F), (D,)],
    AbsorbedScores: [(B, M * H, d), (H, d, D), (B, N, D)],
    AbsorbedValues: [(B, M * H, N), (B, N, D), (H, D, d)],
    AbsorbedInfusion: [(B, M * H, N), (B, M * H, d), (H, d, D), (D,), (B, N, D)],
    TiledGather: [(B, H, M, d), (B, H, N, d), (B, H, N, d)],
    TiledInfusion: [(B, H, M, d), (B, H, N, d), (B, H, M, 1), (B, H, M, d)],
}


@pytest.mark.parametrize("function", SHAPES, ids=lambda f: f.__name__)
def test_second_derivatives_equal_numerical_ones(function):
    torch.manual_seed(0)
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES[function]]

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        out = function.apply(*args, 1e-6) if function is NormMlp else function.apply(*args)
        out = out if isinstance(out, tuple) else (out,)
        return tuple(o for o in out if o.requires_grad)

    assert torch.autograd.gradcheck(call, args)
    assert torch.autograd.gradgradcheck(call, args)


def _block(path: str) -> tuple[LookupViTBlock, Tensor, Tensor]:
    torch.manual_seed(0)
    block = LookupViTBlock(6, 2, path=path).double()
    with torch.no_grad():
        for p in block.parameters():  # larger scores, other norms and biases than at the start
            p.add_(torch.randn_like(p) * 0.3)
    compressed, lookup = (torch.randn(2, t, 6, dtype=torch.float64) for t in (M, N))
    return block, compressed, lookup


def _loss(block: LookupViTBlock, compressed: Tensor, lookup: Tensor) -> Tensor:
    compressed, lookup, _ = block(compressed, lookup)
    return compressed.sin().sum() + lookup.cos().sum()


@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_penalty_equals_what_autograd_alone_gives(path):
    results = []
    for taken, hooks in (("plain", True), (path, False)):
        block, compressed, lookup = _block(taken)
        for layer in block.modules() if hooks else ():  # every layer is called, nothing of ours differentiates
            layer.register_forward_hook(lambda *_: None)
        inputs = [compressed.requires_grad_(), lookup.requires_grad_(), *block.parameters()]
        grads = torch.autograd.grad(_loss(block, compressed, lookup), inputs, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        results.append([penalty, *torch.autograd.grad(penalty, inputs)])
    for expected, other in zip(*results, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_torch_func_gives_the_gradient_of_each_sample(path):
    block, compressed, lookup = _block(path)
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, Tensor], compressed: Tensor, lookup: Tensor) -> Tensor:
        out = torch.func.functional_call(block, parameters, (compressed[None], lookup[None]))
        return out[0].sin().sum() + out[1].cos().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, compressed, lookup)
    for i in range(2):
        expected = torch.autograd.grad(
            _loss(block, compressed[i : i + 1], lookup[i : i + 1]), list(parameters.values())
        )
        for name, grad in zip(parameters, expected, strict=True):
            torch.testing.assert_close(each[name][i], grad, rtol=1e-9, atol=1e-9)


class _OneTypeInProducts(TorchDispatchMode):
    """Refuses matrix products of two types, as a GPU's kernels do and fake ones do not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(product in func.name() for product in ("mm", "matmul", "linear")):
            dtypes = {arg.dtype for arg in args if isinstance(arg, Tensor)}
            assert len(dtypes) == 1, f"{func.name()} of {dtypes}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS)
def test_every_type_trains_on_cuda(path, dtype):
    """With fake tensors, which have the types that a GPU's kernels return: there the norm of a half has float32 parts.

    Autograd's engine does not start for a device that is not there, so each hand-written backward pass is called as it
    stands in the graph. All of it runs in a child: where autograd has seen another device than a CPU, no process can be
    forked that trains, and other tests do so.
    """
    child = get_context("fork").Process(target=_train_on_cuda, args=(path, dtype))
    child.start()
    child.join()
    assert child.exitcode == 0  # pytest shows the child's traceback among what was printed


def _train_on_cuda(path, dtype):
    with FakeTensorMode(), _OneTypeInProducts():
        with torch.device("cuda"):
            block = LookupViTBlock(6, 2, path=path)
            compressed, lookup = (torch.empty(2, t, 6, dtype=dtype, requires_grad=True) for t in (M, N))
        for module in block.modules():  # `Module.to` cannot swap fake parameters
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(p.detach().to(dtype)))
        out = block(compressed, lookup)[:2]
        assert all(o.dtype == dtype and o.is_cuda for o in out)
        todo, called, seen = [o.grad_fn for o in out], [], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions if parent is not None]
            if not isinstance(node, BackwardCFunction):
                continue
            grads = [torch.empty(m.shape, dtype=m.dtype, device=m.device) for m in node._input_metadata]
            with torch.no_grad():
                results = node._forward_cls.backward(node, *grads)
            called.append(node._forward_cls)
            for grad, (parent, slot) in zip(results, node.next_functions, strict=False):
                if parent is not None:
                    input = parent.variable if hasattr(parent, "variable") else parent._input_metadata[slot]
                    assert grad.dtype == input.dtype and tuple(grad.shape) == tuple(input.shape)
    products = {"plain": [], "absorbed": [AbsorbedScores, AbsorbedValues, AbsorbedInfusion]}
    expected = [NormMlp, NormMlp, *products.get(path, [TiledGather, TiledInfusion])]
    assert sorted(called, key=str) == sorted(expected, key=str)


COMPILED = {
    "scores": (absorbed_scores, SHAPES[AbsorbedScores]),
    "values": (absorbed_values, SHAPES[AbsorbedValues]),
    "infusion": (absorbed_infusion, SHAPES[AbsorbedInfusion]),
    "tiled_gather": (TiledGather.apply, SHAPES[TiledGather]),
    "tiled_infusion": (TiledInfusion.apply, SHAPES[TiledInfusion]),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_gradients_equal_eager_ones(name):
    """torch 2.11 compiles a Function that works in place on its result into wrong gradients (pytorch issue 180642)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    function, shapes = COMPILED[name]

    def loss(*args: Tensor) -> Tensor:
        out = function(*args)
        return sum(o.sin().sum() for o in (out if isinstance(out, tuple) else (out,)))

    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    eager, other = (torch.autograd.grad(f(*args), args) for f in (loss, compiled))
    torch.testing.assert_close(other, eager, rtol=1e-9, atol=1e-9)


def test_frozen_layers_of_an_mlp_get_no_gradient_and_their_input_the_right_one():
    torch.manual_seed(0)
    mlp, x = Mlp(4, 3).double(), torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(mlp(x).sin().sum(), [x, mlp.fc2.bias])
    mlp.requires_grad_(False)
    mlp.fc2.bias.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad(mlp(x).sin().sum(), [x, mlp.fc2.bias]), expected)
    mlp(x).sum().backward()
    assert mlp.fc1.weight.grad is None
