"""The whole training step lowers to CIRH without a cluster: the nine configs, and what a config may choose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.shapes import list_with_adapters
from modelzoo.planning.stored import group_sizes

REPO = Path(__file__).resolve().parents[2]
NINE = sorted(p.stem for p in (REPO / "configs/mediswift").glob("*_*.yaml"))
RIGL = "trainer.init.sparsity={algorithm: rigl, sparsity: 0.75, update: {freq: 100, stop: 150000}}"
INIT, M, LR = "trainer.init.", "trainer.init.model.", "initial_learning_rate: 1e-3"
LINEAR = "{LinearLR: {" + LR + ", end_learning_rate: 0.0, total_iters: 9}}"
COSINE = "{CosineDecayLR: {" + LR + ", end_learning_rate: 0.0, total_iters: 9}}"
TINY = f"""
trainer:
  init:
    model: {{name: gpt3, vocab_size: 96, hidden_size: 32, num_hidden_layers: 1, num_heads: 2, filter_size: 64,
      max_position_embeddings: 32, dropout_rate: 0.0, attention_dropout_rate: 0.0}}
    optimizer: {{AdamW: {{betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}}}}
    schedulers: [{{SequentialLR: {{schedulers: [{LINEAR}, {COSINE}]}}}}]
    precision: {{fp16_type: cbfloat16, loss_scaling_factor: dynamic, max_gradient_norm: 1.0}}
    loop: {{max_steps: 30}}
  fit:
    train_dataloader: {{data_dir: /nowhere, batch_size: 4}}
"""  # fmt: skip
CHOICES = {
    "rotary, swiglu, rmsnorm, static": [
        M + "position_embedding_type=rotary", M + "nonlinearity=swiglu", M + "norm_type=rmsnorm",
        INIT + "sparsity=0.5"],
    "shared keys and values": [
        M + "attention_module=multiquery_attention", M + "extra_attention_params={num_kv_groups: 1}",
        M + "position_embedding_type=rotary", M + "norm_type=rmsnorm", INIT + "sparsity=0.5"],
    "parallel": [M + "name=gptj", M + "use_untied_layer_norm=true"],
    "alibi, dropout, set": [
        M + "position_embedding_type=alibi", M + "dropout_rate=0.1", M + "attention_dropout_rate=0.1",
        INIT + "sparsity={algorithm: set, sparsity: [0.3, 0.5], "
        "drop_fraction: {type: cosine, init: 0.3, half_period: 9}}"],
    "fixed, untied head with bias, gmp cubic": [
        M + "position_embedding_type=fixed", M + "share_embedding_weights=false", M + "use_bias_in_output=true",
        INIT + "sparsity={algorithm: gmp, sparsity: {type: cubic, final: 0.8, end: 20}, update: {freq: 10}}"],
    "no positions, muP, bounded gmp": [
        M + "position_embedding_type=null", M + "mup_base_hidden_size=16", M + "mup_base_filter_size=32",
        INIT + "sparsity={algorithm: gmp, sparsity: {type: linear, init: 0.1, slope: 0.1, final: 0.8}, "
        "update: {steps: [0, 5, 9]}}"],
    "vsl, bfloat16, balanced rigl": [
        "trainer.fit.train_dataloader.use_vsl=true", INIT + "precision.fp16_type=bfloat16",
        INIT + "precision.max_gradient_norm=null", INIT + "precision.max_gradient_value=0.5",
        INIT + "sparsity={algorithm: rigl, sparsity: {type: exp, init: 0.2, gamma: -0.1, final: 0.7}, "
        "balance_in_groups: 4, update: {freq: 3, start: 2}}"],
    "SGD, float16 with a fixed scale, erk": [
        INIT + "optimizer={SGD: {momentum: 0.9, weight_decay: 0.1, nesterov: true}}",
        INIT + "precision.fp16_type=float16",
        INIT + "precision.loss_scaling_factor=128.0",
        INIT + "sparsity={sparsity: 0.5, distribution: erk, init_method: topk}"],
    "Adam, chained": [
        INIT + "optimizer={Adam: {weight_decay: 0.1}}",
        INIT + "schedulers=[{ChainedLR: {schedulers: [" + LINEAR + ", {StepLR: {" + LR
        + ", gamma: 0.5, step_size: 4}}]}}]"],
    "one rate, uncorrected AdamW": [
        INIT + "schedulers=[]", INIT + "optimizer={AdamW: {lr: 1e-3, correct_bias: false}}"],
    "soft prompt of words with the whole model": [
        INIT + "soft_prompt={tokens: 3, train: all, init: words, words: x}", INIT + "sparsity=0.5"],
    "soft prompt and LoRA over frozen rigl masks": [
        INIT + "soft_prompt={tokens: 3}", INIT + "lora={r: 4, dropout: 0.1}",
        INIT + "sparsity={algorithm: rigl, sparsity: 0.75, update: {freq: 10}}"],
    "cyclic": [INIT + "schedulers=[{CyclicLR: {base_lr: 1e-4, max_lr: 1e-3, step_size_up: 5}}]"],
    "one cycle": [INIT + "schedulers=[{OneCycleLR: {" + LR + ", max_lr: 1e-2, total_steps: 40}}]"],
}  # fmt: skip
WARM = "schedulers=[{CosineAnnealingWarmRestarts: {" + LR + ", T_0: 7, T_mult: 2}}]"
FAILING = {  # case: (activation that stands in for GELU, or overrides; what the message must name)
    "erfinv": ("erfinv", [], ["erfinv", "layers.0.ffn.ffn.0", "decoder.py", "model.nonlinearity"]),
    "lgamma": ("lgamma", [], ["lgamma", "layers.0.ffn.ffn.0", "model.nonlinearity"]),
    "a branch on values": ("branch", [], ["_local_scalar_dense", "layers.0.ffn.ffn.0", "model.nonlinearity"]),
    "warm restarts that grow": (None, [INIT + WARM], ["CosineAnnealingWarmRestarts", "trainer.init.schedulers"]),
}


@pytest.fixture(scope="module")
def lowered(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("lower")
    tiny = folder / "tiny.yaml"
    tiny.write_text(TINY)
    cut = [M + "num_hidden_layers=2"]
    cases = {n: [str(REPO / f"configs/mediswift/{n}.yaml"), cut, None] for n in NINE}
    cases |= {f"{n} rigl": [str(REPO / f"configs/mediswift/{n}_dense.yaml"), [*cut, RIGL], None] for n in ("med", "xl")}
    cases |= {n: [str(tiny), o, None] for n, o in CHOICES.items()}
    cases |= {n: [str(tiny), o, activation] for n, (activation, o, _) in FAILING.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("lower_cases.py")
    command = [sys.executable, str(script), str(folder), str(folder / "cases.json")]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return {x["name"]: x for x in found} | {"cases": cases}


def _config(lowered, name) -> Config:
    file, overrides, _ = lowered["cases"][name]
    return load(file, Config, overrides)


@pytest.mark.parametrize("name", [*NINE, "med rigl", "xl rigl", *CHOICES])
def test_lowers(lowered, name):
    found, config = lowered[name], _config(lowered, name)
    assert "error" not in found, found["error"]
    shapes = list_with_adapters(config.trainer.init)
    assert found["parameters"] == sum(s.numel for s in shapes.values())
    masked = {n for _, sizes in group_sizes(config.trainer.init) for n in sizes}
    assert set(found["masked"]) == masked
    assert sum(found["cirh"].values()) > 500 and found["cirh"]["MatMul"] > 0
    assert found["torch"]["embedding_dense_backward"] >= 1  # the step goes backward


@pytest.mark.parametrize("name", list(FAILING))
def test_what_does_not_lower_is_named(lowered, name):
    for word in FAILING[name][2]:
        assert word in lowered[name]["error"]


def test_dynamic_sparsity_is_in_the_program(lowered):
    """RigL's step sorts scores and compares the step with its schedule; the static one does neither."""
    moving, still = lowered["med rigl"]["torch"], lowered["med_s75"]["torch"]
    assert any("sort" in op for op in moving) and not any("sort" in op for op in still)
    assert any("remainder" in op for op in moving)


def test_clipping_and_loss_scale_are_in_the_program(lowered):
    ops = lowered["med_dense"]["torch"]
    assert ops["linalg_vector_norm"] >= 36  # one a weight
    assert any("lt" in op for op in ops)  # the dynamic scale's finite check
