"""Saved activations, peaks and floors, by hand."""

import pytest
import torch
from torch import nn

from lookupvit.bench.floors import Machine, least_bytes, measure_machine
from lookupvit.bench.memory import peak_bytes, saved_bytes

MIB = 1 << 20


def test_saved_activations_of_two_layers():
    weight = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(2, 4, requires_grad=True)

    def loss():
        h = (x @ weight).relu()  # keeps x (32 bytes) and weight (64); relu keeps its result (32)
        return (h * h).sum()  # keeps h twice: the same storage

    assert saved_bytes(loss, [weight]) == 64
    assert saved_bytes(loss, []) == 64 + 64  # a weight counts if nobody says that it is a parameter


def test_views_count_once_and_in_full():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda: (x[:2] * x[2:4]).sum(), []) == 400
    assert saved_bytes(lambda: (x[:2].clone() * x[2:4].clone()).sum(), [x]) == 16


def test_a_freed_graph_is_still_counted():
    # tensors of a first product are dropped when the second replaces it; their addresses must not hide the others
    x = torch.randn(1000, requires_grad=True)

    def loss():
        for _ in range(3):
            y = x.exp()  # keeps its result
        return y.sum()

    assert saved_bytes(loss, [x]) == 3 * 4000


def test_peak_on_a_cpu():
    def one_after_the_other():
        a = torch.empty(MIB)  # 4 MiB
        del a
        return torch.empty(2 * MIB)

    def together():
        a = torch.empty(MIB)
        return a, torch.empty(2 * MIB)

    assert peak_bytes(one_after_the_other) == 8 * MIB
    assert peak_bytes(together) == 12 * MIB


def test_floors():
    machine = Machine(flops=100.0, bandwidth=50.0)
    assert machine.floors(macs=200, bytes_=25) == (4.0, 0.5)
    assert least_bytes(nn.Linear(3, 2), torch.zeros(4, 3)) == 4 * (6 + 2 + 12)
    assert least_bytes(nn.Linear(3, 2).bfloat16()) == 2 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_machine_can_be_measured(dtype):
    machine = measure_machine(dtype, gemm_sizes=(64,), copy_bytes=1 << 16, tries=1)
    assert machine.flops > 0 and machine.bandwidth > 0
