"""Kernels are compiled for a class of processors, kept whole, made anew where they are not, and missed at need."""

import ctypes
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.kernels import processor
from modelzoo.kernels.compiled import build

REPO = Path(__file__).resolve().parents[3]
SOURCE = '#include "units.h"\nextern "C" int lanes() { return LANES; }\nextern "C" int has_bf16() { return 0; }\n'


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A source that compiles at once, no cache but `tmp_path`'s, and nothing loaded or printed before."""
    try:
        build._compiler()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "units.h").write_bytes((build.SOURCES / "units.h").read_bytes())
    (sources / "tiny.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv(host.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (processor.KERNELS, processor.SWITCH):
        monkeypatch.delenv(name, raising=False)
    build._load.cache_clear()
    build._say.cache_clear()
    yield tmp_path
    build._load.cache_clear()
    build._say.cache_clear()


def fake_compiler(folder: Path, monkeypatch, *refused: str) -> None:
    """A g++ that knows none of the `refused` flags, and hands the rest on."""
    real = " ".join(build._compiler()[0])
    cases = "".join(
        f"*' {flag} '*) echo \"g++: error: unrecognized option {flag}\" >&2; exit 1;;\n" for flag in refused
    )
    fake = folder / "g++"
    fake.write_text(f'#!/bin/sh\ncase " $* " in\n{cases}esac\nexec {real} "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))


def test_every_class_has_a_library_of_its_own_on_a_shared_home(tiny, monkeypatch, capfd):
    wanted = {"plain": 8, "avx2": 8, "avx512": 16, "avx512_bf16": 16, "amx": 16, "neon": 8, "neon_bf16": 8}
    classes = processor.classes_up_to(processor.native_class())
    for _ in range(2):
        for name in classes:
            monkeypatch.setenv(processor.SWITCH, name)
            assert build.library("tiny").lanes() == wanted[name]
        build._load.cache_clear()
    made = list((tiny / "cache").iterdir())
    assert len(made) == len({processor.compiler_flags(name) for name in classes})
    assert capfd.readouterr().err.count("compiling tiny.cpp for ") == len(made)  # nor did the compiler refuse a flag


def test_no_flag_depends_on_the_machine_or_goes_beyond_what_the_class_is_asked_for():
    allowed = set()
    for name in processor.X86:
        allowed |= {flag.replace("_", "") for flag in processor.NEEDS[name]}
        flags = processor.FLAGS[name]
        assert flags[0] == "-march=x86-64"
        given = {flag.removeprefix("-m").replace("-", "") for flag in flags[1:]}
        assert given == allowed - {"bmi1"} | {"bmi"}  # Linux's name and the compiler's
    assert not any("native" in flag for name in processor.TITLES for flag in processor.compiler_flags(name))


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(bytes(path.stat().st_size)),
    lambda path: path.write_bytes(_sealed(b"\x7fELF of another architecture")),
])  # fmt: skip
def test_a_damaged_or_foreign_library_is_compiled_anew(tiny, damage):
    assert build.library("tiny").lanes()
    (path,) = (tiny / "cache").iterdir()
    whole = path.read_bytes()
    path.unlink()  # the process has it mapped: the damage goes to a file of its own
    path.write_bytes(whole)
    damage(path)
    assert path.read_bytes() != whole
    build._load.cache_clear()
    assert build.library("tiny").lanes()
    assert build._whole(path) and ctypes.CDLL(str(path)).lanes()


def _sealed(data: bytes) -> bytes:
    return data + build.hashlib.sha256(data).digest()


def test_a_compiler_too_old_for_a_class_compiles_for_a_weaker_one_and_says_so(tiny, monkeypatch, capfd):
    strongest = processor.native_class()
    if strongest not in processor.X86[1:]:
        pytest.skip("needs a class with a weaker one whose flags differ")
    newest = processor.FLAGS[strongest][-1]
    fake_compiler(tiny, monkeypatch, newest)
    assert build.library("tiny").lanes()
    weaker = processor.classes_up_to(strongest)[-2]
    wanted = f"compiled tiny.cpp for {processor.TITLES[weaker]} instead, which is slower: g++ failed: g++: error: " \
        f"unrecognized option {newest}"  # fmt: skip
    assert wanted in capfd.readouterr().err.splitlines()


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tiny, monkeypatch, capfd):
    fake_compiler(tiny, monkeypatch, "-O3")
    for _ in range(2):
        with pytest.raises(build.Unavailable, match="unrecognized option -O3"):
            build.library("tiny")
    assert list((tiny / "cache").iterdir()) == []
    assert capfd.readouterr().err.count("no compiled tiny kernels, torch's are slower: g++ failed: ") == 1


@pytest.mark.parametrize("text", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_leads_to_the_temporary_folder(tiny, monkeypatch, capfd, text):
    real = " ".join(build._compiler()[0])
    fake = tiny / "g++"
    fake.write_text(
        f'#!/bin/sh\ncase "$TMPDIR" in {tiny}/cache/*) echo "error: cannot write: {text}" >&2; exit 1;; esac\n'
        f'exec {real} "$@"\n', encoding="utf-8",
    )  # fmt: skip
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert build.library("tiny").lanes()
    assert f"{tiny / 'cache'}: compiled kernels cannot be kept there ({text})" in capfd.readouterr().err
    assert list(host.private_folder().glob("tiny-*.so")) and not list((tiny / "cache").iterdir())


def test_an_unwritable_cache_leads_to_a_private_temporary_folder(tiny, monkeypatch, capfd):
    (tiny / "file").touch()
    monkeypatch.setenv(host.CACHE, str(tiny / "file" / "below"))
    assert build.library("tiny").lanes()
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "cannot be kept there" in x]
    assert line.startswith(f"{tiny / 'file' / 'below'}: ") and "Not a directory" in line
    folder = tiny / f"mediswift-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and list(folder.glob("tiny-*.so"))


def test_a_temporary_folder_that_others_may_enter_holds_no_code_of_ours(tiny, monkeypatch, capfd):
    (tiny / "file").touch()
    monkeypatch.setenv(host.CACHE, str(tiny / "file"))
    (tiny / f"mediswift-{os.geteuid()}").mkdir()
    (tiny / f"mediswift-{os.geteuid()}").chmod(0o777)
    with pytest.raises(build.Unavailable, match="is not a folder of this user alone"):
        build.library("tiny")
    assert "torch's are slower" in capfd.readouterr().err


def test_switches_know_their_values(tiny, monkeypatch):
    monkeypatch.setenv(processor.KERNELS, "pytorch")
    with pytest.raises(UserError, match="MEDISWIFT_KERNELS='pytorch': it is auto"):
        build.library("tiny")
    with pytest.raises(UserError, match="MEDISWIFT_KERNELS='pytorch': it is auto"):
        processor.check_switches()  # of every command, that needs kernels or not
    monkeypatch.setenv(processor.KERNELS, "auto")
    monkeypatch.setenv(processor.SWITCH, "avx1024")
    with pytest.raises(UserError, match="MEDISWIFT_PROCESSOR=avx1024: this machine can act as plain"):
        build.library("tiny")


def test_cxx_whose_quote_does_not_end_is_named(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "g++ -DX='1")
    with pytest.raises(UserError, match=r"CXX=.*is no command .no closing quotation.; correct or unset it"):
        processor.find_compiler()


def test_cxx_may_carry_arguments(tiny, monkeypatch):
    monkeypatch.setenv("CXX", f"{' '.join(build._compiler()[0])} -DLANES_OF_A_FRIEND")
    assert build.library("tiny").lanes()


def test_without_a_compiler_torch_serves_and_says_why_once(tmp_path):
    code = (
        "import torch; from modelzoo.kernels.blocks.layout import layout_of\n"
        "from modelzoo.kernels.products.choose import describe_choice\n"
        "from modelzoo.kernels.products.packed import linear\n"
        "layout = layout_of(torch.tensor([[True, False], [True, True]]), (32, 32))\n"
        "for _ in range(2): y = linear(torch.ones(2, 64), torch.ones(3, 32, 32), layout)\n"
        "print(y.sum().item(), describe_choice(layout, torch.device('cpu'), torch.float32))"
    )
    env = {**os.environ, "CXX": "/nonexistent/g++", "MEDISWIFT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(REPO)}
    env[processor.KERNELS] = "auto"  # whatever the tests themselves run with
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6144.0 [32, 32] blocks in float32 on cpu: torch, gathered (no compiled kernels: no")
    assert done.stderr.count("torch's are slower: no /nonexistent/g++ found") == 1 and not (tmp_path / "cache").exists()


def test_processes_that_compile_at_once_share_one_library(tiny):
    code = "import sys, pathlib; from modelzoo.kernels.compiled import build\n"
    code += "build.SOURCES = pathlib.Path(sys.argv[1])\n"
    code += "print(build.compile_library('tiny', pathlib.Path(sys.argv[2])))"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code, str(build.SOURCES), str(tiny / "both")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in "12"]
    paths = {p.communicate()[0].strip() for p in running}
    assert all(p.returncode == 0 for p in running)
    assert [str(p) for p in (tiny / "both").iterdir()] == list(paths)
