"""What scoring left on disk: it says what it was made from; what is damaged is named, kept, and made again."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest

from modelzoo.evaluation.scores.results import add_check, is_unchanged, leave_out_undefined
from modelzoo.scoring import prompt_search
from modelzoo.scoring.load_model import REASONS, read_decontamination
from tests.scoring.test_prompt_search import run as search
from tests.scoring.test_prompt_search import templates  # noqa: F401 a fixture
from tests.scoring.test_score import evaluate, results
from tests.support import config


def test_a_damaged_table_of_scores_is_kept_and_begun_anew(world, tmp_path, capsys):
    assert evaluate(world, tmp_path, "--checkpoint_path", world / "run") == 0
    path = tmp_path / "evaluation" / "results.json"
    whole = path.read_bytes()
    made = results(tmp_path)["task"][0]["made_from"]
    assert {len(made["config"]), len(made["checkpoint"])} == {64} and set(made["data"]) == {"task", "test"}
    for number, damage in enumerate((whole[:100], b"\xff", b"[]", b'{"tasks": {"a": 3}}', b"[" * 5000), 1):
        path.write_bytes(damage)
        assert evaluate(world, tmp_path, "--checkpoint_path", world / "run") == 0
        assert (tmp_path / "evaluation" / f"results.json.damaged_{number}").read_bytes() == damage
        assert capsys.readouterr().err.count("damaged    ") == 1 and "task" in results(tmp_path)


def test_a_damaged_candidate_is_scored_again_and_others_examples_are_others(
    world, tmp_path, templates, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    out, calls, whole = tmp_path / "found", [], prompt_search.evaluate_task
    monkeypatch.setattr(prompt_search, "evaluate_task", lambda *a, **k: calls.append(1) or whole(*a, **k))
    assert search(world, out, templates) == 0
    first = (out / "results.json").read_bytes()
    path = sorted((out / "candidates").iterdir())[0]
    text = path.read_bytes()
    damages = [
        text[:50],
        b"null",
        b"\xff",
        text.replace(b"accuracy", b"accuracx"),
        text.replace(b'"golds"', b'"silver"'),
    ]
    for number, damage in enumerate(damages, 1):
        path.write_bytes(damage)
        assert search(world, out, templates) == 0
        assert len(calls) == 3 + number and path.read_bytes() == text
        assert (out / "results.json").read_bytes() == first
        assert capsys.readouterr().err.count("damaged    ") == 1
    shutil.copytree(world / "tasks", tmp_path / "tasks")  # the same ids, other words
    dev = tmp_path / "tasks" / "dev.jsonl"
    dev.write_text(dev.read_text().replace('"question": "', '"question": "so ', 1))
    calls.clear()
    assert search(world, out, templates, "--data_dir", tmp_path / "tasks") == 0
    assert len(calls) == 3


@pytest.mark.parametrize(
    "text", ["", "[]", '{"config": 3}', '{"config": {"filters": {"decontaminate": "all"}}}', "\xff"]
)
def test_a_damaged_record_of_decontamination_is_named_and_is_none(tmp_path, text, capsys):
    (tmp_path / "job.json").write_text(text)
    whole = config()
    loader = whole.trainer.fit.train_dataloader.model_copy(update={"data_dir": (str(tmp_path / "train"),)})
    fit = whole.trainer.fit.model_copy(update={"train_dataloader": loader})
    whole = whole.model_copy(update={"trainer": whole.trainer.model_copy(update={"fit": fit})})
    assert read_decontamination(whole) is None
    assert "job.json" in capsys.readouterr().err


def test_decontamination_holds_for_all_folders_or_is_none_of_the_data(tmp_path):
    def find(*sets: list[str]) -> dict | None:
        for number, of in enumerate(sets):
            top = tmp_path / f"d{number}"
            top.mkdir(exist_ok=True)
            (top / "job.json").write_text(json.dumps({"config": {"filters": {"decontaminate": of}}}))
            (top / "manifest.json").write_text(json.dumps({"reasons": {"benchmark_pmid": 4}}))
        folders = tuple(str(tmp_path / f"d{number}" / "train") for number in range(len(sets)))
        loader = config().trainer.fit.train_dataloader.model_copy(update={"data_dir": folders})
        fit = config().trainer.fit.model_copy(update={"train_dataloader": loader})
        return read_decontamination(SimpleNamespace(trainer=SimpleNamespace(fit=fit)))

    assert find(["a", "b"]) == {"test_sets": ["a", "b"], "ngram": 0, "dropped": {REASONS[0]: 4, REASONS[1]: 0}}
    both = find(["a", "b"], ["b", "c"])
    assert both["test_sets"] == ["b"] and both["dropped"][REASONS[0]] == 8
    half = find(["a", "b"], [])
    assert half["unrecorded"] == [str(tmp_path / "d1")] and find([], []) is None


def test_results_hold_no_number_that_json_has_not():
    value = {"a": math.nan, "b": (1.0, math.inf), "c": [1.0, math.nan, (2, 3)], "d": {"e": -math.inf, "f": 0}}
    found = leave_out_undefined(value)
    assert found == {"c": [1.0, None, [2, 3]], "d": {"f": 0}}
    json.dumps(found, allow_nan=False)
    checked = add_check(found)
    assert is_unchanged(json.loads(json.dumps(checked))) and is_unchanged(found)
    assert not is_unchanged({**checked, "c": [1.0, None, [2, 4]]})
