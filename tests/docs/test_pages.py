"""Documentation that holds: every link leads somewhere, every command is one, and the reference is the schema."""

import re
import shlex
import subprocess
import sys

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli, verbs
from modelzoo.kernels.processor import TITLES
from tests.docs import pages
from tests.docs.pages import PAGES, REPO

name = lambda page: str(page.relative_to(REPO))
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
        if words[1] in verbs.VERBS:
            import argparse

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


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 40


def test_the_reference_is_the_schemas():
    """`make docs` writes it anew."""
    script = [sys.executable, str(REPO / "scripts" / "reference.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr


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
