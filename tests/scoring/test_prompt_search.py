"""`run.py prompt-search`: every candidate scored once, ranked, compared in pairs, and not scored again."""

import hashlib
import json

import pytest

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.task import Template
from modelzoo.evaluation.forms.load import load_task
from modelzoo.scoring import prompt_search
from tests.tasks_at_hand import SINGLE

OTHER = SINGLE.replace(', "not": "not"', "").replace("maybe so", "maybe").replace("Answer:", "So:")


@pytest.fixture
def templates(world, tmp_path):
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "other.yaml").write_text(OTHER + 'alternatives: [{"yes": "aspirin", "no": "fever"}]\n')
    return folder


def run(world, out, templates, *more) -> int:
    argv = ["prompt-search", world / "run", "--task", world / "task.yaml", "--templates", templates, "-o", out, *more]
    return main([str(a) for a in argv])


def test_scores_of_one_arithmetic_are_not_taken_for_anothers(world, tmp_path, templates, act_as, capsys):
    (tmp_path / "c.yaml").write_text((world / "c.yaml").read_text().replace("{enabled: false}", "{enabled: true}"))
    ask = ("--target", "CPU", "-p", tmp_path / "c.yaml")
    for name, dtype, files in (("avx2", "float32", 3), ("avx512", "float32", 3), ("amx", "bfloat16", 6)):
        act_as(name)
        assert run(world, tmp_path / "found", templates, *ask) == 0
        err = capsys.readouterr().err
        assert f"), {dtype}\n" in err and ("bfloat16 was asked for" in err) == (dtype == "float32")
        assert len(list((tmp_path / "found/candidates").iterdir())) == files


def test_candidates_are_ranked_compared_and_written(world, tmp_path, templates, capsys):
    out = tmp_path / "found"
    assert run(world, out, templates, "--target", "CPU") == 0
    printed = capsys.readouterr().out
    ranked = json.loads((out / "results.json").read_text())
    assert {r["name"] for r in ranked} == {"template", "other", "other (aspirin, fever)"}
    scores = [r["metrics"]["accuracy"] for r in ranked]
    assert scores == sorted(scores, reverse=True)
    own = next(r for r in ranked if r["name"] == "template")
    assert "difference" not in own
    for r in ranked:
        if r is not own:
            change, low, high = r["difference"]
            assert change == pytest.approx(r["metrics"]["accuracy"] - own["metrics"]["accuracy"])
            assert low <= change <= high
    best = load(out / "best.yaml", Template)
    assert best.labels == ranked[0]["labels"]
    assert "wrote" in printed and "next" in printed and "flattered" in printed
    # A template that is evaluated by itself scores what the search says of it.
    argv = [
        "CPU",
        "-p",
        world / "run/config.yaml",
        "-m",
        "score",
        "-o",
        tmp_path,
        "--checkpoint_path",
        world / "run",
    ]
    (tmp_path / "again.yaml").write_text(f"extends: {world / 'task.yaml'}\ntemplate: {out / 'best.yaml'}\n")
    assert main([str(a) for a in [*argv, "--tasks", tmp_path / "again.yaml", "--split", "dev"]]) == 0
    alone = json.loads((tmp_path / "evaluation/results.json").read_text())["tasks"]["again"][0]
    assert alone["metrics"] == pytest.approx(ranked[0]["metrics"])


def test_a_search_goes_on_with_what_is_missing(world, tmp_path, templates, monkeypatch, capsys):
    out, calls = tmp_path / "found", []
    whole = prompt_search.evaluate_task

    def counted(model, backend, task, *more, **named):
        calls.append(task.template.source)
        if len(calls) == 2:
            raise UserError("killed")
        return whole(model, backend, task, *more, **named)

    monkeypatch.setattr(prompt_search, "evaluate_task", counted)
    assert run(world, out, templates) == 2
    assert not (out / "results.json").exists()
    assert run(world, out, templates) == 0
    assert len(calls) == 4  # one before the end, one that was killed, two afterwards
    first = (out / "results.json").read_text()
    assert run(world, out, templates) == 0
    assert len(calls) == 4 and (out / "results.json").read_text() == first
    (templates / "other.yaml").write_text(OTHER.replace("So:", "Thus:"))
    assert run(world, out, templates) == 0
    assert len(calls) == 5  # a changed template is another candidate


def test_bad_candidates_are_one_line(world, tmp_path, templates, capsys):
    (templates / "other.yaml").write_text(OTHER + 'alternatives: [{"perhaps": "x"}]\n')
    assert run(world, tmp_path / "found", templates) == 2
    assert "other.yaml: alternatives: 'perhaps' is no label" in capsys.readouterr().err
    (templates / "template.yaml").write_text(OTHER)
    (templates / "other.yaml").unlink()
    assert run(world, tmp_path / "found", templates) == 2
    assert "two candidates are called template" in capsys.readouterr().err


def test_bundled_templates_are_candidates_of_their_tasks():
    found = prompt_search.list_candidates(load_task("configs/eval/pubmedqa.yaml"), ())
    assert found[0].name == "plain" and len(found) >= 5


def test_weights_in_several_files_count_with_each_of_them(tmp_path):
    for name, data in {"a": b"1", "b": b"2"}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = set()
    for change in (b"2", b"3"):
        (tmp_path / "b.safetensors").write_bytes(change)
        prompt_search._hash_weights.cache_clear()
        found.add(prompt_search._hash_weights(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"whole")
    prompt_search._hash_weights.cache_clear()
    found.add(prompt_search._hash_weights(str(tmp_path)))
    assert len(found) == 3 and hashlib.sha256(b"whole").hexdigest() in found


def test_a_split_without_labels_is_refused_by_whoever_needs_them(world, tmp_path, templates, capsys):
    """And `-m score` writes its predictions, and says that nothing was scored."""
    rows = [json.dumps({"context": "aspirin", "question": "does it?", "label": None}) for _ in range(3)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    assert run(world, tmp_path / "found", templates, "--target", "CPU", "--data_dir", tmp_path) == 2
    assert "no example of the dev split has a label, so there is nothing to score" in capsys.readouterr().err
    task = load_task(str(world / "task.yaml"), [f"data_dir={tmp_path}"])
    with pytest.raises(UserError, match="no example of the test split has a label"):
        task.labelled(task.examples("test"), "test")
    ask = ["CPU", "-p", world / "c.yaml", "-m", "score", "-o", tmp_path, "--tasks", world / "task.yaml"]
    ask += ["--data_dir", tmp_path, "--checkpoint_path", world / "run"]
    assert main([str(a) for a in ask]) == 0
    assert "no gold answers: predictions were written, nothing was scored" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_rows_without_a_label_change_nothing(world, tmp_path, templates, place):
    """Wherever they stand: each candidate is scored, and compared in pairs, on the labelled rows alone."""
    rows = (world / "tasks/dev.jsonl").read_text().splitlines()
    bare = [
        json.dumps({"id": f"bare-{i}", "context": "aspirin", "question": "does it?", "label": None}) for i in range(5)
    ]
    mixed = {
        "first": bare + rows,
        "between": [x for i, row in enumerate(rows) for x in (*bare[i : i + 1], row)],
        "last": rows + bare,
    }
    found = []
    for name, lines in (("labelled", rows), ("mixed", mixed[place])):
        for split in ("train", "dev", "test"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines))
        out = tmp_path / f"{name}-out"
        assert run(world, out, templates, "--target", "CPU", "--data_dir", tmp_path / name) == 0
        results = json.loads((out / "results.json").read_text())
        found.append([{k: r.get(k) for k in ("name", "golds", "metrics", "intervals", "difference")} for r in results])
        assert all(len(r["golds"]) == len(rows) for r in results)
    assert found[0] == found[1]
