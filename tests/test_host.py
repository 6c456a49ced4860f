"""What one machine has and another lacks: cores, memory, load, locks, a home, a name, semaphores, UTF-8."""

import ast
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelzoo import cli, host
from modelzoo.kernels import processor

REPO = Path(__file__).resolve().parents[1]
RUN = "from modelzoo.cli import main; sys.exit(main())"
DATA = "from data_preprocessing.cli import main; sys.exit(main())"


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -c CODE WORDS` without HOME or a user's name, in a locale that knows ASCII alone."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **environment}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=env, cwd=REPO, capture_output=True, encoding="ascii", timeout=300)


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert host.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.available_cores() == 1


def test_peak_memory_is_in_bytes():
    code = "from modelzoo import host; before = host.peak_memory(); x = b'x' * 300_000_000\n"
    done = python(code + "print(host.peak_memory() - before)")
    assert 250e6 < int(done.stdout) < 350e6


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux resets its mark")
def test_peak_memory_counts_anew():
    code = "from modelzoo import host; before = host.peak_memory(); x = b'x' * 300_000_000; del x\n"
    done = python(code + "host.reset_peak_memory(); print(host.peak_memory() - before)")
    assert int(done.stdout) < 50e6


def test_peak_memory_where_the_system_counts_otherwise(monkeypatch):
    usage = type("Usage", (), {"ru_maxrss": 7_000_000})
    monkeypatch.setattr(host, "_high_water", lambda: None)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert host.peak_memory() == 7_000_000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host.peak_memory() == 7_000_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host.peak_memory() is None


def test_freed_memory_is_kept_where_the_user_did_not_choose(monkeypatch):
    """Measured where glibc is: a large piece that is freed and allocated again costs no page faults."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not host.keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr(host.sys, "platform", "darwin")
    assert not host.keep_freed_memory()
    monkeypatch.undo()
    code = (
        "import resource; from modelzoo.host import keep_freed_memory; kept = keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(64 << 20); before = faults()\n"
        "for _ in range(4): bytearray(64 << 20)\n"
        "print(kept, faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    kept, faults = done.stdout.split()
    assert kept == "False" or int(faults) < 4 * (64 << 20) // 4096 // 10


def test_load_may_be_unknown(monkeypatch):
    assert host.load_average() >= 0

    def unknown():
        raise OSError("load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert host.load_average() is None
    monkeypatch.delattr(os, "getloadavg")
    assert host.load_average() is None


def test_the_cache_is_the_first_place_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private = tmp_path / f"mediswift-{os.geteuid()}"
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv(host.CACHE, "/named")
    assert list(host.cache_folders()) == [Path("/named"), private]
    monkeypatch.delenv(host.CACHE)
    assert list(host.cache_folders()) == [Path("/caches/mediswift"), private]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert list(host.cache_folders()) == [Path("/home/her/.cache/mediswift"), private]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert list(host.cache_folders()) == [private]


def test_a_private_folder_is_no_link_to_another(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"mediswift-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is not a folder of this user alone"):
        host.private_folder()


@pytest.mark.parametrize("code,words", [
    (RUN, ["-p", b"caf\xe9.yaml", "-m", "plan"]),
    (RUN, ["compare", b"caf\xe9"]),
    (DATA, ["inspect", b"caf\xe9"]),
])  # fmt: skip
def test_a_word_that_is_no_text_is_one_line(code, words):
    done = python("import sys; " + code, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.count("\n") == 1 and done.stderr.startswith("error: 'caf\\udce9") and "PYTHONUTF8=1" in done.stderr
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_print_what_their_encoding_lacks(encoding):
    code = "from modelzoo import host; host.prepare_process([]); print('5 \\u00b5g \\u2265 \\u03b2 \\udcff')"
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    wanted = "5 \u00b5g \u2265 \u03b2 \udcff".encode(encoding, errors="backslashreplace")
    assert done.stdout.strip() == wanted and done.stderr == b""


@pytest.mark.parametrize("words", [
    ["-p", "configs/quickstart/dense.yaml", "-m", "plan"],
    ["-p", "configs/quickstart/dense.yaml", "-m", "train"],
    ["-p", "configs/study/mini.yaml", "-m", "study"],
    ["compare", "nowhere"],
    ["export", "nowhere", "out"],
])  # fmt: skip
def test_every_command_refuses_a_processor_that_is_none(words, monkeypatch, capsys):
    monkeypatch.setenv(processor.SWITCH, "avx1024")
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: MEDISWIFT_PROCESSOR=avx1024: this machine can act as plain")
    assert said.err.count("\n") == 1 and said.out == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "words,code,kind",
    [
        (["run.py", "-p", "configs/quickstart/s75.yaml", "-m", "plan"], 2, "error: "),
        (["-m", "data_preprocessing", "synthetic", "--output", "OUT", "--documents", "2"], 0, "note "),
    ],
)
def test_a_full_disk_behind_the_output_is_one_line(words, code, kind, tmp_path):
    words = [str(tmp_path / "xml") if w == "OUT" else w for w in words]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, *words], cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith(kind)]  # a plan names what is missing, too
    assert sum("the output cannot be written (No space left on device)" in x for x in lines) == 1


FOLDERS = ("modelzoo", "data_preprocessing", "benchmarks", "scripts")
PRODUCT = [path for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py"))]


def test_facts_of_the_machine_are_asked_in_one_place():
    """Each of these is absent, or means something else, on some machine."""
    asked = {
        "sched_getaffinity": "host", "ru_maxrss": "host", "getloadavg": "host", "flock": "lock", "expanduser": "host",
        "gettempdir": "host", "getpwuid": "host", "home": None, "getuser": None, "getlogin": None,
    }  # fmt: skip
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in asked:
                place = asked[node.attr]
                assert path.stem == place, f"{path}:{node.lineno}: {node.attr} belongs in {place}.py"
            if isinstance(node, ast.Constant) and node.value == "/proc/cpuinfo":
                assert path.stem == "processor", f"{path}:{node.lineno}: ask kernels/processor.py"


def test_text_is_read_and_written_as_utf8():
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_text(node) and not any(k.arg == "encoding" for k in node.keywords):
                raise AssertionError(f"{path}:{node.lineno}: no encoding in {ast.unparse(node)}")


def _is_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes text: as the locale has it, if it names no encoding."""
    names = {k.arg: k.value for k in call.keywords}
    if isinstance(call.func, ast.Name) and call.func.id == "open" or _named(call, "fdopen"):
        modes = [*call.args[1:2], *([names["mode"]] if "mode" in names else [])]
        words = [node.value for mode in modes for node in ast.walk(mode) if isinstance(node, ast.Constant)]
        return not any(isinstance(word, str) and "b" in word for word in words)
    if _named(call, "read_text") or _named(call, "write_text"):
        return not (isinstance(call.func.value, ast.Name) and call.func.value.id == "checkpoint")  # UTF-8 of its own
    return "text" in names and any(_named(call, name) for name in ("run", "Popen", "check_output"))


def _named(call: ast.Call, name: str) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == name
