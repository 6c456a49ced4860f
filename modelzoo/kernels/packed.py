"""y = x W^T + b where W [out, in] is stored as its live blocks alone: forward, dX and dW touch nothing else.

    layout = layout_from_mask(mask, (32, 32))              # or layout_of(live_blocks, (32, 32))
    values = torch.nn.Parameter(pack(weight, layout))      # [nnz, 32, 32] float32; unpack(values, layout) is exact
    y = linear(x, values, layout, bias)                    # values.grad is [nnz, 32, 32] float32
    y = linear(x, values, layout, bias, probe(layout))     # the probe's gradient is the dense dW, for RigL's update

`packable(shape, block)` says whether a weight can be stored so; what cannot stays masked-dense. `choose` picks the
kernel (compiled, Triton or torch) by device, dtype and pattern; all hold the same contract and differ only in time.
Under autocast activations and products have autocast's dtype, sums are float32, masters and gradients stay float32.
"""

import torch
from torch import Tensor

from modelzoo.kernels.choose import choose
from modelzoo.kernels.layout import Layout, layout_from_mask, layout_of, pack, packable, unpack

__all__ = ["Layout", "layout_from_mask", "layout_of", "linear", "pack", "packable", "probe", "unpack"]


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
    return _Linear.apply(x, values, bias, probe, layout)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, probe, layout):
        with torch.autocast(x.device.type, enabled=False):
            kernel = choose(layout, x.device, x.dtype)
            rows = x.reshape(-1, layout.shape[1])
            y = kernel.forward(rows, values, layout, bias)
        ctx.save_for_backward(rows, values)
        ctx.layout, ctx.kernel, ctx.bias_dtype = layout, kernel, None if bias is None else bias.dtype
        return y.view(*x.shape[:-1], layout.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (rows, values), layout = ctx.saved_tensors, ctx.layout
        need_x, need_values, need_bias, need_probe, _ = ctx.needs_input_grad
        dx = dvalues = dbias = dense = None
        with torch.autocast(dy.device.type, enabled=False):
            lines = dy.reshape(-1, layout.shape[0])
            if need_x:
                dx = ctx.kernel.backward_x(lines, values, layout).view(*dy.shape[:-1], layout.shape[1])
            if need_probe:
                dense = (lines.t() @ rows).to(torch.promote_types(rows.dtype, torch.float32))
            if need_values:
                dvalues = pack(dense, layout) if need_probe else ctx.kernel.backward_w(lines, rows, layout)
                dvalues = dvalues.to(values.dtype)
            if need_bias:
                dbias = lines.sum(0, dtype=ctx.bias_dtype)
        return dx, dvalues, dbias, dense, None
