"""2:4 weights (two live of each four along the inputs) through the sparse tensor cores of NVIDIA GPUs.

The weight stays dense in memory, with zeros; forward compresses it and multiplies at up to twice the dense rate. Both
gradients are dense products: the transposed weight is not 2:4, and a mask update needs the whole dW.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)


def unavailable(weight: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> str:
    """Why 2:4 products of `weight` [out, in] are dense on `device` (default: its own), or "": they are compressed."""
    device = device or weight.device
    if device.type != "cuda":
        return "2:4 pays on NVIDIA GPUs alone"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "2:4 needs compute capability 8.0 (Ampere) or newer"
    if dtype not in DTYPES:
        return f"2:4 is for 16-bit products, not {str(dtype).removeprefix('torch.')}"
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        return f"2:4 needs sides in multiples of 32 and 64; this weight is {list(weight.shape)}"
    return ""


def is_two_of_four(mask: Tensor) -> bool:
    """Whether at most two of each four neighbours along the last side of a bool mask are live."""
    return mask.shape[-1] % 4 == 0 and bool((mask.unflatten(-1, (-1, 4)).sum(-1) <= 2).all())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for a W whose zeros follow 2:4; compressed where that can be, else F.linear.

    Args:
        x: [..., in]; cast to autocast's dtype where autocast is on.
        weight: [out, in], zeros where dead. Weights beyond two of four would be lost: check with `is_two_of_four`.
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of the (cast) x. The weight's gradient is dense.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return F.linear(x, weight, bias) if unavailable(weight, dtype) else _compressed(x, weight, bias)


@torch.compiler.disable()  # a compressed tensor is a subclass with kernels of its own: the compiler goes round it
def _compressed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        compressed = torch.sparse.to_sparse_semi_structured(weight)
        return F.linear(x.flatten(0, -2), compressed, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]  one output, one gradient
        x, weight = ctx.saved_tensors
        lines = dy.flatten(0, -2)
        dx, dweight, dbias = ctx.needs_input_grad
        return (
            dy @ weight if dx else None,
            lines.t() @ x.flatten(0, -2) if dweight else None,
            lines.sum(0) if dbias else None,
        )
