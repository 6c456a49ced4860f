"""Products of few rows: held to float64, and the same bits for a row whatever the others are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelzoo.kernels import few, packed
from tests.support import local

pytestmark = pytest.mark.skipif(few.compiled() is None, reason="no compiled kernels here")
ROWS = [1, 2, 3, 4, 5, 7, 8, 13, 16]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(multiply, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """`multiply(x)` against float64, and each row alone against it among others."""
    for n in ROWS:
        x = drawn(n, weight.shape[1])
        y = multiply(x)
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
        for i in range(n):
            assert torch.equal(multiply(x[i : i + 1])[0], y[i])


@torch.no_grad()
@pytest.mark.parametrize("out,into", [(64, 32), (37, 16), (5, 7), (1, 100), (130, 257), (300, 96)])
@pytest.mark.parametrize("biased", [False, True])
def test_dense(out, into, biased):
    linear = nn.Linear(into, out, bias=biased)
    linear.weight.copy_(drawn(out, into))
    kept = nn.Sequential(linear)
    few.use_few(kept)
    assert type(kept[0]) is few.FewRowsLinear and kept[0].weight is linear.weight
    check(kept, linear.weight, linear.bias)


@torch.no_grad()
@pytest.mark.parametrize("block", [(1, 1), (16, 1), (32, 1), (32, 2), (32, 4), (16, 8), (32, 16), (32, 32), (64, 32)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_packed(block, density):
    live = torch.rand(128 // block[0], 96 // block[1], generator=torch.Generator().manual_seed(3)) < density
    layout = packed.layout_of(live, block)
    weight = torch.where(layout.mask(), drawn(128, 96), torch.zeros(()))
    values, bias = packed.pack(weight, layout), drawn(128)
    assert few.serves(block)
    for b in (bias, None):
        found = few.multiply_packed(drawn(3, 96), values, layout, b)
        assert found is not None and torch.equal(packed.linear(drawn(3, 96), values, layout, b), found)
        check(lambda x, b=b: few.multiply_packed(x, values, layout, b), weight, b)


def test_what_they_do_not_take_goes_the_other_way():
    kernels = few.compiled()
    assert kernels is not None
    linear = few.FewRowsLinear(nn.Linear(32, 64), kernels)
    x = drawn(17, 32)
    with torch.no_grad():
        assert not few.takes(x) and few.takes(x[:16]) and not few.takes(x[:1].double()) and not few.takes(x[:0])
        with local(emulate=True).autocast():
            assert not few.takes(x[:1])
        assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    linear(x[:2]).sum().backward()
    assert linear.weight.grad is not None and not few.serves((3, 3)) and not few.serves((32, 3))
