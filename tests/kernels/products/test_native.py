"""The compiled products against float64: every pattern, sparsity, token count and thread count; bits; refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.kernels import processor
from modelzoo.kernels.blocks.layout import layout_of, pack, unpack
from modelzoo.kernels.compiled import build, rows
from modelzoo.kernels.products import choose, gathered, masked, native, scattered
from modelzoo.kernels.products.packed import linear

BLOCKS = [(1, 1), (32, 1), (32, 2), (32, 3), (64, 1), (32, 32), (64, 64), (32, 64), (64, 32), (96, 16)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-3}  # of |want| + mean |want|: some roundings; half a bfloat16 step


@pytest.fixture(autouse=True, scope="module")
def compiled():
    try:
        build.library("block")
    except build.Unavailable as reason:
        if "failed" in str(reason):  # a compiler that is there must take our sources
            raise
        pytest.skip(f"no compiled kernels: {reason}")


def case(block, rows, cols, density, tokens, dtype, seed=0):
    """A layout, its values, activations, gradients and bias; inputs are a multiple of 32, outputs too."""
    draw = torch.Generator().manual_seed(seed)
    out, inputs = rows * max(block[0], 32), math.lcm(block[1], 32) * cols
    live = torch.rand(out // block[0], inputs // block[1], generator=draw) < density
    layout = layout_of(live, block)
    values = torch.randn(layout.nnz, *block, generator=draw)
    x = torch.randn(tokens, inputs, generator=draw).to(dtype)
    dy = torch.randn(tokens, out, generator=draw).to(dtype)
    return layout, values, x, dy, torch.randn(out, generator=draw)


def uneven(cols: int) -> torch.Tensor:
    """[2, cols] live blocks, one of them dead: no batched product takes these."""
    live = torch.ones(2, cols, dtype=torch.bool)
    live[0, 0] = False
    return live


def close(got, want, tolerance):
    if want.numel():
        error = (got.double() - want).abs() / (want.abs() + want.abs().mean() + 1e-30)
        assert error.max() < tolerance


def hold_to_float64(block, rows, cols, density, tokens, dtype, seed=0):
    layout, values, x, dy, bias = case(block, rows, cols, density, tokens, dtype, seed)
    assert native.serves(layout, dtype)
    rounded = (
        values.to(dtype) if native.library("block").has_bf16() else values
    )  # masters meet activations in their dtype
    dense = unpack(rounded.double(), layout)
    y = native.forward(x, values, layout, bias)
    dx, dvalues = native.backward_x(dy, values, layout), native.backward_w(dy, x, layout)
    assert y.dtype == dx.dtype == dtype and dvalues.dtype == torch.float32
    close(y, x.double() @ dense.t() + bias, TOLERANCE[dtype])
    close(dx, dy.double() @ dense, TOLERANCE[dtype])
    close(dvalues, pack(dy.double().t() @ x.double(), layout), TOLERANCE[torch.float32])
    dead_inputs, dead_outputs = ~layout.mask().any(0), ~layout.mask().any(1)
    assert not dx[:, dead_inputs].any() and torch.equal(
        y[:, dead_outputs], bias.to(dtype)[dead_outputs].expand(tokens, -1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 97, 1000])
def test_products_equal_float64(block, tokens, dtype):
    for density in (0.0, 0.25, 1.0):
        hold_to_float64(block, 3, 2, density, tokens, dtype)


@given(
    st.sampled_from(BLOCKS), st.integers(1, 4), st.integers(1, 3), st.floats(0, 1), st.integers(0, 210),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape_and_sparsity(block, rows, cols, density, tokens, dtype, seed):
    hold_to_float64(block, rows, cols, density, tokens, dtype, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("block", [(1, 1), (32, 1), (32, 2), (32, 32), (64, 64)], ids=str)
def test_bits_are_equal_from_run_to_run_and_for_any_number_of_threads(block, dtype):
    layout, values, x, dy, bias = case(block, 4, 5, 0.4, 333, dtype)

    def products(threads):
        torch.set_num_threads(threads)
        return (
            native.forward(x, values, layout, bias),
            native.backward_x(dy, values, layout),
            native.backward_w(dy, x, layout),
        )

    try:
        first = products(1)
        for threads in (1, 2, 2, 5):
            assert all(torch.equal(a, b) for a, b in zip(products(threads), first))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("block", [(1, 1), (32, 1), (32, 32)], ids=str)
def test_a_token_changes_nothing_but_its_own_row(block):
    layout, values, x, dy, _ = case(block, 3, 2, 0.5, 100, torch.bfloat16)
    y, dx = native.forward(x, values, layout, None), native.backward_x(dy, values, layout)
    x[41], dy[41] = float("nan"), float("nan")
    y2, dx2 = native.forward(x, values, layout, None), native.backward_x(dy, values, layout)
    others = torch.arange(100) != 41
    assert torch.equal(y[others], y2[others]) and torch.equal(dx[others], dx2[others])
    live = layout.mask()
    assert y2[41, live.any(1)].isnan().all() and not y2[41, ~live.any(1)].isnan().any()
    assert dx2[41, live.any(0)].isnan().all()


def test_infinities_and_nan_in_masters_stay_what_they_are():
    layout, values, x, *_ = case((32, 2), 2, 1, 1.0, 5, torch.bfloat16)
    x.fill_(1.0)
    values.zero_()
    values[0, 0, 0], values[1, 3, 1] = float("nan"), float("inf")
    y = native.forward(x, values, layout, None)
    assert y[:, 0].isnan().all() and torch.isinf(y[:, 3]).all() and y.isnan().sum() == 5 and torch.isinf(y).sum() == 5


def test_linear_takes_the_compiled_kernel_and_any_strides():
    layout, values, x, dy, bias = case((32, 32), 3, 4, 0.4, 60, torch.float32)
    assert choose.choose_kernel(layout, torch.device("cpu"), torch.float32) is native
    wide = torch.zeros(3, 20, 2 * layout.shape[1])
    wide[..., ::2] = x.view(3, 20, -1)
    strided = wide[..., ::2].requires_grad_()
    values.requires_grad_()
    y = linear(strided, values, layout, bias)
    y.transpose(0, 1).backward(dy.view(3, 20, -1).transpose(0, 1))
    dense = unpack(values.detach(), layout)
    torch.testing.assert_close(y, (x @ dense.t() + bias).view(3, 20, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(strided.grad, (dy @ dense).view(3, 20, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values.grad, pack(dy.t() @ x, layout), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_single_weights_are_scattered_and_gathered_to_the_bit(density):
    """Held to torch's own way through the dense form; here on any processor, chosen only where AMX is."""
    layout, values, x, dy, bias = case((1, 1), 3, 2, density, 70, torch.bfloat16)
    dense = unpack(values.bfloat16(), layout)
    if not build.library("single").has_bf16():
        pytest.skip("no bfloat16 in these kernels")
    assert torch.equal(scattered.forward(x, values, layout, bias), F.linear(x, dense, bias.bfloat16()))
    assert torch.equal(scattered.backward_x(dy, values, layout), dy @ dense)
    assert torch.equal(scattered.backward_w(dy, x, layout), pack(dy.t() @ x, layout).float())
    chosen = choose.choose_kernel(layout, torch.device("cpu"), torch.bfloat16)
    assert chosen is (scattered if build.library("single").has_tiles() else native)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("n,dim", [(1, 32), (7, 96), (300, 1000), (64, 3072)])
def test_a_bias_gradient_is_the_sum_over_tokens(n, dim, dtype):
    dy = torch.randn(n, dim, generator=torch.Generator().manual_seed(n)).to(dtype)
    error = (rows.sum_rows(dy) - dy.double().sum(0)).abs()
    assert (error <= n * torch.finfo(torch.float32).eps * dy.double().abs().sum(0) + 1e-30).all()


def test_what_the_kernels_do_not_know_goes_to_torch():
    cpu = torch.device("cpu")
    odd, low, tall = (layout_of(uneven(33), (32, 1)), layout_of(uneven(4), (8, 8)), layout_of(uneven(4), (32, 32)))
    assert (
        choose.choose_kernel(odd, cpu, torch.float32) is gathered
        and choose.choose_kernel(low, cpu, torch.float32) is masked
    )
    assert choose.choose_kernel(tall, cpu, torch.float64) is gathered
    assert "multiples of 32" in choose.describe_choice(odd, cpu, torch.float32) and "float64" in choose.describe_choice(
        tall, cpu, torch.float64
    )


def test_the_switch_forces_torch(monkeypatch):
    layout = layout_of(uneven(4), (32, 32))
    monkeypatch.setenv(processor.KERNELS, "torch")
    assert choose.choose_kernel(layout, torch.device("cpu"), torch.float32) is gathered
    assert f"{processor.KERNELS}=torch" in choose.describe_choice(layout, torch.device("cpu"), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", processor.classes_up_to(processor.native_class())[:-1])
def test_weaker_classes_get_the_same_products(name, monkeypatch):
    monkeypatch.setenv(processor.SWITCH, name)
    assert native.library("block").has_bf16() == (name == "avx512_bf16")
    for block in [(1, 1), (32, 1), (32, 2), (32, 32), (64, 64)]:
        for dtype in (torch.float32, torch.bfloat16):
            hold_to_float64(block, 3, 2, 0.4, 97, dtype)
