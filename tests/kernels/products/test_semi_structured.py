"""2:4 products against dense ones, on whatever device there is; the compressed path needs an NVIDIA GPU."""

import pytest
import torch
import torch.nn.functional as F

from modelzoo.kernels.products.semi_structured import is_two_of_four, linear, unavailable


def two_of_four(out: int, inputs: int) -> torch.Tensor:
    scores = torch.rand(out, inputs // 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(2, scores.topk(2).indices, True).view(out, inputs)


def test_masks_are_told_apart():
    mask = two_of_four(8, 16)
    assert is_two_of_four(mask) and is_two_of_four(torch.zeros(2, 8, dtype=torch.bool))
    mask[3, 4:7] = True
    assert not is_two_of_four(mask) and not is_two_of_four(torch.zeros(2, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")
        ),
    ],
)
def test_products_and_gradients_equal_dense_ones(device):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    weight = (torch.randn(64, 128) * two_of_four(64, 128)).to(device, dtype).requires_grad_()
    x, bias = (torch.randn(*s).to(device, dtype).requires_grad_() for s in [(3, 5, 128), (64,)])
    dy = torch.randn(3, 5, 64).to(device, dtype)
    assert (unavailable(weight, dtype) == "") == (device == "cuda")
    y, want = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(y, want)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    for a, b in zip(got, torch.autograd.grad(want, (x, weight, bias), dy)):
        torch.testing.assert_close(a, b)


def test_the_reason_is_said_where_products_are_dense():
    assert "NVIDIA" in unavailable(torch.zeros(64, 64), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 64), torch.ones(8, 64)).dtype == torch.bfloat16
