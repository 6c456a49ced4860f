"""docs/performance.md as text: a section for each class, others byte for byte, and words and table from the figures."""

import itertools
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
REAL = (REPO / "docs" / "performance.md").read_text(encoding="utf-8")
HEAD = "# Title\n\nWords.\n\n```\n## no heading, but output\n```\n"
FIRST = "Some Processor, {title}, 2 cores, 2 threads, torch 9.9, load 0.4\n"


def seconds(**ratios: float) -> dict[str, list[float]]:
    """Times of a base and of contestants with these speeds against it, in three equal rounds."""
    return {name: [1.0 / ratio] * 3 for name, ratio in ratios.items()}


@pytest.fixture
def made(bench):
    """Blocks of a class as the benchmarks print them, from numbers."""

    def step(dtype: str, width: int, **ratios: float) -> str:
        times = seconds(dense=1.0, **ratios)
        table = bench.harness.table(times, "dense", 1024, "tokens", dict.fromkeys(times, 8e8), 1e9)
        return f"6 layers x {width}, T=256, V=16384, batch 4, {dtype}\n{table}\n"

    def linear(dtype: str, tokens: int, forward: float, backward: float) -> str:
        module = bench.linear
        rows = [("forward", forward), ("all", 1.11), ("backward", backward)]
        lines = [module.total_line(0.75, part, "[32, 32]", ratio, ratio, ratio) for part, ratio in rows]
        return "\n".join(["", module.total_title([(64, 64)], tokens, dtype), *lines]) + "\n"

    def peers(dtype: str, raw: float, trainer: float, static: float, rigl: float) -> str:
        module = bench.train_step
        lines = [module.mask_line("static", static / 100, 0.0, 1.0), module.mask_line("RigL", rigl / 100, 0.5, 1.0)]
        lines += [module.peer_line(raw, "HF raw loop"), module.peer_line(trainer, "HF Trainer")]
        return f"6 layers x 384, T=256, V=16384, batch 8, {dtype}\n" + "\n".join(lines) + "\n"

    def block(name: str, output: str, title: str = "AVX2", date: str = "2026-01-02"):
        return bench.sections.Measured(name, date, "benchmarks/x.py --flag", FIRST.format(title=title) + output)

    made = lambda *blocks: {b.name: b for b in blocks}
    made.step, made.linear, made.peers, made.block = step, linear, peers, block
    return made


def one(made, ratio: float = 1.94) -> dict:
    return made(made.block("step-float32", made.step("float32", 768, **{"75% 32x32": ratio})))


def rows(page: str) -> dict[tuple[str, str], dict[str, str]]:
    """The table by class and arithmetic."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {(cells[0], cells[1]): dict(zip(lines[0][2:], cells[2:])) for cells in lines[2:]}


@pytest.mark.parametrize("page", [HEAD, REAL, "", "no end of line", "## A\n## B\n", "```\n## in\n"])
def test_the_parts_are_the_page(bench, page):
    assert "".join(bench.sections.split(page)) == page


def test_fenced_output_is_no_heading(bench):
    assert len(bench.sections.split(HEAD + "\n## One\n\ntext\n")) == 2


def test_other_sections_stay_byte_for_byte(bench, made):
    s = bench.sections
    page = HEAD + "\n## By hand\n\nodd   spaces \n\n"
    for key in s.KEYS[:-1:2]:
        page = s.write_section(page, key, one(made))
    before = {part.partition("\n")[0]: part.rstrip("\n") for part in s.split(page)}
    for key in s.KEYS:
        parts = {
            part.partition("\n")[0]: part.rstrip("\n") for part in s.split(s.write_section(page, key, one(made, 2)))
        }
        changed = {f"## {key.heading}", f"## {s.COMPARED}"}
        assert {h: p for h, p in parts.items() if h not in changed} == {
            h: p for h, p in before.items() if h not in changed
        }


def test_sections_stand_weakest_first_however_they_came(bench, made):
    s = bench.sections
    keys = [s.Key("avx2"), s.Key("avx2", True), s.Key("avx512"), s.Key("amx")]
    pages = set()
    for order in itertools.permutations(keys):
        page = HEAD
        for key in order:
            page = s.write_section(page, key, one(made))
        pages.add(page)
    assert len(pages) == 1
    headings = [p.partition("\n")[0] for p in s.split(page)[1:]]
    assert headings == [
        "## Classes compared", "## AVX2", "## AVX2, forced", "## AVX-512", "## AVX-512 with bf16 and AMX",
    ]  # fmt: skip


def test_writing_what_is_there_changes_nothing(bench, made):
    s = bench.sections
    page = s.write_section(s.write_section(HEAD, s.Key("amx"), one(made)), s.Key("avx2", True), one(made))
    for key, blocks in s.sections(page).items():
        assert blocks == one(made)
        assert s.write_section(page, key, blocks) == page
    assert s.write_table(page) == page


def test_the_real_page_is_what_its_blocks_make_it(bench):
    """Nobody has edited its sections by hand: `python benchmarks/page.py --write` writes them."""
    s = bench.sections
    found = s.sections(REAL)
    assert found and s.write_table(REAL) == REAL
    for key, blocks in found.items():
        assert s.write_section(REAL, key, blocks) == REAL
        fences = sum(part.count("\n$ python ") for part in s.split(REAL) if part.startswith(f"## {key.heading}\n"))
        assert fences == len(blocks) > 0
        for block in blocks.values():
            assert (REPO / block.command.split()[0]).exists()


def test_what_it_says_of_a_section_is_in_its_blocks(bench):
    for blocks in bench.sections.sections(REAL).values():
        outputs = [b.output for b in blocks.values()]
        words = [line for line in bench.figures.summarize(outputs) if "torch.compile" not in line]  # a quotient
        figures = re.findall(r"\d+\.\d\dx", " ".join(words))
        assert figures and all(figure in "".join(outputs) for figure in figures)


def test_the_table_is_made_of_the_sections(bench, made):
    s = bench.sections
    blocks = made(
        made.block("step-bf16", made.step("bfloat16", 768, **{"75% 32x32": 1.7, "75% unstructured": 1.3})),
        made.block("wide-bf16", made.step("bfloat16", 1536, **{"75% 32x32": 2.4})),
        made.block("linear-bf16", made.linear("bfloat16", 1024, 2.9, 3.1)),
        made.block("linear-bf16-2048", made.linear("bfloat16", 2048, 9.9, 9.9)),
        made.block("peers-bf16", made.peers("bfloat16", 1.49, 1.47, 0.28, -0.02)),
    )
    page = s.write_section(HEAD, s.Key("amx"), blocks)
    page = s.write_section(page, s.Key("avx2"), one(made))
    table = rows(page)
    assert set(table) == {
        ("AVX2", "float32"), ("AVX-512 with bf16 and AMX", "float32"), ("AVX-512 with bf16 and AMX", "bfloat16"),
    }  # fmt: skip
    assert list(table["AVX-512 with bf16 and AMX", "bfloat16"].values()) == [
        "1.49x", "1.47x", "1.70x", "2.40x", "1.30x", "2.90x", "3.10x", "0.28 %", "-0.02 %",
    ]  # fmt: skip
    assert set(table["AVX-512 with bf16 and AMX", "float32"].values()) == {"not measured"}
    weak = table["AVX2", "float32"]
    assert weak.pop("75 % 32x32, width 768") == "1.94x" and set(weak.values()) == {"not measured"}
    absent = re.search(r"No figures yet from: (.*)\.", page)[1].split(", ")
    assert absent == ["Arm", "Arm with bf16", "AVX-512", "AVX-512 with bf16"]


def test_mask_keeping_that_was_timed_otherwise_does_not_count(bench):
    head = "6 layers x 384, T=256, V=16384, batch 8, float32\n"
    assert not bench.figures.read([head + "static: keeping masks 20.72 ms a step, 2.77% of a dense step"]).masks
    new = "static: keeping masks adds 2.00 ms to a step, 0.27% of a dense step"
    assert bench.figures.read([head + new]).masks == {("float32", 384, "static"): 0.27}


def test_the_older_name_of_a_pattern_is_read(bench, made):
    output = made.step("bfloat16", 768, **{"75% unstructured": 1.3})
    found = bench.figures.read([output]).steps
    assert found["bfloat16", 768, "75% unstructured"] == 1.3
    assert bench.figures.read([output.replace("unstructured", "single weights")]).steps == found


def test_the_words_follow_the_figures(bench, made):
    s, key = bench.sections, bench.sections.Key("avx2")
    pages = [s.write_section(HEAD, key, one(made, ratio)) for ratio in (1.94, 0.87)]
    assert "1.94x at 75 % off (float32, width 768)" in pages[0] and "1.94x" not in pages[1]
    assert s.write_section(pages[0], key, one(made, 0.87)) == pages[1]


def test_a_forced_section_says_so_and_stands_alone(bench, made):
    s = bench.sections
    page = s.write_section(s.write_section(HEAD, s.Key("avx2"), one(made)), s.Key("avx2", True), one(made, 1.5))
    native, forced = (next(p for p in s.split(page) if p.startswith(h)) for h in ("## AVX2\n", "## AVX2, forced\n"))
    assert "1.94x" in native and "forced" not in native
    for value in ("MEDISWIFT_PROCESSOR=avx2", "ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2"):
        assert value in forced
    assert rows(page)["AVX2, forced", "float32"]["75 % 32x32, width 768"] == "1.50x"


def test_a_section_names_its_machines_and_dates(bench, made):
    s = bench.sections
    blocks = made(
        made.block("linear-float32", "", date="2026-01-02"), made.block("startup", "", date="2026-01-05"),
        s.Measured("step-float32", "2026-02-01", "benchmarks/x.py", "Other, AVX2, 4 cores, 4 threads, torch 9.9\n"),
    )  # fmt: skip
    text = " ".join(s.render(s.Key("avx2"), blocks).split())
    assert "Some Processor, AVX2, 2 cores, 2 threads, torch 9.9; measured 2026-01-02 to 2026-01-05; Other," in text
    assert "Other, AVX2, 4 cores, 4 threads, torch 9.9; measured 2026-02-01." in text


def test_output_cannot_end_its_fence(bench, made):
    s, key = bench.sections, bench.sections.Key("avx2")
    page = s.write_section(HEAD, key, made(made.block("startup", "```\n## Heading\n**`x`** (2026-01-01). y\n")))
    assert list(s.sections(page)) == [key] and list(s.sections(page)[key]) == ["startup"]
    assert s.write_section(page, key, s.sections(page)[key]) == page
