"""The processor's class is what torch finds too, and a weaker one can be forced."""

import platform

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.kernels import processor


def test_the_class_is_what_torch_finds(monkeypatch):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("torch's flags are x86's")
    monkeypatch.delenv(processor.SWITCH, raising=False)
    at = processor.X86.index
    found = processor.processor_class()
    index = at(found) if found in processor.X86 else -1
    assert (index >= at("avx2")) == torch.cpu._is_avx2_supported()
    assert (index >= at("avx512")) == torch.cpu._is_avx512_supported()
    assert (index >= at("avx512_bf16")) == torch.cpu._is_avx512_bf16_supported()
    assert (index >= at("amx")) <= torch.cpu._is_amx_tile_supported()


@pytest.mark.parametrize("flags,name", [
    ("fpu sse2", "plain"),
    ("avx2 fma f16c bmi1 bmi2 movbe", "avx2"),
    ("avx2 fma f16c bmi1 bmi2 movbe avx512f avx512bw avx512cd avx512dq avx512vl", "avx512"),
    ("avx2 fma f16c bmi1 bmi2 movbe avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16", "avx512_bf16"),
    ("avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16", "plain"),
])  # fmt: skip
def test_flags_make_a_class(monkeypatch, flags, name):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor.sys, "platform", "linux")
    monkeypatch.setattr(processor, "cpuinfo", lambda: f"processor\t: 0\nflags\t\t: {flags}\n")
    assert processor.native_class.__wrapped__() == name


@pytest.mark.parametrize("features,name", [("fp asimd", "neon"), ("fp asimd bf16", "neon_bf16")])
def test_arm(monkeypatch, features, name):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(processor.sys, "platform", "linux")
    monkeypatch.setattr(processor, "cpuinfo", lambda: f"processor\t: 0\nFeatures\t: {features}\n")
    assert processor.native_class.__wrapped__() == name


def test_a_weaker_class_can_be_forced_and_no_stronger_one(monkeypatch):
    monkeypatch.setattr(processor, "native_class", lambda: "avx512")
    monkeypatch.setenv(processor.SWITCH, "avx2")
    assert processor.processor_class() == "avx2" and "forced" in processor.title()
    assert not processor.multiplies_bf16()
    monkeypatch.setenv(processor.SWITCH, "amx")
    with pytest.raises(UserError, match=r"plain, avx2, avx512 or native"):
        processor.processor_class()
