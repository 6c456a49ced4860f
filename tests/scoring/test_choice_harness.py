"""Multiple choice against lm-evaluation-harness's own tasks, on files of the official formats (needs `eval`).

`pip install -c constraints.txt -e '.[eval,test]'`, then `python -m pytest tests/scoring/test_choice_harness.py`.
"""

import importlib.resources
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from modelzoo.cli import main
from tests import choice_files
from tests.evaluation_world import CONFIG

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `eval`)")
REPO = Path(__file__).resolve().parents[2]
MMLU = {f"mmlu_{s}": s for s in choice_files.SUBJECTS}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Exports by context length: one that holds all prompts, and one that most exceed."""
    found = {}
    for length in (4000, 100):
        folder = tmp_path_factory.mktemp(f"run{length}")
        text = CONFIG.replace("DATA", str(world / "data/train")).replace(
            "embeddings: 96", f"embeddings: {length}, initializer_range: 0.4"
        )
        (folder / "c.yaml").write_text(text)
        assert main(["CPU", "-p", str(folder / "c.yaml"), "-m", "train", "-o", str(folder / "run")]) == 0
        assert main(["export", str(folder / "run"), str(folder / "exported")]) == 0
        found[length] = folder
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The bundled tasks' folders by task, and the hub's documents by the harness's tasks."""
    top, draw = tmp_path_factory.mktemp("official"), Random(3)
    docs = {
        "medqa_4options": choice_files.write_medqa(top / "medqa", draw),
        "medmcqa": choice_files.write_medmcqa(top / "medmcqa", draw),
        "pubmedqa": choice_files.write_pubmedqa(top / "out/pubmedqa_choice", draw),
    }
    mmlu = choice_files.write_mmlu(top / "mmlu", draw)
    docs |= {name: mmlu[subject] for name, subject in MMLU.items()}
    for name, out in (("medqa", "medqa"), ("medmcqa", "medmcqa"), ("mmlu", "mmlu_medical")):
        assert main(["prepare-task", name, str(top / name), str(top / "out" / out)]) == 0
    return top / "out", docs


def find_config(name: str) -> dict:
    """A task's YAML as the installed harness has it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in Path(str(importlib.resources.files("lm_eval"))).joinpath("tasks").rglob("*.yaml"):
        if path.stem == name.removesuffix("_4options") and path.parent.name in ("default", path.stem):
            return load_yaml(path, resolve_func=True, recursive=True)
    raise AssertionError(name)


def ask_harness(run, docs: dict[str, dict[str, list[dict]]], shots: int, seed: int) -> dict[str, tuple[dict, list]]:
    """By task: the harness's metrics, and its log-likelihoods of each question's choices."""
    import lm_eval
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    tasks = []
    for name, splits in docs.items():
        parts = {} if name in MMLU else {"dev": "validation"}
        tables = {parts.get(split, split): Dataset.from_list(rows) for split, rows in splits.items()}
        config = {k: v for k, v in find_config(name).items() if k not in ("dataset_path", "dataset_name")}
        tasks.append(ConfigurableTask(config={**config, "custom_dataset": lambda tables=tables, **_: tables}))
    model = HFLM(pretrained=str(run / "exported"), device="cpu", dtype="float32", batch_size=4)
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks, num_fewshot=shots, fewshot_random_seed=seed, bootstrap_iters=0, log_samples=True
    )
    likelihoods = {
        name: [[float(r[0]) for r in s["filtered_resps"]] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in found["samples"].items()
    }
    return {name: (found["results"][name], likelihoods[name]) for name in docs}


def ask_ours(run, out, task: str, folder, split: str, *more) -> tuple[dict, list[dict]]:
    argv = ["CPU", "-p", run / "run/config.yaml", "-m", "score", "-o", out, "--checkpoint_path", run / "run",
            "--tasks", task, "--data_dir", folder, "--split", split, *more]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    found = json.loads((out / "evaluation/results.json").read_text())["tasks"][task][0]
    return found, json.loads((out / f"evaluation/{task}_{split}.json").read_text())


@pytest.mark.parametrize("length", [4000, 100])
@pytest.mark.parametrize(
    ("task", "name", "split", "shots", "seed"),
    [
        ("medqa", "medqa_4options", "test", 0, 1234),
        ("medqa", "medqa_4options", "test", 3, 1234),
        ("medmcqa", "medmcqa", "dev", 4, 7),
        ("pubmedqa_choice", "pubmedqa", "test", 2, 1234),
    ],
)
def test_scores_are_those_of_the_harness(runs, data, tmp_path, length, task, name, split, shots, seed):
    folder, docs = data
    more = ("--shots", shots, "--shots_seed", seed)
    found, mine = ask_ours(runs[length], tmp_path, task, folder / task, split, *more)
    metrics, theirs = ask_harness(runs[length], {name: docs[name]}, shots, seed)[name]
    for a, b in zip(mine, theirs, strict=True):
        assert list(a["log_p"].values()) == pytest.approx(b, abs=1e-4)
    assert min(np.ptp(theirs, axis=1)) > 0.01 and np.ptp(np.array(theirs)[:, 0]) > 0.01  # they do tell apart
    for key in {"acc", "acc_norm"} & {k.removesuffix(",none") for k in metrics}:
        assert found["metrics"][key] == pytest.approx(metrics[f"{key},none"], abs=1e-4)
    assert (found["counts"]["truncated"] > 0) == (length == 100)


@pytest.mark.parametrize("length", [4000, 100])
def test_mmlu_is_the_harnesss_by_subject(runs, data, tmp_path, length):
    folder, docs = data
    found, mine = ask_ours(runs[length], tmp_path, "mmlu_medical", folder / "mmlu_medical", "test")
    by_id, right = {p["id"]: p for p in mine}, 0.0
    for name, (metrics, theirs) in ask_harness(runs[length], {name: docs[name] for name in MMLU}, 5, 1234).items():
        subject = MMLU[name]
        for i, b in enumerate(theirs, 1):
            assert list(by_id[f"{subject}-test-{i}"]["log_p"].values()) == pytest.approx(b, abs=1e-4)
        group = found["groups"][subject.replace("_", " ")]
        assert group["n"] == len(theirs) and group["metrics"]["acc"] == pytest.approx(metrics["acc,none"], abs=1e-4)
        right += metrics["acc,none"] * len(theirs)
    assert found["metrics"]["acc"] == pytest.approx(right / found["n"], abs=1e-4)


@pytest.mark.parametrize("length", [4000, 100])
@pytest.mark.parametrize("template", ["texts", "letters"])
def test_the_harness_over_our_task_gives_our_scores(runs, data, tmp_path, length, template):
    """Through `lm_eval:FILE`, with the options' own texts compared too, where lengths count."""
    (tmp_path / "own.yaml").write_text(
        f"extends: {REPO}/configs/eval/medqa.yaml\ntemplate: {REPO}/configs/prompt/medqa/{template}.yaml\n"
        "shots: {count: 2}\n"
    )
    for name, tasks in (("a", tmp_path / "own.yaml"), ("b", f"lm_eval:{tmp_path / 'own.yaml'}")):
        run = runs[length]
        argv = ["CPU", "-p", run / "run/config.yaml", "-m", "score", "-o", tmp_path / name, "--checkpoint_path",
                run / "exported", "--tasks", tasks, "--data_dir", data[0] / "medqa", "--split", "test"]  # fmt: skip
        assert main([str(a) for a in argv]) == 0
    (ours,), (theirs,) = (
        next(iter(json.loads((tmp_path / n / "evaluation/results.json").read_text())["tasks"].values())) for n in "ab"
    )
    for key in ("acc", "acc_norm"):
        assert ours["metrics"][key] == pytest.approx(theirs["metrics"][f"{key},none"], abs=1e-4)


def test_shots_of_the_harnesss_own_tasks_are_set_by_the_same_flags(runs, data, tmp_path):
    """A task of the harness's over our files, by its name: the same examples, shots and draws."""
    (tmp_path / "tasks").mkdir()
    files = {split: str(data[0] / f"medqa/{split}.jsonl") for split in ("train", "test")}
    options = "\\n".join(f"{x}. {{{{{x}}}}}" for x in "ABCD")
    text = (
        f"task: local_medqa\ndataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\n"
        "output_type: multiple_choice\ntraining_split: train\ntest_split: test\n"
        f'doc_to_text: "Question: {{{{question}}}}\\n{options}\\nAnswer:"\n'
        'doc_to_choice: [A, B, C, D]\ndoc_to_target: "{{label}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "tasks/local.yaml").write_text(text)
    run, scores = runs[4000], []
    for seed in range(4):
        out, more = tmp_path / f"{seed}", ("--shots", 3, "--shots_seed", seed)
        ours, _ = ask_ours(run, out / "a", "medqa", data[0] / "medqa", "test", *more)
        argv = ["CPU", "-p", run / "run/config.yaml", "-m", "score", "-o", out / "b", "--checkpoint_path", run / "run",
                "--tasks", f"lm_eval:{tmp_path / 'tasks'},lm_eval:local_medqa", *more]  # fmt: skip
        assert main([str(a) for a in argv]) == 0
        (theirs,) = json.loads((out / "b/evaluation/results.json").read_text())["tasks"]["lm_eval:local_medqa"]
        assert ours["metrics"]["acc"] == pytest.approx(theirs["metrics"]["acc,none"], abs=1e-4)
        scores.append(ours["metrics"]["acc"])
    assert len(set(scores)) > 1


@pytest.mark.realdata
@pytest.mark.parametrize("shots", [0, 2])
def test_pubmedqas_questions_score_as_the_harness_scores_them(runs, shared, tmp_path, shots):
    folder = shared / "data/pubmedqa"
    questions = json.loads((folder / "pqal_cv_500.json").read_text())
    ids = json.loads((folder / "pqal_folds.json").read_text())["pqal_fold0"]
    docs = {to: [questions[i] for i in ids[split]] for split, to in (("train", "train"), ("dev", "test"))}
    found, mine = ask_ours(runs[4000], tmp_path, "pubmedqa_choice", folder, "dev", "--shots", shots)
    metrics, theirs = ask_harness(runs[4000], {"pubmedqa": docs}, shots, 1234)["pubmedqa"]
    assert len(mine) == len(theirs) == 50
    for a, b in zip(mine, theirs, strict=True):
        assert list(a["log_p"].values()) == pytest.approx(b, abs=1e-4)
    assert found["metrics"]["acc"] == pytest.approx(metrics["acc,none"], abs=1e-4)
