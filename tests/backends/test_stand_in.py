"""What runs on a GPU, walked on a stand-in for one: no tensor is on the wrong device, and results are the CPU's."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.cli import main
from modelzoo.evaluation.inference.likelihoods import compute_likelihoods, score_continuations
from modelzoo.generation.load import load_model
from modelzoo.generation.settings import Settings
from modelzoo.kernels.blocks.layout import layout_of
from modelzoo.kernels.compiled import rows
from modelzoo.kernels.products import packed
from modelzoo.train_state import TrainState
from modelzoo.training.build import build_run
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot
from tests import support
from tests.backends.stand_in import GPU, OnGPU, standing_in
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.finetuning import test_finetune
from tests.generation.conftest import write_run
from tests.generation.test_write import PROMPTS, write
from tests.support import batch, config, examples, write_shard
from tests.training.test_promises import write_config

UPDATE = {"freq": 2}
CUBIC = {"type": "cubic", "final": 0.75, "end": 4}
TINY = {**support.TINY, "num_hidden_layers": 1}
ROTARY = {"position_embedding_type": "rotary", "rotary_dim": 4}
RULES = {
    "static": {"sparsity": 0.5},
    "gmp": {"algorithm": "gmp", "sparsity": CUBIC, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": 0.5, "update": UPDATE},
    "rigl": {"algorithm": "rigl", "sparsity": 0.5, "update": UPDATE},
}
VARIANTS = {
    **{rule: {"algorithm": rule, "sparsity": 0.5, "update": UPDATE} for rule in ("smet", "mest", "chts")},
    **{rule: {"algorithm": rule, "sparsity": CUBIC, "update": UPDATE} for rule in ("granet", "chtss")},
}
BLOCKS = {"storage": "packed", "block": [4, 4]}
KINDS = {
    **{f"{rule}, masked": {"sparsity": {**r, "storage": "masked"}} for rule, r in RULES.items()},
    **{f"{rule}, packed": {"sparsity": {**r, **BLOCKS}} for rule, r in RULES.items()},
    **{rule: {"sparsity": {**r, **BLOCKS}} for rule, r in VARIANTS.items()},
    "sr_ste": {"sparsity": {"algorithm": "sr_ste", "nm": [2, 4]}},
    "permuted": {"sparsity": {**RULES["gmp"], **BLOCKS, "permute_inputs": "updates"}},
    "columns": {"sparsity": {**RULES["set"], "storage": "packed", "block": [8, 1]}},
    "shared inputs": {"sparsity": {**RULES["rigl"], "storage": "packed", "shared_inputs": 4}},
    "2:4": {"sparsity": {"sparsity": 0.5, "nm": [2, 4]}},
    "compat": {"sparsity": {**RULES["rigl"], "compat": "cstorch"}},
    "SGD": {"optimizer": {"SGD": {"lr": 0.1, "momentum": 0.9}}, "sparsity": RULES["set"]},
    "clipped": {"precision": {"enabled": False, "max_gradient_norm": 0.1}},
    "exact": {"backend": {"reduction": "exact", "slices": 4}},
    "layer": {"backend": {"activation_checkpointing": "layer"}},
    "attention": {"backend": {"activation_checkpointing": "attention"}},
    "soft prompt": {"soft_prompt": {"tokens": 3}},
    "lora": {"lora": {"r": 2, "alpha": 8}, "sparsity": RULES["static"]},
    "untied": {"model": {**TINY, "share_embedding_weights": False, "use_bias_in_output": True}},
    "mup": {"model": {**TINY, "mup_base_hidden_size": 8, "mup_base_filter_size": 16}},
    **{k: {"model": {**TINY, "position_embedding_type": k}} for k in ("fixed", "alibi")},
    "rotary": {"model": {**TINY, **ROTARY}},
    "llama": {"model": {**TINY, **ROTARY, "norm_type": "rmsnorm", "nonlinearity": "swiglu"}},
}  # fmt: skip


def make_run(device: torch.device, kind: dict) -> tuple[Local, TrainState]:
    backend = {"torch_compile": False, "cuda_graphs": False, **kind.get("backend", {})}
    whole = config(**{"model": TINY, **kind, "backend": backend})
    local = Local(device, whole.trainer.init.backend, whole.trainer.init.precision)
    return local, build_run(whole, Choice(local, "", None))


def check_place(run: TrainState) -> None:
    """All that a step reads and writes is on the GPU."""
    held = {
        **run.parameters,
        **dict(run.model.named_buffers()),
        **{f"{n}/{k}": x for n, p in run.parameters.items() for k, x in run.optimizer.state.get(p, {}).items()},
        **{f"{p.name}/mask": p.mask for p in run.sparsity.parameters},
    }
    assert [n for n, x in held.items() if isinstance(x, torch.Tensor) and x.device.type != "cuda"] == []


def take_steps(device: torch.device, kind: dict, more: dict | None = None) -> tuple[list, dict[str, torch.Tensor]]:
    """Some steps, one of them left on the device where it may be; the tensors of the checkpoint after them."""
    local, run = make_run(device, kind)
    steps = [local.train_step(run, batch(s, uneven=True) | (more or {}), 2) for s in range(2)]
    local.queue_step(run, batch(4) | (more or {}), 1)
    steps.append(local.train_step(run, batch(5) | (more or {}), 1))
    if device.type == "cuda":
        check_place(run)
    files, _ = snapshot(run, "data")
    return steps, {f"{stem}/{n}": x.cpu() for stem, part in files.items() for n, x in part.items()}


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_the_cpus(name):
    expected, tensors = take_steps(torch.device("cpu"), KINDS[name])
    with standing_in() as there:
        found, theirs = take_steps(there.device, KINDS[name])
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], rel=1e-5)
    assert [s.grad_norm for s in found] == pytest.approx([s.grad_norm for s in expected], rel=1e-4)
    assert [(s.churn, s.skipped, s.tokens) for s in found] == [(s.churn, s.skipped, s.tokens) for s in expected]
    for (key, x), y in zip(tensors.items(), theirs.values(), strict=True):
        near = 1e-3 if x.is_floating_point() else 0.0  # Adam divides by small numbers
        torch.testing.assert_close(y, x, rtol=near, atol=near, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("position", ["learned", "alibi", "rotary"])
def test_documents_that_do_not_see_each_other(position):
    kind = {"model": {**TINY, "position_embedding_type": position}}
    more = {"attention_span": torch.full((4, 12), 5), "position_ids": torch.arange(12).repeat(4, 1)}
    expected, _ = take_steps(torch.device("cpu"), kind, more)
    with standing_in() as there:
        found, _ = take_steps(there.device, kind, more)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], rel=1e-5)


def test_a_run_goes_on_with_its_bits(tmp_path):
    """Through the command: checkpoints in the background, validation, and a resume."""
    write_shard(tmp_path / "data/a.h5", examples(19, seed=1))
    init = {"model": {**TINY, "max_position_embeddings": 8}, "sparsity": {**RULES["rigl"], **BLOCKS}}
    loop = {"max_steps": 4, "eval_frequency": 2, "eval_steps": 2}
    params = write_config(tmp_path / "c.yaml", tmp_path / "data", loop=loop, **init)

    def train(folder: Path, target: str, *more: str) -> int:
        return main([target, "-p", str(params), "-m", "train_and_eval", "-o", str(folder), *more])

    with standing_in():
        assert train(tmp_path / "whole", "GPU") == 0
        assert train(tmp_path / "part", "GPU", "--max_steps", "2") == 0
        assert train(tmp_path / "part", "GPU") == 0
    assert train(tmp_path / "cpu", "CPU") == 0
    for name in ("checkpoints/step_4/model.safetensors", "checkpoints/step_4/optimizer.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes(), name
    logs = [map(json.loads, (tmp_path / n / "metrics.jsonl").read_text().splitlines()) for n in ("whole", "cpu")]
    for a, b in zip(*logs, strict=True):
        assert (a["step"], a["kind"]) == (b["step"], b["kind"]) and a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("name,fields", [
    ("learned", {}),
    ("alibi", {"model": {"position_embedding_type": "alibi"}}),
    ("rotary", {"model": ROTARY}),
    ("soft prompt", {"soft_prompt": {"tokens": 3, "place": "prefix"}}),
    ("lora", {"lora": {"r": 2, "alpha": 8}, "sparsity": {"sparsity": 0.5}}),
])  # fmt: skip
def test_texts_and_scores_are_the_cpus(name, fields, words, tmp_path):  # noqa: F811
    folder = write_run(tmp_path / "run", words, **fields)

    def found(target: str):
        model = load_model(str(folder), target=target)
        texts = [t.ids for t in write(model, PROMPTS, Settings(12, repetition_penalty=1.5))]
        pairs = [([7, 8, 9 + i], [10, 11, 12][: i + 1]) for i in range(3)]
        scored = score_continuations(model.model, model.backend, pairs, 2)
        likely = compute_likelihoods(model.model, model.backend, [[5, 6], [3]], [[[1, 2], [1, 3]], [[4], [5]]], 2)
        return texts, [s for s, _ in scored], [x for found in likely for x in found.log_p]

    texts, scores, likely = found("CPU")
    with standing_in():
        theirs = found("GPU")
    assert theirs[0] == texts
    assert theirs[1] == pytest.approx(scores, rel=1e-4) and theirs[2] == pytest.approx(likely, rel=1e-4)


def test_masks_open_in_fine_tuning(tmp_path):
    """From a sparse checkpoint, with a soft prompt, and scored on dev examples as it goes."""
    test_finetune.write_task(tmp_path / "toy", 8)
    files, facts = snapshot(support.make_run(model=test_finetune.MODEL, sparsity=0.75), "d")
    saving.save(str(tmp_path / "s75/checkpoints"), 0, files, facts, None)
    test_finetune.byte_tokenizer().save(str(tmp_path / "s75/tokenizer.json"))
    section = {"masks": {"open": {"steps": 4, "freq": 2}}, "batch_size": 8}
    init = {"loop": {"max_steps": 4, "eval_frequency": 2}, "soft_prompt": {"tokens": 3, "train": "all"}}
    params, found = test_finetune.write_config(tmp_path, tmp_path / "c.yaml", section, **init), []
    for target in ("CPU", "GPU"):
        out = tmp_path / target
        argv = [target, "-p", params, "-m", "finetune", "-o", out, "--checkpoint_path", tmp_path / "s75"]
        with standing_in() if target == "GPU" else nullcontext():
            assert main([*map(str, argv)]) == 0
        (log,) = out.rglob("metrics.jsonl")
        found.append([x["loss"] for x in map(json.loads, log.read_text().splitlines()) if "loss" in x])
    assert len(found[0]) >= 4 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_stand_in_finds_mix_ups():
    """A tensor made on the host, a look into memory from there, and NumPy."""
    with standing_in():
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        assert x.device == GPU and x.is_cuda and not x.is_cpu and isinstance(x * 2.0 + torch.tensor(1.0), OnGPU)
        for mix_up in (
            lambda: x + y,
            lambda: torch.cat((x, y)),
            lambda: torch.stack((x.sum(), torch.tensor(1.0))),
            lambda: y[torch.zeros(1, dtype=torch.int64, device="cuda")],
            lambda: torch.where(x > 0, x, y),
        ):
            with pytest.raises((RuntimeError, AssertionError), match=r"device|on the GPU"):
                mix_up()
        for look in (x.numpy, x.data_ptr, x.untyped_storage):
            with pytest.raises(TypeError, match="on the GPU"):
                look()
        assert x.tolist() == x.cpu().tolist() == [1.0] * 3 and float(x.sum()) == 3.0
        assert rows.zero_dead(x, torch.tensor([-1, 0, -1], dtype=torch.int8, device="cuda")) is None
        assert x.tolist() == [1.0, 0.0, 1.0]
        layout = layout_of(torch.ones(2, 2, dtype=torch.bool, device="cuda"), (2, 2))
        assert isinstance(packed.probe(layout), OnGPU)
