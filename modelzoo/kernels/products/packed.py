"""y = x W^T + b where W [out, in] is stored as its live blocks alone: forward, dX and dW touch nothing else.

    layout = layout_from_mask(mask, (32, 32))              # or layout_of(live_blocks, (32, 32))
    values = torch.nn.Parameter(pack(weight, layout))      # [nnz, 32, 32] float32; unpack(values, layout) is exact
    y = linear(x, values, layout, bias)                    # values.grad is [nnz, 32, 32] float32
    y = linear(x, values, layout, bias, probe(layout))     # the probe's gradient is the dense dW, for RigL's update

A layout may have an order of the inputs in which blocks are formed (`layout_of`): weight, gradients and inputs of
`linear` are in the model's own order all the same, and inputs are gathered before the kernels' products.

`packable(shape, block)` is whether a weight can be stored so; what cannot stays masked-dense. `choose` picks the
kernel (compiled, Triton or torch) by device, dtype and pattern; all hold the same contract and differ only in time.
Under autocast activations and products have autocast's dtype, sums are float32, masters and gradients stay float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelzoo.kernels import few
from modelzoo.kernels.blocks.layout import Layout, pack
from modelzoo.kernels.blocks.tiling import arrange
from modelzoo.kernels.compiled.rows import sum_rows
from modelzoo.kernels.products.choose import choose_kernel, may_batch


def probe(layout: Layout) -> Tensor:
    """A leaf [out, in] without memory of its own; given to `linear`, its .grad is the dense gradient, float32.

    It costs the dense dW product in backward, in place of the sampled one. Calls add up in .grad as usual.
    """
    return torch.zeros((), device=layout.rows.device).expand(layout.shape).requires_grad_()


def linear(
    x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None = None, probe: Tensor | None = None
) -> Tensor:
    """x W^T + bias for a packed W.

    Args:
        x: [..., in] floats; cast to autocast's dtype where autocast is on.
        values: [nnz, R, C] live blocks in the order of `layout`, usually float32 whatever x is.
        bias: [out] or None.
        probe: from `probe(layout)` where the dense gradient of W is wanted too.

    Returns:
        [..., out] in the dtype of the (cast) x.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    if torch.compiler.is_compiling():  # opaque to the compiler, so its neighbours are still fused
        even = may_batch(layout.block, device) and layout.even  # read only there: it is compiled anew where it differs
        shape = *layout.block, even, layout.order, layout.inverse
        return _linear_op(x, values, bias, probe, *layout.parts, *shape)
    if few.takes(x) and (y := few.multiply_packed(arrange(x, layout.order), values, layout, bias)) is not None:
        return y
    return _Linear.apply(x, values, bias, probe, layout)


def _product(x: Tensor, values: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """[..., in] -> [..., out]."""
    with torch.autocast(x.device.type, enabled=False):
        kernel = choose_kernel(layout, x.device, x.dtype)
        rows = arrange(x.reshape(-1, layout.shape[1]), layout.order)
        y = kernel.forward(rows, values, layout.arranged, bias)
    return y.view(*x.shape[:-1], layout.shape[0])


def _gradients(dy: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, layout: Layout, needs: Sequence[bool]):
    """(dx, dvalues, dbias, dense dW in float32), None where not needed."""
    need_x, need_values, need_bias, need_dense = needs
    dx = dvalues = dbias = dense = None
    kernel = choose_kernel(layout, x.device, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        lines, rows = dy.reshape(-1, layout.shape[0]), x.reshape(-1, layout.shape[1])
        if need_x:
            dx = arrange(kernel.backward_x(lines, values, layout.arranged), layout.inverse).view(x.shape)
        if need_dense:
            dense = (lines.t() @ rows).to(torch.promote_types(x.dtype, torch.float32))
        if need_values:
            if dense is not None:
                found = pack(dense, layout)
            else:
                found = kernel.backward_w(lines, arrange(rows, layout.order), layout.arranged)
            dvalues = found.to(values.dtype)
        if need_bias and bias is not None:
            dbias = sum_rows(lines).to(bias.dtype)
    return dx, dvalues, dbias, dense


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, probe, layout):
        ctx.save_for_backward(x, values, bias)
        ctx.layout = layout
        return _product(x, values, bias, layout)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]  one output, one gradient
        x, values, bias = ctx.saved_tensors
        return *_gradients(dy, x, values, bias, ctx.layout, ctx.needs_input_grad[:4]), None


# The same for torch.compile: operators that take a layout apart, since an operator's arguments are tensors and numbers.


LAYOUT = (
    "Tensor rows, Tensor cols, Tensor row_ptr, Tensor col_ptr, Tensor col_rows, Tensor by_column, "
    "int r, int c, bool even, Tensor? order=None, Tensor? inverse=None"
)


def _whole(rows, cols, row_ptr, col_ptr, col_rows, by_column, r, c, even, order=None, inverse=None) -> Layout:
    shape = (row_ptr.shape[0] - 1) * r, (col_ptr.shape[0] - 1) * c
    return Layout(shape, (r, c), rows, cols, row_ptr, col_ptr, col_rows, by_column, even, order, inverse)


@torch.library.custom_op(
    "mediswift::packed_linear",
    mutates_args=(),
    schema=f"(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {LAYOUT}) -> Tensor",
)
def _linear_op(x, values, bias, probe, *parts):
    return _product(x, values, bias, _whole(*parts))


@_linear_op.register_fake
def _(x, values, bias, probe, *parts):
    return x.new_empty(*x.shape[:-1], _whole(*parts).shape[0])


@torch.library.custom_op(
    "mediswift::packed_linear_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor values, Tensor? bias, bool[] needs, {LAYOUT}) -> Tensor[]",
)
def _gradients_op(dy, x, values, bias, needs, *parts):
    """The gradients that are needed, in order."""
    return [g for g in _gradients(dy, x, values, bias, _whole(*parts), needs) if g is not None]


@_gradients_op.register_fake
def _(dy, x, values, bias, needs, *parts):
    dense = x.new_empty(_whole(*parts).shape, dtype=torch.promote_types(x.dtype, torch.float32))
    return [g.new_empty(g.shape) for g, needed in zip((x, values, bias, dense), needs) if needed]


def _save(ctx, inputs, output) -> None:
    x, values, bias, _, *tensors, ctx.r, ctx.c, ctx.even, order, inverse = inputs
    ctx.save_for_backward(x, values, bias, *tensors, order, inverse)


def _backward_op(ctx, dy):
    x, values, bias, *tensors, order, inverse = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    found = iter(_gradients_op(dy, x, values, bias, needs, *tensors, ctx.r, ctx.c, ctx.even, order, inverse))
    return *(next(found) if needed else None for needed in needs), *[None] * 11


_linear_op.register_autograd(_backward_op, setup_context=_save)
