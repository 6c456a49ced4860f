"""Products of few rows: held to float64, and the same bits for a row whatever the others are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelzoo.kernels import few
from modelzoo.kernels.blocks.layout import layout_of, pack
from modelzoo.kernels.products import packed
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
@pytest.mark.parametrize("out,into", [(64, 32), (37, 16), (5, 7), (1, 100), (130, 257)])
def test_dense_bfloat16_is_widened_exactly(out, into):
    kept = nn.Sequential(nn.Linear(into, out))
    few.use_few(kept)
    kept[0].weight = nn.Parameter(drawn(out, into).bfloat16())
    check(kept, kept[0].weight, kept[0].bias)
    whole = nn.Sequential(few.FewRowsLinear(nn.Linear(into, out), few.compiled()))
    whole[0].weight, whole[0].bias = nn.Parameter(kept[0].weight.float()), kept[0].bias
    for n in (*ROWS, 17):
        assert torch.equal(kept(drawn(n, into)), whole(drawn(n, into)))


@torch.no_grad()
@pytest.mark.parametrize("block", [(1, 1), (16, 1), (32, 1), (32, 2), (32, 4), (16, 8), (32, 16), (32, 32), (64, 32)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_packed(block, density):
    live = torch.rand(128 // block[0], 96 // block[1], generator=torch.Generator().manual_seed(3)) < density
    layout = layout_of(live, block)
    weight = torch.where(layout.mask(), drawn(128, 96), torch.zeros(()))
    values, bias = pack(weight, layout), drawn(128)
    assert few.serves(block)
    for b in (bias, None):
        found = few.multiply_packed(drawn(3, 96), values, layout, b)
        assert found is not None and torch.equal(packed.linear(drawn(3, 96), values, layout, b), found)
        check(lambda x, b=b: few.multiply_packed(x, values, layout, b), weight, b)
    narrow = values.bfloat16()
    for n in ROWS:
        found, wide = (few.multiply_packed(drawn(n, 96), v, layout, bias) for v in (narrow, narrow.float()))
        assert found is not None and wide is not None and torch.equal(found, wide)


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


@torch.no_grad()
@pytest.mark.parametrize(
    "b,h,t,n,d", [(1, 2, 1, 5, 8), (3, 2, 1, 40, 16), (2, 3, 4, 9, 6), (1, 1, 16, 33, 37), (4, 2, 1, 300, 64)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_to_cached_tokens(b, h, t, n, d, masked):
    """Against float64; keys and values lie in a longer cache, as views of it."""
    q, k, v = drawn(b, t, h, d).transpose(1, 2) * 3, drawn(b, h, n + 7, d)[:, :, :n], drawn(b, h, n + 9, d)[:, :, :n]
    mask = drawn(1, h, t, n).masked_fill(torch.rand(b, 1, t, n) < 0.3, float("-inf")) if masked else None
    if mask is not None:
        mask[..., 0] = -100.0  # something is seen, if barely
    found = few.attend(q, k, v, mask, 0.3)
    scores = q.double() @ k.double().transpose(2, 3) * 0.3
    exact = torch.softmax(scores if mask is None else scores + mask, -1) @ v.double()
    assert found is not None and found.shape == (b, h, t, d)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    for i in range(b):
        alone = few.attend(q[i : i + 1], k[i : i + 1], v[i : i + 1], None if mask is None else mask[i : i + 1], 0.3)
        assert alone is not None and torch.equal(alone[0], found[i])


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_heads_that_share_keys_and_values(groups):
    """As many bits as where each head has a copy of its own."""
    q, k, v = drawn(2, 3, 6, 20).transpose(1, 2), drawn(2, groups, 40, 20)[:, :, :33], drawn(2, groups, 33, 20)
    mask = drawn(2, 6, 3, 33)
    copies = (x.repeat_interleave(6 // groups, 1) for x in (k, v))
    found, wanted = few.attend(q, k, v, mask, 0.3), few.attend(q, *copies, mask, 0.3)
    assert found is not None and wanted is not None and torch.equal(found, wanted)


@torch.no_grad()
def test_attention_hides_no_nan():
    q, k, v = drawn(1, 1, 1, 8), drawn(1, 1, 5, 8), drawn(1, 1, 5, 8)
    k[0, 0, 2, 3] = float("nan")
    found = few.attend(q, k, v, None, 0.3)
    assert found is not None and found.isnan().all()
