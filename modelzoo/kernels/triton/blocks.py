"""The products of a packed weight on GPUs, in Triton; imported only where Triton is.

One program makes one tile of the result and walks over the live blocks that it needs. Blocks are R = 16, 32, 64 or 128
high and of any width in forward and dW, whose tiles gather live columns. dX of blocks narrower than 16 has no tile to
fill, and takes the dense product. Sums are float32, without atomics: equal bits from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout, unpack

NAME = "Triton"
TOKENS = 64  # of a tile
COLUMNS = 32  # live columns at a time
ROWS = 64  # of a block at a time in dX; all 128 take more memory in float32 than an older GPU's processor has


def serves(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this pattern and dtype."""
    return layout.block[0] in (16, 32, 64, 128) and dtype in (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _live(cols, k, end, C: tl.constexpr):
    """Where live columns `k` are in the input: (block, column within it, input)."""
    block, c = k // C, k % C
    return block, c, tl.load(cols + block, mask=k < end, other=0) * C + c


@triton.jit
def _forward(
    x, values, bias, y, row_ptr, cols, n, out, inputs,
    R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    t, row = tl.program_id(0) * T + tl.arange(0, T), tl.program_id(1)
    r = tl.arange(0, R)
    begin, end = tl.load(row_ptr + row) * C, tl.load(row_ptr + row + 1) * C
    total = tl.zeros((T, R), tl.float32)
    for first in range(begin, end, K):
        k = first + tl.arange(0, K)
        block, c, at = _live(cols, k, end, C)
        a = tl.load(x + t[:, None].to(tl.int64) * inputs + at[None, :], mask=(t < n)[:, None] & (k < end)[None, :])
        w = tl.load(values + (block[:, None].to(tl.int64) * R + r[None, :]) * C + c[:, None], mask=(k < end)[:, None])
        a, w = tl.where((k < end)[None, :], a, 0.0), tl.where((k < end)[:, None], w, 0.0)
        total += tl.dot(a, w.to(a.dtype), input_precision="ieee")
    if BIAS:
        total += tl.load(bias + row * R + r)[None, :]
    tl.store(y + t[:, None].to(tl.int64) * out + row * R + r[None, :], total.to(y.dtype.element_ty), (t < n)[:, None])


@triton.jit
def _backward_x(
    dy, values, dx, col_ptr, col_rows, by_column, n, out, inputs,
    R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    t, column = tl.program_id(0) * T + tl.arange(0, T), tl.program_id(1)
    k, c = tl.arange(0, K), tl.arange(0, C)
    total = tl.zeros((T, C), tl.float32)
    parts: tl.constexpr = R // K
    for i in range(tl.load(col_ptr + column) * parts, tl.load(col_ptr + column + 1) * parts):
        j, r = i // parts, (i % parts) * K + k
        block = tl.load(by_column + j)
        at = tl.load(col_rows + j) * R + r
        a = tl.load(dy + t[:, None].to(tl.int64) * out + at[None, :], mask=(t < n)[:, None], other=0.0)
        w = tl.load(values + (block.to(tl.int64) * R + r[:, None]) * C + c[None, :])
        total += tl.dot(a, w.to(a.dtype), input_precision="ieee")
    to = dx + t[:, None].to(tl.int64) * inputs + column * C + c[None, :]
    tl.store(to, total.to(dx.dtype.element_ty), (t < n)[:, None])


@triton.jit
def _backward_w(
    dy, x, dvalues, row_ptr, cols, n, out, inputs,
    R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    begin, end = tl.load(row_ptr + row) * C + tl.program_id(0) * K, tl.load(row_ptr + row + 1) * C
    if begin >= end:  # a row with fewer live columns than others may have
        return
    r, k = tl.arange(0, R), begin + tl.arange(0, K)
    block, c, at = _live(cols, k, end, C)
    total = tl.zeros((R, K), tl.float32)
    for first in range(0, n, T):
        t = first + tl.arange(0, T)
        g = tl.load(dy + t[None, :].to(tl.int64) * out + row * R + r[:, None], mask=(t < n)[None, :], other=0.0)
        a = tl.load(x + t[:, None].to(tl.int64) * inputs + at[None, :], mask=(t < n)[:, None], other=0.0)
        total += tl.dot(g, a, input_precision="ieee")
    tl.store(dvalues + (block[None, :].to(tl.int64) * R + r[:, None]) * C + c[None, :], total, (k < end)[None, :])


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype; bias is added before rounding."""
    (out, inputs), (r, c), n = layout.shape, layout.block, x.shape[0]
    y = x.new_empty(n, out)
    grid = (triton.cdiv(n, TOKENS), out // r)
    _forward[grid](
        x.contiguous(), values, values if bias is None else bias, y, layout.row_ptr, layout.cols, n, out, inputs,
        R=r, C=c, T=TOKENS, K=COLUMNS, BIAS=bias is not None,
    )  # fmt: skip
    return y


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    (out, inputs), (r, c), n = layout.shape, layout.block, dy.shape[0]
    if c not in (16, 32, 64, 128):
        return dy @ unpack(values.to(dy.dtype), layout)
    dx = dy.new_empty(n, inputs)
    _backward_x[triton.cdiv(n, TOKENS), inputs // c](
        dy.contiguous(),
        values,
        dx,
        layout.col_ptr,
        layout.col_rows,
        layout.by_column,
        n,
        out,
        inputs,
        R=r,
        C=c,
        T=TOKENS,
        K=min(r, ROWS),
    )
    return dx


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] float32."""
    (out, inputs), (r, c), n = layout.shape, layout.block, x.shape[0]
    dvalues = torch.empty(layout.nnz, r, c, device=x.device)
    most = min(layout.nnz * c, inputs)  # live columns of a row; how many they are, the host does not know
    if most:
        _backward_w[triton.cdiv(most, COLUMNS), out // r](
            dy.contiguous(), x.contiguous(), dvalues, layout.row_ptr, layout.cols, n, out, inputs,
            R=r, C=c, T=TOKENS, K=COLUMNS,
        )  # fmt: skip
    return dvalues
