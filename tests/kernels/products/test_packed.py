"""Packed weights against dense float64 products: packing, forward, dX, dW, bias, the dense gradient on demand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.kernels.blocks.layout import layout_from_mask, layout_of, pack, packable, repack, unpack
from modelzoo.kernels.products import batched, choose, gathered, masked, native, scattered
from modelzoo.kernels.products.packed import linear, probe

BLOCKS = [(1, 1), (2, 3), (32, 1), (32, 2), (16, 16), (32, 32), (64, 64)]


def live_blocks(rows: int, cols: int, density: float, seed: int = 0) -> torch.Tensor:
    """Random block mask; 0 and 1 give none and all."""
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < density


@given(st.sampled_from(BLOCKS), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_pack_is_exact_and_unpack_takes_it_back(block, rows, cols, density, seed):
    live = live_blocks(rows, cols, density, seed)
    layout = layout_of(live, block)
    mask = live.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    weight = torch.randn(mask.shape)
    values = pack(weight, layout)
    assert values.shape == (int(live.sum()), *block) and values.is_contiguous()
    assert torch.equal(unpack(values, layout), torch.where(mask, weight, 0.0))
    assert torch.equal(pack(unpack(values, layout, fill=float("nan")), layout), values)
    assert torch.equal(layout.mask(), mask) and torch.equal(layout.block_mask(), live)
    other = layout_of(live_blocks(rows, cols, 1 - density, seed + 1), block)
    assert torch.equal(repack(values, layout, other), pack(unpack(values, layout), other))
    order = torch.randperm(mask.shape[1], generator=torch.Generator().manual_seed(seed))
    ordered = layout_of(live, block, order)
    assert torch.equal(repack(values, layout, ordered), pack(unpack(values, layout), ordered))
    assert torch.equal(
        repack(pack(weight, ordered), ordered, layout_of(live, block, order.clone())), pack(weight, ordered)
    )
    assert layout.density == pytest.approx(mask.float().mean().item())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_pointers_and_the_transpose_permutation(rows, cols, density, seed):
    live = live_blocks(rows, cols, density, seed)
    layout = layout_of(live, (32, 32))
    csr, csc = live.float().to_sparse_csr(), live.float().to_sparse_csc()
    assert torch.equal(layout.row_ptr.long(), csr.crow_indices()) and torch.equal(layout.cols.long(), csr.col_indices())
    assert torch.equal(layout.col_ptr.long(), csc.ccol_indices())
    assert torch.equal(layout.col_rows.long(), csc.row_indices())
    assert torch.equal(layout.rows[layout.by_column.long()], layout.col_rows)


def test_a_mask_must_follow_its_blocks():
    mask = torch.ones(64, 64, dtype=torch.bool)
    assert layout_from_mask(mask, (32, 32)).nnz == 4
    mask[3, 5] = False
    with pytest.raises(ValueError, match="not constant"):
        layout_from_mask(mask, (32, 32))
    with pytest.raises(ValueError, match="divide"):
        layout_from_mask(mask, (48, 32))
    assert packable((64, 96), (32, 32)) and not packable((64, 97), (32, 32)) and not packable((65, 96), (32, 32))


@pytest.mark.parametrize("kernel", [gathered, masked], ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_float64_products_equal_dense_ones(monkeypatch, kernel, block, density):
    monkeypatch.setattr("modelzoo.kernels.products.packed.choose_kernel", lambda *_: kernel)
    layout = layout_of(live_blocks(3, 4, density), block)
    out, inputs = layout.shape
    torch.manual_seed(1)
    x = torch.randn(2, 7, inputs, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out, inputs, dtype=torch.float64)
    bias = torch.randn(out, dtype=torch.float64, requires_grad=True)
    values = pack(weight, layout).requires_grad_()
    dense = unpack(values.detach(), layout).requires_grad_()
    dy = torch.randn(2, 7, out, dtype=torch.float64)
    y, reference = linear(x, values, layout, bias), F.linear(x, dense, bias)
    torch.testing.assert_close(y, reference)
    got = torch.autograd.grad(y, (x, values, bias), dy)
    want = torch.autograd.grad(reference, (x, dense, bias), dy)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], pack(want[1], layout))
    torch.testing.assert_close(got[2], want[2])


@pytest.mark.parametrize("kernel", [gathered, masked, batched], ids=lambda m: m.__name__.split(".")[-1])
def test_gradcheck(monkeypatch, kernel):
    monkeypatch.setattr("modelzoo.kernels.products.packed.choose_kernel", lambda *_: kernel)
    layout = layout_of(torch.tensor([[True, False, True], [False, True, True]]), (4, 2))
    torch.manual_seed(0)
    x, values, bias = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in [(3, 6), (layout.nnz, 4, 2), (8,)]
    )
    assert torch.autograd.gradcheck(lambda *a: linear(a[0], a[1], layout, a[2]), (x, values, bias))


def test_the_probe_receives_the_dense_gradient_and_adds_up():
    layout = layout_of(live_blocks(3, 4, 0.4), (32, 32))
    values = torch.randn(layout.nnz, 32, 32, requires_grad=True)
    sought = probe(layout)
    total, packed_total = torch.zeros(layout.shape), torch.zeros_like(values)
    for _ in range(2):
        x, dy = torch.randn(9, layout.shape[1]), torch.randn(9, layout.shape[0])
        linear(x, values, layout, probe=sought).backward(dy)
        total += dy.t() @ x
    torch.testing.assert_close(sought.grad, total)
    torch.testing.assert_close(values.grad, pack(total, layout))
    assert sought.untyped_storage().nbytes() == 4 and packed_total.shape == values.grad.shape


def test_autocast_runs_in_bfloat16_with_float32_masters():
    layout = layout_of(live_blocks(3, 4, 0.4), (32, 32))
    values = torch.randn(layout.nnz, 32, 32, requires_grad=True)
    bias = torch.randn(layout.shape[0], requires_grad=True)
    x = torch.randn(5, layout.shape[1], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x, values, layout, bias)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert values.grad.dtype == bias.grad.dtype == x.grad.dtype == torch.float32
    reference = F.linear(x.double(), unpack(values, layout).double(), bias.double())
    assert (y.double() - reference).abs().max() < 0.02 * reference.abs().max()


@pytest.mark.parametrize("block", [(24, 1), (8, 2), (16, 16)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_even_block_rows_as_one_batched_product(block, dtype, tolerance):
    torch.manual_seed(3)
    live = torch.zeros(3, 10, dtype=torch.bool).scatter_(1, torch.rand(3, 10).topk(4).indices, True)
    layout = layout_of(live, block)
    assert layout.even and not layout_of(live_blocks(3, 10, 0.5), block).even
    values = torch.randn(layout.nnz, *block)
    x, dy = torch.randn(9, layout.shape[1], dtype=dtype), torch.randn(9, layout.shape[0], dtype=dtype)
    bias = torch.randn(layout.shape[0])
    dense = unpack(values.to(dtype).double(), layout)
    pairs = [
        (batched.forward(x, values, layout, bias), x.double() @ dense.t() + bias.to(dtype)),
        (batched.backward_x(dy, values, layout), dy.double() @ dense),
        (batched.backward_w(dy, x, layout), pack(dy.double().t() @ x.double(), layout)),
    ]
    for got, want in pairs:
        assert got.shape == want.shape and got.dtype == dtype and got.is_contiguous()
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("kernel", [gathered, masked, batched], ids=lambda m: m.NAME)
def test_no_tokens_are_no_fault(kernel):
    layout = layout_of(torch.tensor([[True, False, True]] * 2), (64, 1))
    values, x, dy = torch.randn(4, 64, 1), torch.randn(0, 3), torch.randn(0, 128)
    assert kernel.forward(x, values, layout, torch.randn(128)).shape == dy.shape
    assert kernel.backward_x(dy, values, layout).shape == x.shape
    assert torch.equal(kernel.backward_w(dy, x, layout), torch.zeros(4, 64, 1))


def test_shared_inputs_are_served_by_batched_products():
    live = torch.zeros(4, 30, dtype=torch.bool)
    live[:, ::4] = True
    assert choose.choose_kernel(layout_of(live, (48, 1)), torch.device("cpu"), torch.float64) is batched
    live[0] = True
    assert choose.choose_kernel(layout_of(live, (48, 1)), torch.device("cpu"), torch.float64) is gathered


def test_no_gain_is_claimed_for_dense_products_behind_a_mask():
    layout = layout_of(live_blocks(3, 4, 0.4), (32, 32))
    f32 = torch.float32
    assert choose.find_densest(layout, masked, f32) == choose.find_densest(layout, scattered, torch.bfloat16) == 0.0
    single = layout_of(live_blocks(3, 4, 0.4), (1, 1))
    assert 0 < choose.find_densest(single, native, f32) < choose.find_densest(layout, native, f32) < 1
    permuted = layout_of(layout.block_mask(), layout.block, torch.arange(layout.shape[1]).flip(0))
    assert 0 < choose.find_densest(permuted, native, f32) < choose.find_densest(layout, native, f32)  # it gathers, too
    assert choose.find_densest(permuted, masked, f32) == 0.0


def test_float64_never_meets_a_compiled_kernel():
    layout = layout_of(live_blocks(3, 4, 0.4), (32, 32))
    assert choose.choose_kernel(layout, torch.device("cpu"), torch.float64) in (gathered, masked, batched)


def test_compiled_by_torch_it_stays_one_graph_with_the_same_gradients():
    layout = layout_of(live_blocks(3, 4, 0.4), (32, 32))
    torch.manual_seed(0)
    x, values, bias = torch.randn(2, 5, layout.shape[1]), torch.randn(layout.nnz, 32, 32), torch.randn(layout.shape[0])
    sought = probe(layout)

    def f(x, values, bias, sought):
        return torch.nn.functional.gelu(linear(x * 2, values, layout, bias, sought)).square().sum()

    leaves = [t.requires_grad_() for t in (x, values, bias, sought)]
    want = torch.autograd.grad(f(*leaves), leaves)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    frozen = [x.detach().requires_grad_(), values.detach(), bias.detach(), None]  # only x needs a gradient
    torch.testing.assert_close(torch.autograd.grad(compiled(*frozen), frozen[0])[0], want[0])


def test_the_operators_keep_torchs_rules():
    layout = layout_of(live_blocks(2, 3, 0.5), (4, 2))
    x, values = torch.randn(5, 6, requires_grad=True), torch.randn(layout.nnz, 4, 2, requires_grad=True)
    arguments = x, values, None, None, *layout.parts, 4, 2, False
    torch.library.opcheck(torch.ops.mediswift.packed_linear.default, arguments)
