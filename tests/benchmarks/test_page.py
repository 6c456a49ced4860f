"""benchmarks/page.py measures the machine's class, keeps what has finished, and writes the page once."""

import json
import os
import sys

import pytest

from modelzoo.kernels import processor

GOOD = """import os, sys
print("P,", os.environ.get("MEDISWIFT_PROCESSOR"), "1 cores, 1 threads, torch 1")
print("new", sys.argv[1:], os.environ.get("ATEN_CPU_CAPABILITY"))
open("calls", "a").write(sys.argv[1] + " ")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, bench):
    """A repository with three blocks, on a machine that is AVX-512 with bf16."""
    page, block = bench.page, bench.blocks.Block
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "good.py").write_text(GOOD)
    (tmp_path / "page.md").write_text("# Title\n")
    blocks = (
        block("one", "First.", "benchmarks/good.py 1", "float32"),
        block("two", "Second.", "benchmarks/good.py 2", "bfloat16"),
        block("three", "Third.", "benchmarks/good.py 3", peers=True),
    )
    monkeypatch.setattr(page, "REPO", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "KEPT", tmp_path / "build" / "page")
    for module in (page, bench.sections):
        monkeypatch.setattr(module, "BLOCKS", blocks)
    for module in (processor, bench.forced, page):
        monkeypatch.setattr(module, "native_class", lambda: "avx512_bf16")
    names = (processor.SWITCH, *bench.forced.TORCH, *bench.blocks.PEERS.values())
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in names})
    return tmp_path


@pytest.fixture
def run(folder, bench, monkeypatch):
    """Run page.py with these arguments; returns its exit code."""

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["page.py", *words])
        with pytest.raises(SystemExit) as end:
            bench.program.run(bench.page.main)
        return end.value.code

    return call


def found(bench, folder) -> dict:
    """The page's sections."""
    return bench.sections.sections((folder / "page.md").read_text())


def calls(folder) -> list[str]:
    return (folder / "calls").read_text().split() if (folder / "calls").exists() else []


def test_all_blocks_are_measured_into_the_classes_section(run, folder, bench):
    assert run() == 0 and calls(folder) == ["1", "2", "3"]
    ((key, blocks),) = found(bench, folder).items()
    assert key == ("avx512_bf16", False) and list(blocks) == ["one", "two", "three"]
    assert "new ['2'] None" in blocks["two"].output and blocks["two"].command == "benchmarks/good.py 2"
    assert not list((folder / "build" / "page").iterdir())  # nothing is left of it


def test_only_measures_those_and_keeps_the_others(run, folder, bench):
    run()
    before = found(bench, folder)[("avx512_bf16", False)]
    (folder / "benchmarks" / "good.py").write_text(GOOD.replace("new", "newer"))
    assert run("--only", "two") == 0 and calls(folder) == ["1", "2", "3", "2"]
    after = found(bench, folder)[("avx512_bf16", False)]
    assert "newer" in after["two"].output and {**after, "two": before["two"]} == before


def test_a_failure_leaves_its_block_and_is_reported(run, folder, bench, capsys):
    run()
    before = found(bench, folder)[("avx512_bf16", False)]
    (folder / "benchmarks" / "good.py").write_text(
        GOOD.replace("new", "newer") + "if sys.argv[1] == '2': raise SystemExit(1)\n"
    )
    assert run() == 1 and "two" in capsys.readouterr().err
    after = found(bench, folder)[("avx512_bf16", False)]
    assert after["two"] == before["two"] and "newer" in after["one"].output and "newer" in after["three"].output


def test_an_interrupted_run_leaves_the_page_and_goes_on(run, folder, bench, monkeypatch, capsys):
    real = bench.page.measured

    def stopped(words: str) -> str | None:
        if words.endswith("2"):
            raise KeyboardInterrupt
        return real(words)

    monkeypatch.setattr(bench.page, "measured", stopped)
    assert run() == 130
    assert (folder / "page.md").read_text() == "# Title\n" and "goes on" in capsys.readouterr().err
    monkeypatch.setattr(bench.page, "measured", real)
    assert run("--only", "three") == 0  # another request in between leaves what waits
    assert list(found(bench, folder)[("avx512_bf16", False)]) == ["three"]
    assert run() == 0 and calls(folder) == ["1", "3", "2", "3"]
    assert list(found(bench, folder)[("avx512_bf16", False)]) == ["one", "two", "three"]


def test_again_measures_what_had_finished(run, folder, bench, monkeypatch):
    finished = bench.page.Finished(bench.sections.Key("avx512_bf16"), again=False)
    finished.keep(bench.sections.Measured("one", "2020-01-01", "benchmarks/good.py 1", "old\n"))
    assert run("--only", "one") == 0 and calls(folder) == []
    assert found(bench, folder)[("avx512_bf16", False)]["one"].date == "2020-01-01"
    finished.keep(bench.sections.Measured("one", "2020-01-01", "benchmarks/good.py 1", "old\n"))
    assert run("--only", "one", "--again") == 0 and calls(folder) == ["1"]


def test_what_waits_of_another_command_or_machine_is_not_taken(run, folder, bench, capsys):
    finished = bench.page.Finished(bench.sections.Key("avx512_bf16"), again=False)
    finished.keep(bench.sections.Measured("one", "2020-01-01", "benchmarks/good.py --other", "old\n"))
    assert run("--only", "one") == 0 and calls(folder) == ["1"]
    finished.keep(bench.sections.Measured("one", "2020-01-01", "benchmarks/good.py 1", "old\n"))
    stored = json.loads(finished.path.read_text())
    finished.path.write_text(json.dumps(stored | {"machine": "Elsewhere"}))
    assert run() == 2 and "Elsewhere" in capsys.readouterr().err


def test_blocks_that_nothing_measures_any_more_go_with_a_whole_run(run, folder, bench, capsys):
    s, key = bench.sections, bench.sections.Key("avx512_bf16")
    gone = s.Measured("gone", "2020-01-01", "benchmarks/good.py 0", "P\n", "Its own words.")
    (folder / "page.md").write_text(s.write_section("# Title\n", key, {"gone": gone}))
    assert run("--only", "one") == 0
    assert list(found(bench, folder)[key]) == ["one", "gone"] and "Its own words." in (folder / "page.md").read_text()
    assert run() == 0 and "left out: gone" in capsys.readouterr().out
    assert list(found(bench, folder)[key]) == ["one", "two", "three"]


def test_as_holds_the_children_to_a_class_in_a_section_of_its_own(run, folder, bench):
    run()
    before = (folder / "page.md").read_text().partition("## AVX-512 with bf16\n")[2]
    assert run("--as", "avx2") == 0
    sections = found(bench, folder)
    assert list(sections) == [("avx2", True), ("avx512_bf16", False)]
    blocks = sections[("avx2", True)]
    assert list(blocks) == ["one", "three"]  # this class does not multiply bfloat16
    assert "P, avx2" in blocks["one"].output and "['1'] avx2" in blocks["one"].output
    assert (folder / "page.md").read_text().partition("## AVX-512 with bf16\n")[2] == before


def test_the_machines_own_class_is_not_forced(run, folder, bench):
    assert run("--as", "avx512_bf16", "--only", "one") == 0
    ((key, blocks),) = found(bench, folder).items()
    assert not key.forced and "P, None" in blocks["one"].output


@pytest.mark.parametrize("words,environment,message", [
    (["--as", "amx"], {}, "this machine's class is avx512_bf16"),
    (["--as", "neon"], {}, "it can be measured as avx2, avx512"),
    (["--as", "AVX2"], {}, "it can be measured as avx2, avx512"),
    ([], {"MEDISWIFT_PROCESSOR": "plain"}, "MEDISWIFT_PROCESSOR=plain"),
    ([], {"MEDISWIFT_PROCESSOR": "amx"}, "MEDISWIFT_PROCESSOR=amx"),
    ([], {"ATEN_CPU_CAPABILITY": "avx2"}, "use --as"),
    (["--as", "avx2"], {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "ONEDNN_MAX_CPU_ISA=AVX512_CORE"),
    (["--only", "thre"], {}, "did you mean three?"),
    (["--only", "zzz"], {}, "there are one, two, three"),
    (["--as", "avx2", "--only", "two"], {}, "does not multiply bfloat16"),
    (["--write", "--only", "one"], {}, "--write"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_line(run, folder, monkeypatch, capsys, words, environment, message):
    monkeypatch.setattr(os, "environ", os.environ | environment)
    assert run(*words) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.startswith("error: ") and captured.count("\n") == 1
    assert calls(folder) == [] and (folder / "page.md").read_text() == "# Title\n"


def test_peers_take_part_where_their_variables_are_set(run, folder, bench, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", os.environ | {"NANOGPT": "/some where"})
    assert run("--only", "three") == 0
    block = found(bench, folder)[("avx512_bf16", False)]["three"]
    assert block.command == "benchmarks/good.py 3 --nanogpt $NANOGPT"
    assert "['3', '--nanogpt', '/some where']" in block.output
    assert "LITGPT_PYTHON, CSX_PYTHON not set" in capsys.readouterr().out


def test_write_makes_the_page_from_its_blocks(run, folder, bench):
    run()
    page = (folder / "page.md").read_text()
    (folder / "page.md").write_text(page.replace("First.", "Someone's words: 9.99x."))
    assert run("--write") == 0 and (folder / "page.md").read_text() == page
    assert calls(folder) == ["1", "2", "3"]


def test_a_weak_machine_runs_no_block_in_bfloat16(bench, monkeypatch):
    for name, more in (("avx2", set()), ("avx512", set()), ("amx", {"bfloat16"})):
        monkeypatch.setattr(processor, "native_class", lambda name=name: name)
        monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != processor.SWITCH})
        assert {b.dtype for b in bench.page.choose_blocks(None)} == {"float32", None} | more
    for block in bench.page.choose_blocks(None):
        assert block.dtype is None or f"--dtype {block.dtype}" in block.command
