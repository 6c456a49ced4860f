"""Which device a run gets: what was asked for, or the next best, said aloud."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelzoo.backends import arithmetic, local, select
from modelzoo.backends.csx import preflight
from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.kernels import processor
from tests.support import config

REPO = Path(__file__).resolve().parents[2]


class Recorded:
    """Stands for a backend, and remembers what it was made of."""

    def __init__(self, device, *rest):
        self.device = device


@pytest.fixture
def machine(monkeypatch):
    """Pretend what this machine has; devices are recorded and not touched."""

    def pretend(csx=False, gpu=False, cuda_build=True):
        monkeypatch.setattr(preflight, "explain_missing_cluster", lambda c: None if csx else "no cluster is configured")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.version, "cuda", "12.6" if cuda_build else None)
        monkeypatch.setattr(local, "Local", Recorded)
        monkeypatch.setattr(select, "csx", lambda init, folder: Recorded("csx"))

    return pretend


def chosen(target, backend_type=None):
    section = {} if backend_type is None else {"backend": {"backend_type": backend_type}}
    choice = select.select_device(target, config(**section).trainer.init, trains_alone=True)
    return str(choice.backend.device), choice.asked, choice.fallback


NO_CSX, NO_GPU, CPU_BUILD = (
    "CSX: no cluster is configured",
    "GPU: torch sees no CUDA device",
    "this torch is a CPU build",
)


@pytest.mark.parametrize("backend_type,has,device,said", [
    (None, {}, "cpu", None),
    (None, {"gpu": True}, "cuda", None),
    ("auto", {"csx": True, "gpu": True}, "cuda", None),  # a wafer is taken only where it is asked for
    ("CPU", {"csx": True, "gpu": True}, "cpu", None),
    ("GPU", {"gpu": True}, "cuda", None),
    ("GPU", {}, "cpu", f"{NO_GPU}; running on CPU"),
    ("GPU", {"cuda_build": False}, "cpu", f"GPU: {CPU_BUILD}; running on CPU"),
    ("CSX", {"csx": True}, "csx", None),
    ("CSX", {"gpu": True}, "cuda", f"{NO_CSX}; running on GPU"),
    ("CSX", {}, "cpu", f"{NO_CSX}, {NO_GPU}; running on CPU"),
])  # fmt: skip
def test_auto_falls_back_and_says_why(machine, backend_type, has, device, said):
    machine(**has)
    assert chosen("auto", backend_type) == (device, backend_type or "auto", said)


@pytest.mark.parametrize("target,has,device", [
    ("CPU", {"gpu": True}, "cpu"), ("GPU", {"gpu": True}, "cuda"), ("CSX", {"csx": True}, "csx"),
])  # fmt: skip
@pytest.mark.parametrize("backend_type", ["CSX", "GPU", "CPU", "auto"])
def test_an_explicit_target_wins_over_the_config(machine, target, has, device, backend_type):
    machine(**has)
    assert chosen(target, backend_type) == (device, target, None)


@pytest.mark.parametrize("target,has,message", [
    ("GPU", {}, r"^GPU: torch sees no CUDA device; run with `auto` or `CPU`"),
    ("GPU", {"cuda_build": False}, r"^GPU: this torch is a CPU build; run with `auto` or `CPU`"),
    ("CSX", {"gpu": True}, r"^CSX: no cluster is configured; .*`auto`"),
])  # fmt: skip
def test_an_explicit_target_that_is_not_there_is_an_error_with_the_ways_out(machine, target, has, message):
    machine(**has)
    with pytest.raises(UserError, match=message) as e:
        chosen(target)
    assert "\n" not in str(e.value)


def test_a_device_that_trains_alone_is_passed_over_where_models_are_run(machine):
    machine(csx=True, gpu=True)
    init = config(backend={"backend_type": "CSX"}).trainer.init
    choice = select.select_device("auto", init)
    assert str(choice.backend.device) == "cuda"
    assert choice.fallback == "CSX: it trains (-m train) and does nothing else; running on GPU"
    with pytest.raises(UserError, match=r"^CSX: it trains \(-m train\) and does nothing else; use CPU or GPU$"):
        select.select_device("CSX", init)


def test_what_targets_can_do():
    assert [t for t in ("auto", "CPU", "GPU", "CSX") if select.evaluates(t)] == ["auto", "CPU", "GPU"]
    assert [t for t in ("auto", "CPU", "GPU", "CSX") if select.lowers(t)] == ["CSX"]


def test_a_job_is_shown_before_its_device_is_made(machine, monkeypatch, capsys):
    """The preflight of a cluster that answers, and what is sent; none where no cluster does."""
    whole, seen = config(backend={"backend_type": "CSX", "mgmt_address": "host:1"}), []
    machine(csx=True)
    monkeypatch.setattr(preflight, "check_job", lambda *_: ["the cluster answers"])
    monkeypatch.setattr(select, "csx", lambda init, folder: seen.append(capsys.readouterr().err) or Recorded("csx"))
    assert select.select_training_device("auto", whole, "out", evaluate=False).backend.device == "csx"
    assert "preflight  the cluster answers\nsends      to host:1:" in seen[0]
    with pytest.raises(UserError, match="CSX trains; use -m train, and -m eval of its checkpoints with CPU or GPU"):
        select.select_training_device("auto", whole, "out", evaluate=True)
    machine()
    assert str(select.select_training_device("auto", whole, "out", evaluate=True).backend.device) == "cpu"
    assert capsys.readouterr().err == ""


def test_torch_is_not_imported_to_ask_what_a_target_can_do():
    program = "import sys, modelzoo.backends.select as s; assert s.lowers('CSX') and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_but_the_backends_asks_whether_a_device_is_a_cs2():
    outside = [p for p in (REPO / "modelzoo").rglob("*.py") if "backends" not in p.parts and "config" not in p.parts]
    asks = re.compile(r"""[!=]= *["']CSX["']|["']CSX["'] *[!=]=""")
    assert [str(p) for p in outside if asks.search(p.read_text(encoding="utf-8"))] == []


# --- the CPU ----------------------------------------------------------------------------------------------------------


def cpu(backend=None, **precision):
    return local.Local(torch.device("cpu"), Backend.model_validate(backend or {}), Precision.model_validate(precision))


@pytest.mark.parametrize("precision", [{}, {"fp16_type": "cbfloat16"}, {"fp16_type": "float16"}, {"enabled": False}])
@pytest.mark.parametrize("emulate", [False, True])
@pytest.mark.parametrize("name", processor.TITLES)
def test_the_cpu_computes_as_its_processor_decides(act_as, name, emulate, precision):
    act_as(name)
    precision = {"emulate": emulate, **precision}
    backend, decided = cpu(**precision), arithmetic.decide_on_cpu(Precision(**precision))
    assert (backend.kind, backend.device_class, backend.arithmetic) == ("CPU", name, decided)
    assert backend.notes == ([decided.note] if decided.note else [])
    assert backend.describe().endswith(f"threads, {processor.TITLES[name]}), {decided.dtype}")
    with backend.autocast():
        product = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert product.dtype == backend.dtype == getattr(torch, decided.dtype)


def gpu(monkeypatch, device, bf16=True) -> local.Local:
    """The backend of a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch._C, "_set_cublas_allow_tf32", lambda allowed: None)
    return local.Local(device, Backend(torch_compile=False), Precision())


@pytest.mark.parametrize("name,chosen", [("cuda", []), ("cuda:1", [torch.device("cuda:1")])])
def test_a_gpu_with_a_number_is_made_the_current_one(monkeypatch, name, chosen):
    """Random draws, Triton's launches and whatever names no device act on the current one."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (device, 5))
    backend = gpu(monkeypatch, torch.device(name))
    assert seen == chosen and backend.asynchronous and not cpu().asynchronous
    assert backend.memory() == (torch.device(name), 5) and backend.fetch(None)


def test_a_batch_goes_to_a_gpu_from_pinned_memory(monkeypatch):
    """From other memory a copy waits for all work before it; a batch without its last columns is such a one."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    backend = gpu(monkeypatch, torch.device("cuda"))
    backend.device = torch.device("meta")
    whole = torch.arange(12).view(3, 4)
    there = backend.put({"x": whole[:, :2]})["x"]
    assert there.is_meta and there.shape == (3, 2)
    assert len(pinned) == 1 and pinned[0].is_contiguous() and torch.equal(pinned[0], whole[:, :2])
    assert backend.put({"x": there})["x"] is there


@pytest.mark.parametrize("bf16,dtype", [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_computes_as_torch_says_of_it(monkeypatch, bf16, dtype):
    """Emulated bfloat16, which torch counts unless it is asked not to, does not count. No GPU is touched."""
    backend = gpu(monkeypatch, torch.device("cuda"), bf16)
    assert (backend.kind, backend.device_class, backend.dtype) == ("GPU", "sm_75", getattr(torch, dtype))
    assert backend.describe() == f"GPU (Tesla T4), {dtype}" and bool(backend.notes) is not bf16


def test_the_start_says_the_device_and_what_is_done_otherwise(act_as):
    act_as("avx2")
    choice = select.Choice(cpu(), "GPU", "GPU: none here; running on CPU")
    first, note = choice.describe().splitlines()
    assert first == f"device     {choice.backend.describe()}  [GPU: none here; running on CPU]"
    assert note.strip() == choice.backend.arithmetic.note


def test_threads():
    before = torch.get_num_threads()
    try:
        assert "CPU (2 threads, " in cpu({"num_threads": 2}).describe() and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_memory_is_in_bytes():
    """At least what a freshly touched block takes."""
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert cpu().memory() > block.numel()


def test_batches_and_models_stay_on_the_cpu():
    backend, model = cpu(), torch.nn.Linear(2, 2)
    assert backend.place(model) is model
    x = torch.ones(2)
    assert backend.put({"x": x})["x"] is x


BLOCKS = {"sparsity": 0.75, "block": [4, 4]}
SHARED = {"algorithm": "rigl", "sparsity": 0.75, "shared_inputs": 4}


@pytest.mark.parametrize("section,name", [
    (BLOCKS, "block: [4, 4]"), (SHARED, "shared_inputs: 4"), ({"nm": [2, 4]}, "nm: [2, 4]"),
])  # fmt: skip
def test_the_wafer_takes_unstructured_masks_alone(machine, section, name):
    machine(csx=True, gpu=True)
    init = config(sparsity=[section], backend={"backend_type": "CSX"}).trainer.init
    words = f"its masks are unstructured, not trainer.init.sparsity's {name}"
    assert select.select_device("auto", init, trains_alone=True).fallback == f"CSX: {words}; running on GPU"
    with pytest.raises(UserError) as e:
        select.select_device("CSX", init)
    assert str(e.value) == f"CSX: {words}; change it, or train with GPU or CPU"


@pytest.mark.parametrize("section,name", [
    ({"algorithm": "chts", "sparsity": 0.5}, "trainer.init.sparsity.algorithm: chts"),
    ({"algorithm": "set", "sparsity": 0.5, "regrow_warmup": 5}, "trainer.init.sparsity.regrow_warmup"),
    ({"algorithm": "gmp", "sparsity": {"type": "sigmoid", "final": 0.5, "end": 5}}, "of type sigmoid"),
])  # fmt: skip
def test_the_wafer_takes_cerebras_pytorchs_own_algorithms_alone(machine, section, name):
    machine(csx=True, gpu=True)
    init = config(sparsity=[section], backend={"backend_type": "CSX"}).trainer.init
    why = select.explain_structured(init)
    assert why is not None and name in why
    assert select.select_device("auto", init, trains_alone=True).fallback is not None
    with pytest.raises(UserError, match=r"CSX: cerebras\.pytorch.*; change it, or train with GPU or CPU"):
        select.select_device("CSX", init)


def test_a_pattern_is_refused_before_it_is_lowered():
    """With or without the client library at hand."""
    for only in ("validate", "compile"):
        with pytest.raises(UserError, match=r"CSX: its masks are unstructured, .* block: \[4, 4\]; change it"):
            select.csx(config(sparsity=BLOCKS).trainer.init, ".", only)


@pytest.mark.parametrize("found,lacking", [((), "Triton and a C compiler"), (("triton",), "a C compiler"), (None, "")])
def test_layers_are_compiled_on_a_gpu_where_that_can_be(monkeypatch, found, lacking):
    """The default there; where it cannot be, the run says why. A CPU compiles when it is asked to."""
    monkeypatch.setattr(local, "find_spec", lambda name: found is None or name in found)
    monkeypatch.setattr(local.shutil, "which", lambda name: "/usr/bin/cc" if found is None else None)
    gpu(monkeypatch, torch.device("cuda"))  # stands in for the device
    made = local.Local(torch.device("cuda"), Backend(), Precision())
    assert (
        made.compiles is (found is None)
        and [lacking in n for n in made.notes if "torch_compile" in n] == [True][: bool(lacking)]
    )
    assert (
        not cpu().compiles and not local.Local(torch.device("cuda"), Backend(torch_compile=False), Precision()).compiles
    )
