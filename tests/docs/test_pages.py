"""Documentation that holds: every link leads somewhere, every command is one, and the reference is the schema."""

import argparse
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli, modes, verbs
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import resolve, validate
from modelzoo.config.trainer import Config
from modelzoo.kernels.processor import TITLES
from modelzoo.words import complete_words
from tests.docs import pages
from tests.docs.pages import PAGES, REPO

name = lambda page: str(page.relative_to(REPO))
OTHERS = (  # have flags of their own
    r"#SBATCH|sbatch |lm_eval --|llama-cli --|tensorboard --|torchrun --|hf download |docker |conda |pip install "
    r"|extras.txt"
)
TEXTS = [p for p in PAGES if p.name != "reference.md"]  # which is made from the code
COMMANDS = [c for page in PAGES for c in pages.commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_lead_somewhere(page):
    for link in pages.links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        assert target.is_relative_to(REPO), f"{name(page)}: {link} leaves the repository"
        if anchor:
            assert anchor in pages.anchors(target), f"{name(page)}: {link}: no such heading in {name(target)}"


def test_what_users_read_names_no_folder_of_ours():
    """Data is where the user has it: configs, scripts and pages point to nothing outside the folder they work in."""
    rooms = [REPO / room for room in ("configs", "docs", "scripts", "benchmarks", "modelzoo", "data_preprocessing")]
    texts = [p for room in rooms for p in room.rglob("*") if p.suffix in (".yaml", ".md", ".sh", ".py", ".ipynb")]
    found = [name(p) for p in (*texts, *pages.TOP, REPO / "Makefile") if "../shared" in _text(p)]
    assert len(texts) > 300 and found == []


def test_every_page_is_reached_from_the_readme():
    seen, todo = set(), [REPO / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        local = [x.partition("#")[0] for x in pages.links(page) if "://" not in x]
        todo += [p for x in local if x.endswith(".md") and (p := (page.parent / x).resolve()).exists()]
    assert {name(p) for p in PAGES} == {name(p) for p in seen}


def _parse(words: list[str]) -> None:
    """Parse a command line as its program would; SystemExit or UserError where it would refuse."""
    if words[0] == "run.py" or words[0] == "mediswift":
        words = [words[0], *complete_words(words[1:])]
        if words[1] in verbs.VERBS:
            p = argparse.ArgumentParser(allow_abbrev=False)
            verbs.VERBS[words[1]].arguments(p)
            p.parse_args(words[2:])
        else:
            p = cli.parser()
            cli._known_flags(p, words[1:])
            cli._settle_mode(p.parse_args(words[1:]), p)
    else:
        data_cli.parser().parse_args(words[1:])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{name(c.page)}: {c.text[:60]}")
def test_commands_are_commands(command, capsys):
    words = shlex.split(command.text.partition(" > ")[0].partition(" | ")[0].rstrip("& "), comments=True)
    program, rest = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.M)
        assert all(w in targets for w in rest if "=" not in w)
        return
    if program in ("srun", "torchrun"):
        rest = rest[next(i for i, w in enumerate(rest) if w.endswith(("python", ".py"))) :]
        rest = rest[1:] if rest[0] == "python" else rest
    if program.startswith("mediswift"):
        rest = ["run.py" if program == "mediswift" else "data_preprocessing", *rest]
    elif rest[0] == "-m":
        rest = rest[1:]
    if rest[0] in ("run.py", "data_preprocessing"):
        try:
            _parse(rest) if set(rest) & {"--help", "-h"} == set() else None
        except SystemExit:
            pytest.fail(f"{name(command.page)}: {command.text}\n{capsys.readouterr().err}")
    elif rest[0].endswith(".py"):
        assert (REPO / rest[0]).exists(), command
    for word in rest:
        if re.match(r"(configs|scripts|benchmarks)/[\w/.]+\.\w+$", word):
            assert (REPO / word).exists(), f"{name(command.page)}: {word}"


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _parsers() -> list[argparse.ArgumentParser]:
    """Every parser of our programs."""
    found = [cli.parser(), data_cli.parser()]
    for verb in verbs.VERBS.values():
        found.append(argparse.ArgumentParser())
        verb.arguments(found[-1])
    for p in found:  # grows: a parser's verbs are parsers
        subs = [a for a in p._actions if isinstance(a, argparse._SubParsersAction)]
        found += [choice for a in subs for choice in a.choices.values()]
    return found


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_lines_are_short(page):
    """At most 130 characters, but for tables and what programs print."""
    for line in pages.without_fences(page).splitlines():
        assert len(line) <= 130 or line.lstrip().startswith("|"), f"{name(page)}: {len(line)}: {line}"


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_modes_are_modes(page):
    """In sentences, too. An old name may stand only where the new one does."""
    for line in _text(page).splitlines():
        for mode in re.findall(r"(?<!python )(?<![\w-])-m `?(?!is missing)([a-z_]+)", line):
            assert mode in modes.MODES or f"-m {modes.FORMER.get(mode)}" in line, f"{name(page)}: {line}"


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_flags_are_flags(page):
    """Of run.py, its verbs, data_preprocessing, a benchmark or a script; lines of other programs are theirs."""
    known = {flag for p in _parsers() for a in p._actions for flag in a.option_strings}
    for room in ("benchmarks", "scripts", "tests/faults"):
        for file in (REPO / room).glob("*.py"):
            known |= set(re.findall(r'"(--[a-z][\w-]*)"', _text(file)))
    for line in _text(page).splitlines():
        if re.search(OTHERS, line):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
            assert flag in known, f"{name(page)}: {line}"


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_paths_of_this_repository_are_there(page):
    """Files and folders, from the top or, as docs/design.md writes them, from modelzoo/ or the page's folder."""
    bases = (REPO, REPO / "modelzoo", page.parent)
    rooms = {"configs", "docs", *(p.parent.name for p in (*REPO.glob("*/*.py"), *REPO.glob("modelzoo/*/*.py")))}
    for path in re.findall(r"(?<![\w./~-])(?:[\w-]+/)+(?:[\w-]+\.(?:py|sh|yaml|md|svg)\b|(?=`))", _text(page)):
        if path.split("/")[0] in rooms:
            assert any((base / path).exists() for base in bases), f"{name(page)}: {path}"


SETTINGS = [c for c in COMMANDS if "--set" in c.text and re.search(r"-p configs/\S+ -m (?!study)", c.text)]


@pytest.mark.parametrize("command", SETTINGS, ids=lambda c: c.text[-60:])
def test_settings_are_keys(command):
    words = shlex.split(command.text, comments=True)
    given = [b for a, b in itertools.pairwise(words) if a == "--set"]
    doc = resolve(REPO / words[words.index("-p") + 1], Config, given)
    model = resolve(REPO / "configs" / "demo" / "dense.yaml", Config).data["trainer"]["init"]["model"]
    doc.data["trainer"]["init"].setdefault("model", model)  # fine-tuning takes it from a checkpoint
    try:
        validate(doc, Config)
    except UserError as e:  # a page may show a mistake, with what is printed
        assert f"error: {e}" in _text(command.page)


def test_there_are_commands_to_check():
    assert len(SETTINGS) > 4
    assert len(COMMANDS) > 40


def test_the_reference_is_the_schemas():
    """`make docs` writes it anew."""
    script = [sys.executable, str(REPO / "scripts" / "reference.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_has_the_whole_of_a_comment_above_a_key():
    """It had the last line alone: `cuda_graphs` was "takes of memory is kept for the next one"."""
    text = (REPO / "docs" / "reference.md").read_text()
    assert re.search(
        r"`cuda_graphs` .* one GPU: forward and backward are captured .* kept for the next one \|$", text, re.M
    )


def test_every_key_of_the_trainer_stands_in_the_reference():
    """Independent of the script: keys by pydantic's own JSON schema."""
    from modelzoo.config.trainer import Config

    text = (REPO / "docs" / "reference.md").read_text()
    schema = Config.model_json_schema(by_alias=True)
    for title, model in schema["$defs"].items():
        if title.startswith("_") or not re.search(rf"^### {title}$", text, re.M):
            continue
        body = text.split(f"### {title}\n")[1].split("\n### ")[0]
        for key in model.get("properties", {}):
            assert f"`{key}`" in body or f"[{key}]" in body, (title, key)


def test_speed_names_its_class_of_processor():
    """A paragraph or list item that says how many times faster something runs, and links the figures, says on what."""
    said = []
    for page in PAGES:
        for text in re.split(r"\n\n|\n(?=[-*] )", page.read_text(encoding="utf-8")):
            words = " ".join(text.split())
            if "performance.md)" in words and re.search(r"\d(\.\d)? times", words):
                said.append(words)
                assert any(re.search(rf"\b{re.escape(t)}\b", words) for t in TITLES.values()), f"{name(page)}: {words}"
    assert len(said) >= 2
