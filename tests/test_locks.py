"""locks/*.txt hold what constraints*.txt pin, each package once and with hashes, and all that the trainer imports."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

from modelzoo.config.errors import UserError
from scripts import lock

NAMES = ("torch-cuda", "default", "test", "test-sources", "extras")


def read(name: str) -> str:
    return (lock.REPO / name).read_text(encoding="utf-8")


def test_pins_and_locks_agree_on_every_version():
    locks = [lock.read_pins(read(f"locks/{name}.txt")) for name in NAMES]
    assert sum(map(len, locks)) == len(set().union(*locks))  # no package is in two
    assert {name: v for of in locks for name, v in of.items()} == lock.read_pins(read("constraints.txt"))
    assert lock.read_pins(read("locks/torch-cpu.txt")) == {"torch": locks[0]["torch"]}
    assert lock.read_pins(read("locks/csx.txt")) == lock.read_pins(read("constraints-csx.txt"))


@pytest.mark.parametrize("path", sorted(lock.LOCKS.iterdir()), ids=lambda p: p.name)
def test_every_package_has_its_hashes_and_nothing_else_is_in_a_lock(path):
    assert path.stem in lock.FILES
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    packages = "\n".join(lines) + "\n"
    package = (
        r"[a-z0-9.-]+==[\w.+]+( ; [^\\\n]+)? \\\n( +--hash=sha256:[0-9a-f]{64} \\\n)* +--hash=sha256:[0-9a-f]{64}\n"
    )
    assert re.fullmatch(f"({package})+", packages)


def test_what_the_trainer_imports_is_in_the_lock_of_the_default_environment():
    """By the metadata of what is installed here; another version than the pinned one may need other packages."""
    pins = lock.read_pins(read("constraints.txt"))
    locked = {"torch", *lock.read_pins(read("locks/default.txt"))}
    todo, walked = [re.split(r"[>=; ]", line)[0] for line in _list_installs()], set()
    while todo:
        name = lock.normalize(todo.pop())
        assert name in locked or lock.CUDA.fullmatch(name)
        if name in walked or importlib.metadata.version(name).partition("+")[0] != pins[name]:
            continue
        walked.add(name)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                todo.append(wanted.name)
    assert len(walked) > 40


def _list_installs() -> list[str]:
    return re.findall(r'"(.*?)"', re.search(r"install_requires=\[(.*?)\n    \]", read("setup.py"), re.S)[1])


def test_each_lock_is_there_and_installed_by_something():
    users = (
        "Makefile",
        "scripts/env-csx.sh",
        "docker/cpu.Dockerfile",
        "docker/cuda.Dockerfile",
        "docs/howto/install.md",
    )
    named = set(re.findall(r"(?<!\w)(?:locks/|`)((?:torch-|test-)?\w+)\.txt", "\n".join(map(read, users))))
    assert named - {"constraints"} == set(lock.FILES) == {p.stem for p in lock.LOCKS.iterdir()}


def test_a_pin_that_is_lacking_idle_or_twice_is_named():
    with pytest.raises(UserError, match="pins: pin these too, on which others depend: b"):
        lock.check_pins({"a": "1"}, ["a", "b"], "pins")
    with pytest.raises(UserError, match="pins: nothing needs c; remove"):
        lock.check_pins({"a": "1", "c": "1"}, ["a"], "pins")
    with pytest.raises(UserError, match="is pinned to 1 and to 2"):
        lock.read_pins("A_b==1\na-B==2 ; sys_platform == 'x'\n")


def test_cpu_builds_come_from_the_index_or_stay(tmp_path, capsys):
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    page = tmp_path / "index.html"
    page.write_text(
        "".join(
            f'<a href="/torch-{version}-cp311-x.whl#sha256={digest}">torch</a>\n'
            for version, digest in (("2.1.0%2Bcpu", b), ("2.1.0+cpu", a), ("2.1.0", c), ("2.1.00%2Bcpu", c))
        )
    )
    block = f"torch==2.1.0 \\\n    --hash=sha256:{c}\n"
    found = lock.lock_cpu_torch("2.1.0", block, page.as_uri(), "")
    assert re.findall(r"sha256:(\w)", found) == ["a", "b", "c"]
    assert [line.partition(" \\")[0] for line in found.splitlines() if line.startswith("torch")] == [
        "torch==2.1.0+cpu ; sys_platform != 'darwin'",
        "torch==2.1.0 ; sys_platform == 'darwin'",
    ]
    away = (tmp_path / "none").as_uri()
    assert lock.lock_cpu_torch("2.1.0", block, away, f"# head\n{found}") == found
    assert "does not answer" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has no torch 3\.0"):
        lock.lock_cpu_torch("3.0", block, away, found)
