"""Multiple choice end to end, against plain log-softmax of whole texts through Hugging Face on the export."""

import json
from random import Random

import numpy as np
import pytest

from modelzoo.cli import main
from modelzoo.evaluation.forms.classification import Classification
from tests import choice_files
from tests.evaluation_world import CONFIG
from tests.ranks import run_ranks

TEXTS = 'source: "Q: {question}\\nAnswer:"\nlabels: {A: "{A}", B: "{B}", C: "{C}", D: "{D}"}\n'
TASK = """
form: choice
template: template.yaml
train: train.jsonl
dev: dev.jsonl
test: test.jsonl
shots: {count: 2, seed: 3}
group_field: kind
"""


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A run of wide weights, whose likelihoods differ, its export, and a task over MedQA's files."""
    folder = tmp_path_factory.mktemp("choice")
    text = CONFIG.replace("DATA", str(world / "data/train")).replace("dropout_rate: 0.0,", "initializer_range: 0.4,", 1)
    (folder / "c.yaml").write_text(
        text.replace("initializer_range: 0.4,", "initializer_range: 0.4, dropout_rate: 0.0,")
    )
    assert main(["CPU", "-p", str(folder / "c.yaml"), "-m", "train", "-o", str(folder / "run")]) == 0
    assert main(["export", str(folder / "run"), str(folder / "exported")]) == 0
    choice_files.write_medqa(folder / "official", Random(8))
    assert main(["prepare-task", "medqa", str(folder / "official"), str(folder / "data")]) == 0
    for split in choice_files.COUNTS:
        rows = [json.loads(line) for line in (folder / f"data/{split}.jsonl").read_text().splitlines()]
        rows = [{**r, "kind": ["one", "two"][i % 2]} for i, r in enumerate(rows)]
        (folder / f"data/{split}.jsonl").write_text(choice_files.lines(rows))
    (folder / "template.yaml").write_text(TEXTS)
    (folder / "task.yaml").write_text(TASK + f"data_dir: {folder / 'data'}\n")
    return folder


def command(place, out, *more) -> list[str]:
    words = ["CPU", "-p", place / "run/config.yaml", "-m", "score", "-o", out, "--tasks", place / "task.yaml", *more]
    return [str(w) for w in words]


def read(out, split="test") -> tuple[dict, list[dict]]:
    (found,) = json.loads((out / "evaluation/results.json").read_text())["tasks"]["task"]
    return found, json.loads((out / f"evaluation/task_{split}.json").read_text())


@pytest.fixture(scope="module")
def scored(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    assert main(command(place, out, "--checkpoint_path", place / "run")) == 0
    return out


def refer(place, length=96) -> list[dict]:
    """By the definition: texts put together by hand, tokenized and run whole, one after the other."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "exported", dtype=torch.float32).eval()
    rows = {s: [json.loads(x) for x in (place / f"data/{s}.jsonl").read_text().splitlines()] for s in ("train", "test")}
    draw, found = Random(3), []
    for row in rows["test"]:
        shots = "".join(f"Q: {r['question']}\nAnswer: {r[r['label']]}\n\n" for r in draw.sample(rows["train"], 2))
        prompt, log_p = f"{shots}Q: {row['question']}\nAnswer:", []
        for letter in "ABCD":
            before, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {row[letter]}")["input_ids"]
            n = len(whole) - len(before)
            ids = torch.tensor([whole[-(length + 1) :]])
            with torch.no_grad():
                logits = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
            log_p.append(sum(float(logits[i - 1, ids[0, i]]) for i in range(ids.shape[1] - n, ids.shape[1])))
        sizes = [1, *([len(row[x].encode(code)) for x in "ABCD"] for code in ("utf-32-le", "utf-8"))]
        picked = ["ABCD"[int(np.argmax(np.array(log_p) / np.array(s)))] for s in sizes]
        found.append({"gold": row["label"], "log_p": log_p, "prediction": picked, "kind": row["kind"]})
    return found


def test_scores_are_those_of_whole_texts_through_hugging_face(place, scored):
    results, mine = read(scored)
    theirs = refer(place)
    for a, b in zip(mine, theirs, strict=True):
        assert list(a["log_p"].values()) == pytest.approx(b["log_p"], abs=1e-4)
        assert a["gold"] == b["gold"] and a["prediction"] == b["prediction"]
    assert np.std([b["log_p"][0] for b in theirs]) > 1 and len({tuple(b["prediction"]) for b in theirs}) > 2
    for i, metric in enumerate(("acc", "acc_norm", "acc_bytes")):
        right = {
            k: [b["prediction"][i] == b["gold"] for b in theirs if b["kind"] in k] for k in ("one", "two", "onetwo")
        }
        assert results["metrics"][metric] == pytest.approx(np.mean(right["onetwo"]))
        for kind in ("one", "two"):
            assert results["groups"][kind]["metrics"][metric] == pytest.approx(np.mean(right[kind]))
        mean = results["groups"]["mean over groups"]["metrics"][metric]
        assert mean == pytest.approx((np.mean(right["one"]) + np.mean(right["two"])) / 2)
    assert results["counts"]["truncated"] > 0 and results["baseline"]["acc"] == results["baseline"]["acc_norm"]


def test_the_export_packed_weights_and_two_ranks_score_as_the_checkpoint_does(place, scored, tmp_path):
    packed = ("run", "--set", "trainer.init.sparsity.0.storage=packed")
    for name, more in (("a", ("exported",)), ("p", packed)):
        assert main(command(place, tmp_path / name, "--checkpoint_path", place / more[0], *more[1:])) == 0
        for mine, theirs in zip(read(scored)[1], read(tmp_path / name)[1], strict=True):
            assert mine["log_p"] == pytest.approx(theirs["log_p"], abs=1e-4)
            assert mine["prediction"] == theirs["prediction"]
    run_ranks(command(place, tmp_path / "b", "--checkpoint_path", place / "run"), 2)
    assert read(scored)[1] == read(tmp_path / "b")[1]


def test_prompts_are_shown_and_shots_set_by_flags(place, tmp_path, capsys, monkeypatch):
    made, once = Classification.read, []
    monkeypatch.setattr(
        Classification, "read", lambda self, split, *more: (once.append(split), made(self, split, *more))[1]
    )
    more = ("--checkpoint_path", place / "run", "--shots", "1", "--shots_seed", "11", "--show", "2", "--split", "dev")
    assert main(command(place, tmp_path, *more)) == 0
    out = capsys.readouterr().out
    rows = {s: [json.loads(x) for x in (place / f"data/{s}.jsonl").read_text().splitlines()] for s in ("train", "dev")}
    draw = Random(11)
    for row in rows["dev"][:2]:
        (shot,) = draw.sample(rows["train"], 1)
        shown = f"Q: {shot['question']}\nAnswer: {shot[shot['label']]}\n\nQ: {row['question']}\nAnswer:"
        assert "\n".join(f"  | {line}" for line in shown.split("\n")) in out
        assert f"example {row['id']}; the answer: {' ' + row[row['label']]!r}" in out
    assert sorted(once) == ["dev", "train"]  # the solved examples are those of the constant answer, too
    assert "example dev-3" not in out and "1 solved examples before each question (seed 11, from train)" in out
    assert "lost their beginning" in out or read(tmp_path, "dev")[0]["counts"]["truncated"] == 0
    for line in ("one (3)", "two (3)", "mean over groups (6)", "best constant answer"):
        assert line in out


def test_flags_that_do_not_fit_are_one_line(place, world, tmp_path, capsys):
    for tasks, more, said in (
        (world / "task.yaml", ("--shots", "2"), "shots are for multiple choice"),
        ("lm_eval:arc_easy", ("--show", "1"), "--show: prints prompts of our own tasks"),
        (place / "task.yaml", ("--shots", "10"), "task: shots.count: 10 are asked for, the train split has 9"),
    ):
        argv = command(place, tmp_path, "--checkpoint_path", place / "run", *more)
        argv[argv.index("--tasks") + 1] = str(tasks)
        assert main(argv) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and said in line


def test_a_fine_tuned_run_with_lora_and_a_soft_prompt_scores_as_it_said(place, world, tmp_path):
    text = (place / "c.yaml").read_text()
    section = f"  finetune: {{task: {tmp_path / 'plain.yaml'}, masks: lift, batch_size: 8, eval_batch_size: 4}}\n"
    adapters = "    soft_prompt: {tokens: 3, place: before_target}\n    lora: {r: 2}\n    loop: {max_steps: 2}\n"
    (tmp_path / "f.yaml").write_text(text.split("    sparsity:")[0] + adapters + section)
    (tmp_path / "template.yaml").write_text(
        'source: "{question}"\ntarget: "{label}"\nlabels: {A: A, B: B, C: C, D: D}\n'
    )
    task = TASK.replace("shots: {count: 2, seed: 3}\n", "long_fields: [question]\n")
    (tmp_path / "plain.yaml").write_text(task + f"data_dir: {place / 'data'}\n")
    argv = ["CPU", "-p", tmp_path / "f.yaml", "-m", "finetune", "-o", tmp_path / "tuned", "--checkpoint_path",
            place / "run"]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    (run,) = (tmp_path / "tuned").glob("fold_*/seed_*")
    argv = ["CPU", "-p", run / "config.yaml", "-m", "score", "-o", tmp_path, "--tasks", tmp_path / "plain.yaml",
            "--checkpoint_path", run]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    (found,) = json.loads((tmp_path / "evaluation/results.json").read_text())["tasks"]["plain"]
    reported = json.loads((run / "result.json").read_text())["scores"]["test"]["metrics"]
    assert found["metrics"] == pytest.approx(reported)
    mine = json.loads((tmp_path / "evaluation/plain_test.json").read_text())
    theirs = json.loads((run / "predictions.json").read_text())["test"]
    for a, b in zip(mine, theirs, strict=True):
        assert a["log_p"] == pytest.approx(b["log_p"], abs=1e-5)
