"""Which arithmetic a run gets, from plain facts about the device; what is said of it; the loss scale that follows."""

import pytest

from modelzoo.backends import arithmetic
from modelzoo.backends.arithmetic import decide_arithmetic
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.kernels import processor
from modelzoo.optim.loss_scale import LossScale

INSISTS = "(trainer.init.precision.emulate=true insists)"
EMULATED = "is emulated, as trainer.init.precision.emulate asks:"
FOREIGN = "cbfloat16 is the CS-2's format; bfloat16 here"
FOR_GPUS = "float16 was asked for; it is a format for GPUs"
LACKS = "it does not multiply"
SCALED = "float16 with a dynamic loss scale here"
WITH_BF16 = ("avx512_bf16", "amx", "neon_bf16")

# kind, fp16_type, does the device multiply bfloat16, emulate -> dtype, note ("it" is the device)
TABLE = [
    ("CPU", "bfloat16", True, False, "bfloat16", None),
    ("CPU", "bfloat16", True, True, "bfloat16", None),
    ("CPU", "bfloat16", False, False, "float32",
     f"bfloat16 was asked for; {LACKS} it, so float32 here {INSISTS}"),
    ("CPU", "bfloat16", False, True, "bfloat16", f"bfloat16 {EMULATED} {LACKS} it"),
    ("CPU", "cbfloat16", True, False, "bfloat16", FOREIGN),
    ("CPU", "cbfloat16", False, False, "float32",
     f"cbfloat16 was asked for; it is the CS-2's format, and {LACKS} bfloat16, so float32 here {INSISTS}"),
    ("CPU", "cbfloat16", False, True, "bfloat16", f"bfloat16 {EMULATED} {LACKS} it"),
    ("CPU", "float16", True, False, "bfloat16", f"{FOR_GPUS}, so bfloat16 here {INSISTS}"),
    ("CPU", "float16", False, False, "float32", f"{FOR_GPUS}, and {LACKS} bfloat16, so float32 here {INSISTS}"),
    ("CPU", "float16", True, True, "float16", f"float16 {EMULATED} it is a format for GPUs"),
    ("CPU", "float16", False, True, "float16", f"float16 {EMULATED} it is a format for GPUs"),
    ("GPU", "bfloat16", True, False, "bfloat16", None),
    ("GPU", "bfloat16", False, False, "float16", f"bfloat16 was asked for; {LACKS} it, so {SCALED} {INSISTS}"),
    ("GPU", "bfloat16", False, True, "bfloat16", f"bfloat16 {EMULATED} {LACKS} it"),
    ("GPU", "cbfloat16", True, False, "bfloat16", FOREIGN),
    ("GPU", "cbfloat16", False, False, "float16",
     f"cbfloat16 was asked for; it is the CS-2's format, and {LACKS} bfloat16, so {SCALED} {INSISTS}"),
    ("GPU", "float16", True, False, "float16", None),
    ("GPU", "float16", False, False, "float16", None),
    ("GPU", "float16", False, True, "float16", None),
]  # fmt: skip


@pytest.mark.parametrize("kind,asked,bf16,emulate,dtype,note", TABLE)
def test_a_sixteen_bit_format_is_used_where_it_is_multiplied(kind, asked, bf16, emulate, dtype, note):
    found = decide_arithmetic(kind, Precision(fp16_type=asked, emulate=emulate), bf16, "it")
    assert (found.dtype, found.note) == (dtype, note) and found.reason


@pytest.mark.parametrize("kind,asked,bf16,emulate,dtype,note", TABLE)
def test_float32_is_float32_everywhere(kind, asked, bf16, emulate, dtype, note):
    found = decide_arithmetic(kind, Precision(enabled=False, fp16_type=asked, emulate=emulate), bf16, "it")
    assert (found.dtype, found.note) == ("float32", None)


@pytest.mark.parametrize("factor", [1.0, 512.0, None, "dynamic"])
@pytest.mark.parametrize("kind,asked,bf16,emulate,dtype,note", TABLE)
def test_the_loss_scale_follows_the_arithmetic(kind, asked, bf16, emulate, dtype, note, factor):
    """None but in float16; there as asked, and dynamic where float16 stands in for what needs none."""
    precision = Precision(fp16_type=asked, emulate=emulate, loss_scaling_factor=factor)
    scale = LossScale.make(precision, decide_arithmetic(kind, precision, bf16, "it").dtype)
    if dtype != "float16":
        assert (scale.scale, scale.dynamic) == (1.0, False)
    elif asked == "float16" and factor != "dynamic":
        assert (scale.scale, scale.dynamic) == (factor or 1.0, False)
    else:
        assert (scale.scale, scale.dynamic) == (2.0**16, True)


@pytest.mark.parametrize("name", processor.TITLES)
def test_the_processors_class_decides_on_a_cpu(act_as, name):
    act_as(name)
    found = arithmetic.decide_on_cpu(Precision())
    if name in WITH_BF16:
        assert found == ("bfloat16", f"this processor ({processor.TITLES[name]}) multiplies it", None)
    else:
        assert found.dtype == "float32" and f"this processor ({processor.TITLES[name]}) does not" in found.note


def test_a_forced_class_decides_and_is_named(monkeypatch):
    monkeypatch.setattr(processor, "native_class", lambda: "amx")
    monkeypatch.setenv(processor.SWITCH, "avx512")
    found = arithmetic.decide_on_cpu(Precision())
    assert found.dtype == "float32" and "(AVX-512, forced by MEDISWIFT_PROCESSOR)" in found.note


CPU = (
    "float32 on this CPU: bfloat16 was asked for; this processor (AVX2) does not multiply it, so float32 here "
    + INSISTS
)
GPU = "bfloat16 on a GPU that multiplies it, else float16 with a dynamic loss scale"


@pytest.mark.parametrize("target,asked,precision,lines", [
    ("auto", "auto", {}, [CPU, GPU]), ("auto", "GPU", {}, [CPU, GPU]), ("auto", "CPU", {}, [CPU]),
    ("auto", "CSX", {}, [CPU, GPU, "bfloat16 on the CS-2"]), ("CPU", "CSX", {}, [CPU]), ("GPU", "auto", {}, [GPU]),
    ("CSX", "auto", {"fp16_type": "cbfloat16"}, ["cbfloat16 on the CS-2"]),
    ("CSX", "auto", {"enabled": False}, ["bfloat16 on the CS-2: the CS-2 always computes in mixed precision"]),
    ("GPU", "auto", {"emulate": True}, ["bfloat16 on a GPU"]),
    ("GPU", "auto", {"enabled": False}, ["float32 on a GPU"]),
    ("GPU", "auto", {"fp16_type": "float16"}, ["float16 on a GPU"]),
])  # fmt: skip
def test_what_can_be_known_before_a_run(act_as, target, asked, precision, lines):
    act_as("avx2")
    assert arithmetic.describe(target, Backend(backend_type=asked), Precision(**precision)) == lines
