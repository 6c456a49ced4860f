"""The Triton kernels' arithmetic against float64, by Triton's interpreter: no GPU needed, but the package is.

The interpreter computes in NumPy, which has no bfloat16 (its products are wrong): float16 stands for narrow dtypes.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]

HOLD = """
import torch
from modelzoo.kernels.triton import blocks as kernel
from modelzoo.kernels.blocks.tiling import arrange
from modelzoo.kernels.blocks.layout import layout_of, pack, unpack

torch.manual_seed(0)
for block in [(16, 16), (32, 32), (64, 64), (128, 128), (128, 16), (32, 64), (32, 1), (32, 2), (64, 3)]:
    for density, tokens in [(0.0, 5), (0.4, 1), (0.4, 97), (1.0, 64)]:
        for dtype, near in [(torch.float32, 1e-5), (torch.float16, 1e-3)]:
            layout = layout_of(torch.rand(2, 3 if block[1] > 3 else 50) < density, block)
            assert kernel.serves(layout, dtype)
            values, bias = torch.randn(layout.nnz, *block), torch.randn(layout.shape[0])
            x, dy = torch.randn(tokens, layout.shape[1]).to(dtype), torch.randn(tokens, layout.shape[0]).to(dtype)
            dense = unpack(values.to(dtype).double(), layout)
            y, dx = kernel.forward(x, values, layout, bias), kernel.backward_x(dy, values, layout)
            dvalues = kernel.backward_w(dy, x, layout)
            assert y.dtype == dx.dtype == dtype and dvalues.dtype == torch.float32
            for got, want in [
                (y, x.double() @ dense.t() + bias),
                (dx, dy.double() @ dense),
                (dvalues, pack(dy.double().t() @ x.double(), layout)),
            ]:
                if want.numel():
                    scale = want.abs() + want.abs().mean() + 1e-30
                    assert ((got.double() - want).abs() / scale).max() < near, (block, density, tokens, dtype)

from modelzoo.kernels.triton import tiles as tiles
from modelzoo.kernels.triton.softmax import cross_entropy_

def hold_tiles(block, density, tokens, tma, permuted=False):
    dtype, live = torch.float16, torch.rand(2, 3) < density
    layout = layout_of(live, block, torch.randperm(3 * block[1]) if permuted else None)
    tiles._fetches = lambda x: tma  # by the copy engine's descriptors, as from Hopper on
    assert tiles.serves(layout, dtype)
    values, bias = torch.randn(layout.nnz, *block), torch.randn(layout.shape[0])
    x, dy = torch.randn(tokens, layout.shape[1]).to(dtype), torch.randn(tokens, layout.shape[0]).to(dtype)
    dense, rows, here = unpack(values.to(dtype).double(), layout), arrange(x, layout.order), layout.arranged
    for got, want in [
        (tiles.forward(rows, values, here, bias), x.double() @ dense.t() + bias),
        (arrange(tiles.backward_x(dy, values, here), layout.inverse), dy.double() @ dense),
        (tiles.backward_w(dy, rows, here), pack(dy.double().t() @ x.double(), layout)),
    ]:
        assert got.shape == want.shape
        if want.numel():
            scale = want.abs() + want.abs().mean() + 1e-30
            assert ((got.double() - want).abs() / scale).max() < 2e-3, (block, density, tokens, tma, permuted)

for block in [(32, 32), (64, 64), (128, 128), (64, 128), (128, 32)]:
    for density, tokens in [(0.0, 5), (0.4, 1), (0.4, 150), (1.0, 64)]:
        hold_tiles(block, density, tokens, False)
    hold_tiles(block, 0.6, 150, True)
hold_tiles((32, 64), 0.5, 97, False, True)
hold_tiles((32, 32), 0.5, 97, True, True)
hold_tiles((32, 32), 0.5, 2100, False)  # parts of dW's sum
hold_tiles((32, 32), 0.5, 2100, True)

from modelzoo.kernels.triton import shared

for rows, groups, inputs, live in [(160, 2, 50, 13), (144, 4, 600, 16), (256, 1, 20, 20), (130, 5, 30, 1)]:
    at = torch.rand(groups, inputs).topk(live, 1).indices
    layout = layout_of(torch.zeros(groups, inputs, dtype=torch.bool).scatter_(1, at, True), (rows, 1))
    for tokens in (0, 1, 97):
        for dtype, near in [(torch.float32, 1e-5), (torch.float16, 2e-3)]:
            assert shared.serves(layout, dtype)
            values, bias = torch.randn(layout.nnz, rows, 1), torch.randn(layout.shape[0]) if tokens > 1 else None
            x, dy = torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, layout.shape[0]).to(dtype)
            dense, added = unpack(values.to(dtype).double(), layout), 0 if bias is None else bias.to(dtype)
            for got, want in [
                (shared.forward(x, values, layout, bias), x.double() @ dense.t() + added),
                (shared.backward_x(dy, values, layout), dy.double() @ dense),
                (shared.backward_w(dy, x, layout), pack(dy.double().t() @ x.double(), layout)),
            ]:
                assert got.shape == want.shape and got.dtype == dtype
                if want.numel():
                    scale = want.abs() + want.square().mean().sqrt() + 1e-30
                    assert ((got.double() - want).abs() / scale).max() < near, (rows, groups, live, tokens, dtype)

for n, vocab, fill in [(5, 100, 28), (3, 9000, 0), (2, 20000, 32)]:
    wide, labels, losses = torch.randn(n, vocab + fill) * 3, torch.randint(vocab, (n,)), torch.empty(n)
    wide[:, vocab:] = 0
    log_p = torch.log_softmax(wide[:, :vocab].double(), -1)
    want = log_p.exp().scatter_add(1, labels[:, None], torch.full((n, 1), -1.0).double())
    cross_entropy_(wide[:, :vocab], labels, losses, True)
    assert (losses + log_p.gather(1, labels[:, None])[:, 0]).abs().max() < 1e-5
    assert (wide[:, :vocab] - want).abs().max() < 1e-6 and (wide[:, vocab:] == 0).all()
for bad in (float("nan"), float("inf")):
    logits, losses = torch.randn(2, 9000), torch.empty(2)
    logits[0, 5] = bad
    cross_entropy_(logits, torch.tensor([1, 2]), losses, True)
    assert not losses[0].isfinite() and losses[1].isfinite()
print("held")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it comes with torch for CUDA)")
def test_products_equal_float64():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, env=env)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not know this NumPy")
    assert done.stdout == "held\n", done.stderr


SHARED = {75: 64 << 10, 80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # bytes a program may have, by compute capability


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it comes with torch for CUDA)")
@pytest.mark.parametrize("capability,dtype", [(75, "fp32"), (75, "fp16"), (80, "bf16"), (89, "bf16"), (90, "bf16")])
def test_the_largest_tiles_fit_every_generation(capability, dtype):
    """Compiled to machine code, for which no GPU is needed: what does not fit would fail at the first product."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from modelzoo.kernels.triton import blocks, shared, tiles

    side, found = 128, {}
    floats, fetches = "*" + dtype, capability >= 90
    tile = lambda *shape: f"tensordesc<{dtype}{list(shape)}>" if fetches else floats

    def hold(name, kernel, constants, kinds, options):
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}
        aligned = [n for n in names if n not in constants and not signature[n].startswith("tensordesc")]
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
        source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, attributes)
        found[name] = compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

    indices = dict.fromkeys(
        ("row_ptr", "cols", "rows", "col_ptr", "col_rows", "by_column", "ptr", "other", "order"), "*i32"
    )
    kinds = {**indices, **dict.fromkeys(("x", "picked", "parts", "dx"), floats)}
    for name, kernel, more in (("pick", shared._pick, {"ONE": True}), ("sum", shared._sum, {})):
        tile_of = shared.PICKED if kernel is shared._pick else shared.SUMMED
        hold(name, kernel, {"T": tile_of["T"], "K": tile_of["K"], **more}, kinds, {"num_warps": tile_of["num_warps"]})
    if dtype == "fp32":
        kinds = {**indices, **dict.fromkeys(("x", "y", "dy", "dx", "values", "bias", "dvalues"), "*fp32")}
        sizes = {"R": side, "C": side, "T": blocks.TOKENS}
        hold("forward", blocks._forward, {**sizes, "K": blocks.COLUMNS, "BIAS": True}, kinds, {})
        hold("dX", blocks._backward_x, {**sizes, "K": blocks.ROWS}, kinds, {})
        hold("dW", blocks._backward_w, {**sizes, "K": blocks.COLUMNS}, kinds, {})
    else:
        t, k = tiles.PRODUCT["T"], tiles.PRODUCT["K"]
        options = {name: tiles.PRODUCT[name] for name in ("num_warps", "num_stages")}
        for transposed in (False, True):
            kinds = {**indices, "a": tile(t, k), "values": tile(*((k, side) if transposed else (side, k)))}
            kinds |= {"bias": "*fp32", "out": floats}
            sizes = {"WIDTH": side, "DEPTH": side, "T": t, "K": k, "TRANSPOSED": transposed, "BIAS": True}
            hold(f"product, {transposed}", tiles._product, {**sizes, "TMA": fetches}, kinds, options)
        t = tiles.GRADIENT["T"]
        kinds = {**indices, "dy": tile(t, side), "x": tile(t, side), "dvalues": "*fp32"}
        options = {name: tiles.GRADIENT[name] for name in ("num_warps", "num_stages")}
        hold("dW", tiles._gradient, {"R": side, "C": side, "T": t, "TMA": fetches}, kinds, options)
    assert all(size <= SHARED[capability] for size in found.values()), found
