"""The Triton kernels' arithmetic against float64, by Triton's interpreter: no GPU needed, but the package is.

The interpreter computes in NumPy, which has no bfloat16 (its products are wrong): float16 stands for narrow dtypes.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

HOLD = """
import torch
from modelzoo.kernels import triton_blocks as kernel
from modelzoo.kernels.layout import layout_of, pack, unpack

torch.manual_seed(0)
for block in [(16, 16), (32, 32), (64, 64), (32, 64), (32, 1), (32, 2), (64, 3)]:
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

from modelzoo.kernels import triton_tiles as tiles
from modelzoo.kernels.triton_softmax import cross_entropy_

for block in [(32, 32), (64, 64), (128, 128), (64, 128)]:
    for density, tokens in [(0.0, 5), (0.4, 1), (0.4, 150), (1.0, 64)]:
        dtype, layout = torch.float16, layout_of(torch.rand(2, 3) < density, block)
        assert tiles.serves(layout, dtype)
        values, bias = torch.randn(layout.nnz, *block), torch.randn(layout.shape[0])
        x, dy = torch.randn(tokens, layout.shape[1]).to(dtype), torch.randn(tokens, layout.shape[0]).to(dtype)
        dense = unpack(values.to(dtype).double(), layout)
        dvalues = tiles.backward_w(dy, x, layout)
        for got, want in [
            (tiles.forward(x, values, layout, bias), x.double() @ dense.t() + bias),
            (tiles.backward_x(dy, values, layout), dy.double() @ dense),
            (dvalues, pack(dy.double().t() @ x.double(), layout)),
        ]:
            assert got.shape == want.shape
            if want.numel():
                scale = want.abs() + want.abs().mean() + 1e-30
                assert ((got.double() - want).abs() / scale).max() < 2e-3, (block, density, tokens)

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
