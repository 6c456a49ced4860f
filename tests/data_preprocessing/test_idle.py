"""Keys that change nothing in a job's output are reported, each with its line, and really change nothing."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from data_preprocessing import cli
from data_preprocessing.config import Job
from data_preprocessing.idle import CONDITIONS
from tests.data_preprocessing.conftest import make_record, make_set
from tests.data_preprocessing.sources.test_bioc import ARTICLE, collection
from tests.data_preprocessing.sources.test_jats import article

ODD = {  # of each key, a value that is not its default
    "text.labels": "drop", "text.scripts": "plain", "text.other_abstract": "append", "text.vernacular_title": "append",
    "text.brackets": "keep", "newest_by": "date_revised", "text.tables": "text", "text.captions": "keep",
    "text.body": False, "text.citations": "keep", "id_key": "a", "pmid_key": "a", "pmcid_key": "a", "year_key": "a",
    "language_key": "a", "licence_key": "a", "text_key": "a", "prompt_key": "a", "completion_key": "a",
    "objective.too_long": "drop", "objective.tail": "drop", "objective.fim_rate": 0.9, "objective.fim_spm_rate": 0.9,
    "filters.near_permutations": 8, "filters.decontaminate_ngram": 3, "tokenizer.train_megabytes": 3,
    **{f"kinds.{kind}": "mark" for kind in ("retracted", "retraction_notice", "erratum", "concern", "corrected",
                                           "comment")},
}  # fmt: skip
PAIR = {"id": 1, "year": 2001, "prompt": "Is it?", "completion": "Yes."}
INPUTS = {
    "pubmed": ("a.xml", make_set(make_record(1, "[A title]", f"<AbstractText>{'word ' * 40}</AbstractText>"))),
    "pmc": ("a.nxml", article(f"<sec><title>S</title><p>{'word ' * 40}</p></sec>")),
    "bioc": ("a.json", json.dumps(collection(ARTICLE)).encode()),
    "jsonl": ("a.jsonl", json.dumps({**PAIR, "text": "word " * 40}).encode() + b"\n"),
}


def run(folder: Path, source: str, tokenizer: Path, keys: dict, name: str) -> dict[str, str]:
    """The hashes of a job's shards; its file gives `keys`, a line each."""
    job: dict = {"source": source, "msl": 32, "val_fraction": 0, "filters": {"min_chars": 0, "require_abstract": False}}
    job["tokenizer"] = {"path": str(tokenizer)}
    for key, value in keys.items():
        section, _, last = key.rpartition(".")
        (job.setdefault(section, {}) if section else job)[last] = value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
    given = ["--config", f"{folder}/{name}.yaml", "--input", f"{folder}/{INPUTS[source][0]}"]
    words = [source, *given, "--output", f"{folder}/{name}", "--workers", "1", "--quiet"]
    assert cli.main(words) == 0
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / name / "train").glob("*.h5")}


@pytest.mark.parametrize(("source", "objective"), [*((s, "lm") for s in INPUTS), ("jsonl", "prompt_completion")])
def test_what_changes_nothing_is_reported_with_its_line(source, objective, tmp_path, tokenizer, capsys):
    (tmp_path / INPUTS[source][0]).write_bytes(INPUTS[source][1])
    plain = {} if objective == "lm" else {"objective.name": objective}
    expected = run(tmp_path, source, tokenizer, plain, "plain")
    assert expected and "no effect" not in capsys.readouterr().err
    job = Job.model_validate({"source": source, "input": ("a",), "output": "b", "objective": {"name": objective},
                              "tokenizer": {"path": str(tokenizer)}})  # fmt: skip
    idle = {key: value for key, value in ODD.items() if not CONDITIONS[key][0](job)}
    assert run(tmp_path, source, tokenizer, plain | idle, "idle") == expected
    said = capsys.readouterr().err
    lines = (tmp_path / "idle.yaml").read_text().splitlines()
    for key in idle:
        number = next(n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key.rpartition('.')[2]}:"))
        assert f"no effect  {tmp_path}/idle.yaml:{number}: {key}: {CONDITIONS[key][1]}\n" in said
    assert said.count("no effect") == len(idle) > 5


def test_every_condition_is_of_a_key_that_there_is():
    assert CONDITIONS.keys() == ODD.keys()
    for key in CONDITIONS:
        section, _, last = key.rpartition(".")
        fields = type(Job.model_fields[section].default).model_fields if section else Job.model_fields
        assert last in fields and fields[last].default != ODD[key]
