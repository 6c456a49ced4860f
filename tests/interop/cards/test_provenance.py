"""The card's text of others: nothing of it becomes markup, and what is damaged is left out and named."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.interop.cards.markdown import code, escape
from modelzoo.interop.cards.provenance import describe_provenance
from tests.support import config

ATTACKS = [
    "<script>alert(1)</script>", "</code><img src=x onerror=alert(1)>", "\n# Heading", "[a](javascript:alert(1))",
    "![x](http://evil/x.png)", "a | b | c", "`` ` ``", "*bold* _it_ ~~s~~", "---\ntags: x", "<!-- x", "&lt;b&gt;",
    "https://evil.example/x", "www.evil.example", "\u202egnp.exe", "\x1b[31mred", "$x^2$", "- item", "a\r\n\r\n> quote",
]  # fmt: skip


class Tags(HTMLParser):
    """The tags that a browser would see in a text."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))

    def handle_comment(self, data):
        self.found.append(("comment", data))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("attack", ATTACKS)
def test_words_of_others_are_words(attack):
    markdown = pytest.importorskip("markdown_it")
    render = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render
    for line in (f"- by {code(attack)} and {escape(attack)}.", f"| a | b |\n|---|---|\n| {escape(attack)} | x |"):
        page = Tags(render(line))
        assert {t for t, _ in page.found} <= {"ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}, (
            page.found
        )
        assert all(not attrs for _, attrs in page.found)
        assert len([t for t, _ in page.found if t == "td"]) in (0, 2)


@given(st.text(max_size=80))
def test_what_is_escaped_is_one_line_that_reads_as_it_was(text):
    printable = " ".join("".join(c if c.isprintable() else " " * c.isspace() for c in text).split())
    for made in (escape(text), code(text)):
        page = Tags(made)
        assert "\n" not in made and all(t == "code" for t, _ in page.found)
    assert Tags(escape(text)).text.replace(" ", "") == printable.replace(" ", "")


def test_plain_names_stay_as_they_are():
    for text in (
        "macro_f1",
        "runs/s75/checkpoints/step_300",
        "run.py -m finetune -p a.yaml",
        "CC BY-NC 4.0",
        "-0.5 to 1",
    ):
        assert code(text) == f"`{text}`"
    assert escape("macro_f1, CC BY-NC (4.0)") == "macro_f1, CC BY-NC (4.0)"


def write(path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def describe(run, note=lambda line: None) -> str:
    whole = config()
    fit = whole.trainer.fit.model_copy(
        update={"train_dataloader": whole.trainer.fit.train_dataloader.model_copy(
            update={"data_dir": (str(run / "data" / "train"),)})}
    )  # fmt: skip
    return "\n".join(describe_provenance(whole.model_copy(update={
        "trainer": whole.trainer.model_copy(update={"fit": fit})}), str(run), note))  # fmt: skip


def test_a_hostile_report_makes_no_markup_and_no_secret_leaves(tmp_path):
    evil = "<img src=x onerror=alert(1)>\n# Pwned | x"
    write(tmp_path / "data" / "report.json", {
        "manifest": {"records": 3, "data_sha256": evil, "reasons": {evil: 2}}, "languages": {evil: 1},
        "licences": {evil: 1}, "job": {"source": "pubmed", "filters": {"decontaminate": [f"/a/{evil}"]}},
    })  # fmt: skip
    write(tmp_path / "data" / "train" / "manifest.json", {"task": evil, "fold": 0, "counts": {"examples": 2}})
    command = f"run.py CPU --set a.token=SECRET --set trainer.init.backend.mgmt_address=CLUSTER:9 --seed 1 {evil}"
    write(tmp_path / "launches.jsonl", json.dumps({"command": command, "device": evil, "torch": evil}) + "\n[1]\n{}\n")
    split = {"n": 2, "metrics": {evil: 0.5}, "intervals": {evil: [0.1, 0.9]}}
    write(tmp_path / "result.json", {"task": evil, "scores": {evil: split}})
    write(tmp_path / "evaluation" / "results.json", {"tasks": {evil: [split]}})
    card = describe(tmp_path)
    assert {t for t, _ in Tags(card).found} <= {"code"}
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        "## Training data", "## How it was made", "## Evaluation"
    ]  # fmt: skip
    assert all(line.count("|") == 8 for line in card.splitlines() if line.startswith("|"))
    assert "SECRET" not in card and "CLUSTER" not in card and "0.5000" in card


DAMAGED = ["", "{", "[]", "[[[[", '{"tasks": 3}', '{"task": 1, "scores": []}', '{"tasks": {"a": [{}]}}', "\xff", "null"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_left_out_and_named(tmp_path, text):
    for name in (
        "result.json",
        "evaluation/results.json",
        "data/report.json",
        "data/train/manifest.json",
        "launches.jsonl",
    ):
        write(tmp_path / name, text)
    notes = []
    card = describe(tmp_path, notes.append)
    assert "No scores are on record" in card and card.count("not readable, and left out") == len(notes) > 0


def test_a_record_that_cannot_be_opened_is_left_out_and_named(tmp_path):
    for name in ("launches.jsonl", "result.json", "data/report.json"):
        (tmp_path / name).mkdir(parents=True)  # for every user, and root too
    notes = []
    assert describe(tmp_path, notes.append).count("not readable, and left out") == len(notes) == 3
    assert all(any(name in line for line in notes) for name in ("launches.jsonl", "result.json", "data/report.json"))


def test_undefined_scores_of_older_results_are_shown_as_such(tmp_path):
    write(tmp_path / "result.json", '{"task": "t", "scores": {"dev": {"n": 1, "metrics": {"pearson": NaN}, '
          '"intervals": {"pearson": [NaN, NaN]}, "majority": {"pearson": NaN}}}}')  # fmt: skip
    assert "| t | dev | 1 | pearson | undefined |  |  |" in describe(tmp_path)
