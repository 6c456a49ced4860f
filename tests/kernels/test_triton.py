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
print("held")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it comes with torch for CUDA)")
def test_products_equal_float64():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, env=env)
    assert done.stdout == "held\n", done.stderr
