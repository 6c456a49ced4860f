"""The SHA-256 of every package that constraints.txt and constraints-csx.txt pin: locks/*.txt, which pip verifies.

    pip install uv && python scripts/lock.py     # after a pin has changed; asks the package index, installs nothing

Every file of a pinned version is listed, for all platforms. uv resolves setup.py with all extras, so pins that do not
fit each other are refused, and so is what a package depends on and nothing pins. PyTorch's CPU builds are in an index
of its own.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from modelzoo import entry
from modelzoo.config.errors import UserError

REPO = Path(__file__).resolve().parents[1]
LOCKS = REPO / "locks"
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # what PyPI's torch for Linux is, and depends on
BUILD = "setuptools-scm"  # what a package of the tests without a wheel is built with
SOURCES = ("seqeval",)  # of the tests, without a wheel
FILES = {
    "torch-cuda": "PyPI's torch with CUDA, for Linux",
    "torch-cpu": "PyTorch's CPU builds of torch, from https://download.pytorch.org/whl/cpu; PyPI's for macOS",
    "default": "what the trainer imports, but for torch",
    "test": "what the tests use beyond default.txt",
    "test-sources": "what the tests use and has no wheel: install it after test.txt, without build isolation",
    "extras": "what the other extras use beyond test.txt: install it without build isolation, for some have no wheel",
    "csx": "the CS-2 environment, whole",
}
Blocks = Mapping[str, str]  # a lock's lines by package


def normalize(name: str) -> str:
    """A package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> dict[str, str]:
    """The versions that a file of constraints or a lock pins, by package; PyTorch's `+cpu` is left out.

    Raises:
        UserError: a package is pinned twice, to different versions.
    """
    found: dict[str, str] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\+]+)", text, re.M):
        if found.setdefault(normalize(name), version) != version:
            raise UserError(f"{name}: is pinned to {found[normalize(name)]} and to {version}")
    return found


def split(text: str) -> dict[str, str]:
    """A lock's blocks by package: the line with the version, and those with its hashes."""
    return {normalize(re.split("==", b)[0]): b for b in re.findall(r"^\S+==.*\n(?: .*\n)*", text, re.M)}


def compile_lock(*words: str) -> str:
    """What uv prints.

    Raises:
        UserError: uv is not here, or the pins do not fit each other; in its words.
    """
    fixed = ("--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--no-config", "-q")
    try:
        done = subprocess.run(
            ["uv", "pip", "compile", *words, *fixed],
            capture_output=True, encoding="utf-8", cwd=REPO,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError("uv is not here: pip install uv") from None
    if done.returncode:
        raise UserError(" ".join(done.stderr.split()))
    return done.stdout


def check_pins(pins: Mapping[str, str], blocks: Iterable[str], where: str) -> None:
    """Check that what was resolved is what is pinned.

    Raises:
        UserError: names what is pinned and not needed, or needed and not pinned.
    """
    if missing := sorted(set(blocks) - set(pins)):
        raise UserError(f"{where}: pin these too, on which others depend: {', '.join(missing)}")
    if idle := sorted(set(pins) - set(blocks)):
        raise UserError(f"{where}: nothing needs {', '.join(idle)}; remove the pins")


def list_cpu_wheels(page: str, version: str) -> list[str]:
    """The hashes of PyTorch's CPU wheels of a version, from the page of its index."""
    return sorted(set(re.findall(rf"torch-{re.escape(version)}(?:%2B|\+)cpu-[^\"#]*#sha256=([0-9a-f]{{64}})", page)))


def lock_cpu_torch(version: str, block: str, index: str, before: str) -> str:
    """The lines for PyTorch's CPU builds; those that are there already where the index does not answer.

    Raises:
        UserError: it does not, and those are of another version.
    """
    try:
        with urllib.request.urlopen(index, timeout=60) as answer:
            hashes = list_cpu_wheels(answer.read(2**24).decode(), version)
    except (urllib.error.URLError, TimeoutError) as e:
        if f"torch=={version}+cpu" not in before:
            raise UserError(f"{index}: does not answer ({e}), and torch-cpu.txt has no torch {version}") from None
        print(f"note       {index} does not answer ({e}); torch-cpu.txt stays as it is", file=sys.stderr)
        return "".join(re.findall(r"^torch==.*\n(?: .*\n)*", before, re.M))
    if not hashes:
        raise UserError(f"{index}: lists no CPU wheel of torch {version}")
    cpu, other = f"torch=={version}+cpu ; sys_platform != 'darwin'", f"torch=={version} ; sys_platform == 'darwin'"
    lines = " \\\n".join([cpu, *(f"    --hash=sha256:{h}" for h in hashes)])
    return f"{lines}\n" + block.replace(f"torch=={version}", other, 1)


def share_out(blocks: Blocks, default: Iterable[str], test: Iterable[str]) -> dict[str, dict[str, str]]:
    """Each block in the one file that it belongs to, by file."""
    found: dict[str, dict[str, str]] = {
        name: {} for name in ("torch-cuda", "default", "test", "test-sources", "extras")
    }
    for name, block in sorted(blocks.items()):
        if CUDA.fullmatch(name):
            found["torch-cuda"][name] = block
        elif name in SOURCES:
            found["test-sources"][name] = block
        else:
            found["default" if name in default else "test" if name in test else "extras"][name] = block
    return found


def write(name: str, text: str) -> None:
    """Write one lock."""
    LOCKS.mkdir(exist_ok=True)
    head = f"# {FILES[name]}.\n# Made by scripts/lock.py from constraints{'-csx' * (name == 'csx')}.txt: change that.\n"
    (LOCKS / f"{name}.txt").write_text(head + text, encoding="utf-8")
    print(f"wrote      locks/{name}.txt: {len(split(text))} packages, {text.count('--hash')} files")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--torch_index", default=CPU_INDEX, metavar="URL", help="the page that lists PyTorch's CPU wheels")
    args = p.parse_args()
    pins = {
        name: read_pins((REPO / f"{name}.txt").read_text(encoding="utf-8"))
        for name in ("constraints", "constraints-csx")
    }
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder, "build.in")
        build.write_text(f"{BUILD}\n", encoding="utf-8")
        versions = ("-c", "constraints.txt")
        blocks = split(compile_lock("setup.py", str(build), "--all-extras", "--generate-hashes", *versions))
        check_pins(pins["constraints"], blocks, "constraints.txt")
        default = split(compile_lock("setup.py", *versions))
        test = split(compile_lock("setup.py", str(build), "--extra", "test", *versions))
    for name, of in share_out(blocks, default, test).items():
        write(name, "".join(of.values()))
    cpu = LOCKS / "torch-cpu.txt"
    before = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    write("torch-cpu", lock_cpu_torch(pins["constraints"]["torch"], blocks["torch"], args.torch_index, before))
    csx = split(compile_lock("constraints-csx.txt", "--no-deps", "--generate-hashes"))
    check_pins(pins["constraints-csx"], csx, "constraints-csx.txt")
    write("csx", "".join(csx.values()))


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "run it again"))
