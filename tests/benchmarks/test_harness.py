"""Contestants in other processes take turns; a benchmark's first line names the class and what is held to it."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from modelzoo.kernels import processor

REPO = Path(__file__).resolve().parents[2]


def test_a_worker_steps_when_called(bench, tmp_path):
    log = tmp_path / "log"
    program = (
        f"import sys; sys.path.insert(0, {str(REPO / 'benchmarks')!r}); from harness import serve; print('talk')\n"
        f"serve(lambda: open({str(log)!r}, 'a').write('x'))"
    )
    worker = bench.harness.Worker([sys.executable, "-c", program])
    assert not log.exists()
    for turns in (1, 2, 3):
        worker()
        assert log.read_text() == "x" * turns
    worker.process.stdin.close()
    assert worker.process.wait(timeout=20) == 0


def test_a_worker_that_dies_is_named(bench):
    with pytest.raises(RuntimeError, match="ended with 3"):
        bench.harness.Worker([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.fixture
def machine(bench, monkeypatch):
    """Make this machine one of a class, and return the line that benchmarks print."""

    def line(native: str, **environment: str) -> str:
        for module in (processor, bench.forced):
            monkeypatch.setattr(module, "native_class", lambda: native)
        clean = {k: v for k, v in os.environ.items() if k not in (processor.SWITCH, *bench.forced.TORCH)}
        monkeypatch.setattr(os, "environ", clean | environment)
        return bench.harness.machine()

    return line


@pytest.mark.parametrize("name", processor.TITLES)
def test_the_machines_line_names_its_class(machine, name):
    line = machine(name)
    assert f", {processor.TITLES[name]}, " in line and "forced" not in line and "torch with" not in line


def test_the_machines_line_says_what_is_held(bench, machine):
    held = machine("amx", **bench.forced.switches_of("avx2"))
    assert "AVX2" in held and "forced" in held and "on AVX-512 with bf16 and AMX, " in held
    assert "not held" not in held
    half = machine("amx", MEDISWIFT_PROCESSOR="avx2", ATEN_CPU_CAPABILITY="avx2")
    assert "torch's own products are not held to it" in half
    assert "torch's own products are not held to it" in machine("amx", MEDISWIFT_PROCESSOR="plain")
    assert "torch with ONEDNN_MAX_CPU_ISA=AVX2" in machine("amx", ONEDNN_MAX_CPU_ISA="AVX2")


@pytest.mark.parametrize("script", ["linear", "train_step", "startup", "preprocess"])
def test_a_benchmark_that_cannot_run_says_so_in_a_line(bench, monkeypatch, capsys, script):
    monkeypatch.setenv(processor.SWITCH, "avx1024")
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPO / "benchmarks" / f"{script}.py"), run_name="__main__")
    captured = capsys.readouterr().err
    assert end.value.code == 2 and captured.startswith("error: MEDISWIFT_PROCESSOR=avx1024")
    assert captured.count("\n") == 1
