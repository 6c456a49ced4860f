"""docs/performance.md holds what its commands printed; contestants in other processes take turns."""

import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

TEXT = """# Title

```
$ python benchmarks/good.py --word $WORD
old
```

between

```
$ python benchmarks/bad.py
stays
```
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import harness
    import page

    return page, harness


@pytest.fixture
def folder(tmp_path, monkeypatch, benchmarks):
    page, _ = benchmarks
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "page.md").write_text(TEXT)
    (tmp_path / "benchmarks" / "good.py").write_text("import sys\nprint('new', sys.argv[1:])\n")
    (tmp_path / "benchmarks" / "bad.py").write_text("print('half')\nraise SystemExit(1)\n")
    monkeypatch.setattr(page, "REPO", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setenv("WORD", "w")
    monkeypatch.setattr(sys, "argv", ["page.py"])
    return tmp_path


def test_output_is_replaced_and_a_failure_leaves_its_block(folder, benchmarks):
    benchmarks[0].main()
    assert (folder / "page.md").read_text() == TEXT.replace("old\n", "new ['--word', 'w']\n")


def test_a_variable_that_is_not_set_leaves_its_block(folder, benchmarks, monkeypatch, capsys):
    monkeypatch.delenv("WORD")
    benchmarks[0].main()
    assert (folder / "page.md").read_text() == TEXT
    assert "$WORD not set" in capsys.readouterr().out


def test_only_picks_commands(folder, benchmarks, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["page.py", "--only", "bad.py"])
    benchmarks[0].main()
    assert (folder / "page.md").read_text() == TEXT


def test_the_real_page_has_blocks(benchmarks):
    page, _ = benchmarks
    commands = [m[1] for m in page.BLOCK.finditer((REPO / "docs" / "performance.md").read_text())]
    assert len(commands) >= 6
    for command in commands:
        assert (REPO / command.split()[0]).exists()


def test_a_worker_steps_when_told(benchmarks, tmp_path):
    _, harness = benchmarks
    log = tmp_path / "log"
    program = (
        f"import sys; sys.path.insert(0, {str(REPO / 'benchmarks')!r}); from harness import serve; print('talk')\n"
        f"serve(lambda: open({str(log)!r}, 'a').write('x'))"
    )
    worker = harness.Worker([sys.executable, "-c", program])
    assert not log.exists()
    for turns in (1, 2, 3):
        worker()
        assert log.read_text() == "x" * turns
    worker.process.stdin.close()
    assert worker.process.wait(timeout=20) == 0


def test_a_worker_that_dies_is_named(benchmarks):
    _, harness = benchmarks
    with pytest.raises(RuntimeError, match="ended with 3"):
        harness.Worker([sys.executable, "-c", "raise SystemExit(3)"])
