"""A finished fine-tuning answers for what made it alone, and a damaged result is made again, to the byte."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from modelzoo.cli import main
from modelzoo.evaluation.scores.results import hash_config
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.finetuning.test_finetune import MODEL, byte_tokenizer, write_config, write_task
from tests.support import batch, config, make_run, train_step


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A task, a checkpoint, and what the command `run` made of them, by paths relative to the folder."""
    root = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(root):
        here = Path()
        write_task(here / "toy", n=8)
        make_checkpoint(0)
        loop = {"max_steps": 4, "eval_frequency": 2}
        write_config(here, here / "c.yaml", {"seeds": [1]}, loop=loop, checkpoint={"steps": 2})
        assert run() == 0
    return root


def make_checkpoint(number: int) -> None:
    made = make_run(model=MODEL, sparsity=0.75)
    train_step(made, batch(number, length=24, vocab=200), 1)
    saving.save("s75/checkpoints", made.step, *snapshot(made, "d"), None)
    byte_tokenizer().save("s75/tokenizer.json")


def run(*more) -> int:
    args = ["CPU", "-p", "c.yaml", "-m", "finetune", "--checkpoint_path", "s75", "-o", "o", *more]
    return main([str(a) for a in args])


@pytest.fixture
def world(finished, tmp_path, monkeypatch):
    """The working directory: a copy, for the test to change."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


FOLDER = Path("o/fold_0/seed_1")
RESULT = FOLDER / "result.json"


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))


def change_dev() -> None:
    replace("toy/dev.jsonl", "odd?", "even?")


def change_template() -> None:
    replace("toy/plain.yaml", '" {label}"', '": {label}"')


def change_checkpoint() -> None:
    shutil.rmtree("s75/checkpoints")
    make_checkpoint(5)


def change_config() -> None:
    replace("c.yaml", "lr: 0.005", "lr: 0.001")


def lose_config() -> None:
    change_config()
    (FOLDER / "config.yaml").unlink()


CHANGES = {
    change_dev: "the dev examples",
    change_template: "the task's settings or template",
    change_checkpoint: "the content of the checkpoint",
    change_config: "optimizer.AdamW.lr: 0.005 -> 0.001",
    lose_config: "made from something else: the config",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_made_it_is_what_it_answers_for(world, capsys, change):
    before = RESULT.read_bytes()
    assert run() == 0  # unchanged, it is shown
    change()
    capsys.readouterr()
    assert run() == 2
    found = capsys.readouterr()
    assert CHANGES[change] in found.err and "--restart" in found.err and "dev (" not in found.out
    assert found.err.count("error:") == 1 and RESULT.read_bytes() == before
    assert run("--restart") == 0 and RESULT.read_bytes() != before


def damages(text: bytes) -> list[bytes]:
    value = json.loads(text)
    return [
        text[: len(text) // 2], b"", b"\xff\xfe", b"[" * 5000, b"null", b"[]", b"{}",
        text.replace(b'"n": 8', b'"n": "8"'),
        text.replace(b'"best_step"', b'"other"'), json.dumps({**value, "steps": 5}).encode(),
        json.dumps({**value, "scores": {"dev": 3}}).encode(), json.dumps({**value, "made_from": 3}).encode(),
    ]  # fmt: skip


def test_a_damaged_result_is_made_again_to_the_byte(world, capsys):
    whole = RESULT.read_bytes()
    for damage in damages(whole):
        assert damage != whole
        RESULT.write_bytes(damage)
        capsys.readouterr()
        assert run() == 0, damage[:80]
        err = capsys.readouterr().err
        assert err.count("damaged    ") == 1 and "made again" in err and RESULT.read_bytes() == whole


def test_a_damaged_result_answers_for_no_other_config_either(world, capsys):
    change_config()
    for damage in (lambda: RESULT.write_text("{"), RESULT.unlink):
        damage()
        assert run() == 2
        assert "AdamW.lr: 0.005 -> 0.001" in capsys.readouterr().err


def test_a_resumed_run_writes_the_result_of_an_uninterrupted_one(world):
    whole = RESULT.read_bytes()
    RESULT.unlink()
    shutil.rmtree(FOLDER / "checkpoints" / "step_4")
    assert run() == 0
    assert RESULT.read_bytes() == whole


def test_results_of_the_version_before_are_read(world, capsys):
    value = json.loads(RESULT.read_text())
    del value["made_from"], value["sha256"]
    value["dev"] = [{"step": 2, "kind": "dev", **value["dev"][0]}]
    value["scores"]["dev"]["metrics"]["pearson"] = float("nan")
    value["scores"]["dev"]["intervals"]["pearson"] = [float("nan")] * 2
    value["scores"]["dev"]["majority"]["pearson"] = float("nan")
    RESULT.write_text(json.dumps(value))
    before = RESULT.read_bytes()
    assert run() == 0 and RESULT.read_bytes() == before
    assert "damaged" not in capsys.readouterr().err


def test_a_damaged_shard_of_the_task_is_made_again(world, capsys):
    RESULT.unlink()
    (shard,) = Path("o/data/fold_0").glob("*.h5")
    shard.write_bytes(shard.read_bytes()[:500])
    assert run() == 0
    assert "made again" in capsys.readouterr().err


def test_a_configs_hash_hangs_on_what_acts_alone():
    hashes = [hash_config(c) for c in (config(), config(model_dir="elsewhere"), config(seed=8))]
    assert hashes[0] == hashes[1] != hashes[2]
