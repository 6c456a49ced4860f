"""A step or a validation that does not fit in memory ends a run with one line, which names what to lower."""

from pathlib import Path

import pytest
import torch

from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.training import shortage
from tests.backends.test_graphs import WARM, Graphed, train
from tests.faults.commands import tree
from tests.support import LOCAL, config, examples, make_run, write_shard
from tests.training.test_promises import run, write_config
from tests.training.test_ways_out import error_lines, fail_at

NO_ROOM = {
    "a GPU": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    ),
    "a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
}


@pytest.fixture
def params(tmp_path) -> Path:
    write_shard(tmp_path / "data/a.h5", examples(19, seed=1))
    return write_config(tmp_path / "c.yaml", tmp_path / "data", loop={"max_steps": 6, "eval_frequency": 3})


@pytest.mark.parametrize("where", NO_ROOM)
def test_a_step_without_room_leaves_the_last_checkpoint(where, params, tmp_path, monkeypatch, capsys):
    """As it was, to the byte; with room the run goes on from it, to what it would have been."""
    assert run(params, tmp_path / "whole") == 0
    assert run(params, tmp_path / "run", "--max_steps", 2) == 0
    kept = {n: x for n, x in tree(tmp_path / "run").items() if n.startswith("checkpoints/")}
    capsys.readouterr()
    with monkeypatch.context() as m:
        fail_at(m, GPTModel, "forward", 2, NO_ROOM[where])
        assert run(params, tmp_path / "run") == 2
    (line,) = error_lines(capsys)
    assert line.startswith("error: step 4: not enough memory on this CPU (")
    assert "lower trainer.fit.train_dataloader.micro_batch_size to 2 (now 4 of 4 rows at once), or set " in line
    assert line.endswith(
        "trainer.init.backend.activation_checkpointing: layer; it happened inside a step, so the last checkpoint is "
        "where the run resumes"
    )
    assert {n: x for n, x in tree(tmp_path / "run").items() if n.startswith("checkpoints/")} == kept
    assert run(params, tmp_path / "run") == 0
    ours, whole = (tree(tmp_path / n) for n in ("run", "whole"))
    name = "checkpoints/step_6/model.safetensors"
    assert ours[name] == whole[name] and ours["metrics.jsonl"] == whole["metrics.jsonl"]


def test_a_validation_without_room_saves_the_run(params, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        fail_at(m, GPTModel, "score", 1, NO_ROOM["a GPU"])
        assert run(params, tmp_path / "run", mode="train_and_eval") == 2
    (line,) = error_lines(capsys)
    assert line.startswith("error: the validation at step 3: not enough memory on this CPU (")
    assert "; lower batch_size of the val_dataloader; step 3 is saved in " in line


LOADER = "trainer.fit.train_dataloader"
LAYER, ATTENTION = ({"backend": {"activation_checkpointing": mode}} for mode in ("layer", "attention"))


@pytest.mark.parametrize("loader,init,said", [
    ({"batch_size": 12}, {}, f"lower {LOADER}.micro_batch_size to 6 (now 12 of 12 rows at once)"),
    ({"batch_size": 12, "micro_batch_size": 3}, {}, "micro_batch_size to 2 (now 3 of 12 rows at once)"),
    ({"batch_size": 12}, {"loop": {"grad_accum_steps": 2}}, "raise trainer.init.loop.grad_accum_steps to 3"),
    ({"batch_size": 1}, LAYER, "take shorter sequences or a smaller model"),
    ({"batch_size": 1}, ATTENTION, "; set trainer.init.backend.activation_checkpointing: layer"),
])  # fmt: skip
def test_what_is_advised_makes_the_step_smaller(loader, init, said):
    raw = config(**init).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["trainer"]["fit"]["train_dataloader"].update(loader)
    made = validate(Document(raw), Config)
    assert said in str(shortage.explain_shortage(MemoryError(), LOCAL, make_run(), made))


def test_fine_tuning_has_keys_of_its_own():
    made = config().model_dump(mode="json", by_alias=True, exclude_unset=True)
    made["trainer"]["finetune"] = {"task": "t.yaml", "batch_size": 16, "eval_batch_size": 8}
    made["trainer"]["fit"]["train_dataloader"]["batch_size"] = 16  # as finetuning.masks.make_config sets it
    whole, state = validate(Document(made), Config), make_run()
    assert "lower trainer.finetune.micro_batch_size to 8 " in str(
        shortage.explain_shortage(MemoryError(), LOCAL, state, whole)
    )
    state.unassessed = True
    assert "; lower trainer.finetune.eval_batch_size (now 8)" in str(
        shortage.explain_shortage(MemoryError(), LOCAL, state, whole)
    )


@pytest.mark.parametrize("tunes", [False, True])
@pytest.mark.parametrize("validates", [False, True])
def test_captured_steps_are_named_where_there_are_some(tunes, validates):
    raw = config().model_dump(mode="json", by_alias=True, exclude_unset=True)
    if tunes:
        raw["trainer"]["finetune"] = {"task": "t.yaml", "batch_size": 4}
    made, state = validate(Document(raw), Config), make_run()
    backend = Graphed(state)
    assert "cuda_graphs" not in str(shortage.explain_shortage(MemoryError(), backend, state, made))  # none is captured
    train(state, backend, WARM + 1, 1)
    state.unassessed = validates
    advised = str(shortage.explain_shortage(MemoryError(), backend, state, made))
    assert advised.endswith(", or set trainer.init.backend.cuda_graphs: false (captured steps keep their memory)")
    assert "\n" not in advised
    assert "cuda_graphs" not in str(shortage.explain_shortage(MemoryError(), LOCAL, state, made))
