"""Compiled passes over rows against torch's own operators: the same bits, whatever the dtype and whoever asks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.kernels import processor
from modelzoo.kernels.compiled import rows

DTYPES = (torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.float64)


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=2), st.integers(1, 70), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_columns_are_gathered_as_torch_selects_them(dtype, leading, dim, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 100, (*leading, dim), generator=draw).to(dtype)
    order = torch.randperm(dim, generator=draw)
    assert torch.equal(rows.gather_columns(x, order), x[..., order])
    some = torch.randint(0, dim, (dim,), generator=draw)  # no permutation
    assert torch.equal(rows.gather_columns(x, some), x[..., some])
    apart = torch.stack([x, x], -1)[..., 0]  # not contiguous
    assert torch.equal(rows.gather_columns(apart, order.repeat_interleave(2)[::2]), x[..., order])


def test_columns_are_gathered_by_threads_and_without_a_compiler(monkeypatch):
    x, order = torch.randn(300, 1024).bfloat16(), torch.randperm(1024)
    assert torch.equal(rows.gather_columns(x, order), x[:, order])
    monkeypatch.setenv(processor.KERNELS, "torch")
    assert torch.equal(rows.gather_columns(x, order), x[:, order])


def test_a_gradient_finds_its_way_back_through_the_order():
    x, order = torch.randn(5, 64, requires_grad=True), torch.randperm(64)
    weight = torch.randn(5, 64)
    (rows.gather_columns(x, order) * weight).sum().backward()
    assert torch.equal(x.grad, weight[:, order.argsort()])


@pytest.mark.parametrize("place", [-1, 64, 2**40])
def test_an_order_that_leaves_its_rows_is_refused(place):
    order = torch.arange(64)
    order[7] = place
    with pytest.raises((IndexError, RuntimeError)):
        rows.gather_columns(torch.randn(3, 64), order)
