"""Finite values are told from others without a copy of what is read."""

import pytest
import torch

from modelzoo.finite import are_finite

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_value_of_one_tensor_counts(dtype):
    most = torch.finfo(dtype).max
    sound = [torch.tensor([most, -most, 0.0], dtype=dtype), torch.zeros(3, 0), torch.zeros(2, 2, dtype=dtype)]
    assert are_finite(sound) and are_finite([]) and are_finite([torch.zeros(0)])
    for bad in ("nan", "inf", "-inf"):
        for at in range(3):
            sound[2] = torch.zeros(2, 2, dtype=dtype)
            odd = sound[0].clone()
            odd[at] = float(bad)
            assert not are_finite([sound[2], odd]) and not are_finite([odd, sound[2]])


def test_whole_numbers_are_finite():
    assert are_finite([torch.tensor([2**62, -5]), torch.tensor([True, False])])


def test_nothing_is_copied():
    """As torch's profiler counts what is allocated: a few numbers, of four million."""
    x = torch.randn(2048, 2048)
    with torch.profiler.profile(profile_memory=True) as seen:
        assert are_finite([x, x.t()])
    taken = [e.cpu_memory_usage for e in seen.key_averages() if e.key == "aten::aminmax"]
    assert taken and sum(max(size, 0) for size in taken) < 4096
