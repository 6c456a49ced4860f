"""Which kernel multiplies by a packed weight, and the one line that says why."""

import torch

from modelzoo.kernels import gathered, masked
from modelzoo.kernels.layout import Layout


def choose(layout: Layout, device: torch.device, dtype: torch.dtype):
    """The module (`forward`, `backward_x`, `backward_w`, `NAME`) that serves activations of `dtype` on `device`."""
    if device.type == "cpu" and layout.block[0] >= 16:
        return gathered
    return masked
