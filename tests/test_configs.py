"""Every YAML of configs/ is a config, and the nine MediSwift models are what the paper says."""

import math
from pathlib import Path

import pytest
import yaml

from modelzoo.config.loading.load import dump, load
from modelzoo.config.trainer import Config
from modelzoo.models.shapes import list_parameters
from modelzoo.optim.lr import learning_rate
from modelzoo.planning import plan, plan_text
from modelzoo.sparsity.schedules import is_update, value
from modelzoo.training.runs.length import total_steps

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Those that train a model of their own; the others have tests beside the code that reads them.
OTHERS = {"data", "eval", "prompt", "finetune", "study"}
ALL = sorted(p for p in CONFIGS.rglob("*.yaml") if p.relative_to(CONFIGS).parts[0] not in OTHERS)
SHAPES = {"med": (24, 1024, 16), "large": (18, 1536, 12), "xl": (24, 2048, 16)}
RATIOS = {  # the design's table, to its printed digits
    "med_s50": "1.498", "med_s75": "1.995", "large_s50": "1.572", "large_s75": "2.202",
    "xl_s50": "1.665", "xl_s75": "2.494",
}  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def mediswift(which: str) -> Config:
    return load(CONFIGS / "mediswift" / f"{which}.yaml", Config)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_loads_dumps_reloads_equal_and_plans(path, tmp_path):
    config = load(path, Config)
    (tmp_path / "again.yaml").write_text(dump(config, "resolved"))
    assert load(tmp_path / "again.yaml", Config) == config
    plan.check_sparsity(config.trainer.init, total_steps(config))
    text = plan_text.describe_plan(config)
    for loader in (config.trainer.fit.train_dataloader, *config.trainer.fit.val_dataloader):
        assert all(folder in text for folder in loader.data_dir)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_is_short_and_has_one_parent(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("extends:") for line in lines) <= 1


@pytest.mark.parametrize("path", ALL, ids=name)
def test_learning_rate_warms_up_and_decays_within_the_run(path):
    init = load(path, Config).trainer.init
    if not init.schedulers:
        assert name(path) == "mediswift/base"  # the size files give the rate
        return
    schedule, steps = init.schedulers[0].value, init.loop.max_steps
    rates = [learning_rate(schedule, s) for s in range(0, steps + 1, max(1, steps // 600))]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert sum(s.value.total_iters for s in schedule.schedulers) == steps
    assert rates[0] == 0
    assert learning_rate(schedule, steps) == pytest.approx(max(rates) / 10, rel=0.01)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_weights_are_drawn_as_gpt2_draws_them(path):
    model = load(path, Config).trainer.init.model
    out = model.output_layer_initializer
    assert model.initializer.std == 0.02
    if name(path) != "mediswift/base":
        assert out.std == pytest.approx(0.02 / math.sqrt(2 * model.num_hidden_layers), rel=1e-5)
        assert (out.a, out.b) == pytest.approx((-2 * out.std, 2 * out.std), rel=1e-5)


def test_no_two_runs_share_a_folder():
    runs = [p for p in ALL if p.stem != "base"]
    assert len({load(p, Config).trainer.init.model_dir for p in runs}) == len(runs)


@pytest.mark.parametrize("path", [p for p in ALL if p.parent.name != "mediswift"], ids=name)
def test_dynamic_runs_change_masks_every_20_steps_until_three_quarters(path):
    init = load(path, Config).trainer.init
    for group in init.sparsity:
        if group.algorithm == "static":
            assert value(group.sparsity, 0) == (0.5 if path.stem == "s50" else 0.75)
            continue
        steps = [s for s in range(1, init.loop.max_steps + 1) if is_update(group.update, s)]
        assert steps == list(range(20, 225, 20))
        assert value(group.sparsity, steps[-1], group.update) == 0.75
        if group.drop_fraction is not None:
            fractions = [value(group.drop_fraction, s, group.update) for s in steps]
            assert (
                fractions == sorted(fractions, reverse=True)
                and fractions[0] < group.drop_fraction.init
                and fractions[-1] > 0
            )


@pytest.mark.parametrize("size", SHAPES)
def test_mediswift_shapes(size):
    layers, width, heads = SHAPES[size]
    config = mediswift(f"{size}_dense")
    model, loop, loader = config.trainer.init.model, config.trainer.init.loop, config.trainer.fit.train_dataloader
    assert (model.num_hidden_layers, model.hidden_size, model.num_heads) == (layers, width, heads)
    shapes = list_parameters(model)
    matrices = sum(s.numel for s in shapes.values() if s.kind == "linear")
    assert matrices == 12 * layers * width**2
    published = {"med": "302M", "large": "510M", "xl": "1.21B"}[size]
    assert published == (f"{matrices / 1e6:.0f}M" if matrices < 1e9 else f"{matrices / 1e9:.2f}B")
    # With the tied embedding, positions, 13 d of biases and norms a layer, and the last norm: GPT-2's whole count.
    assert sum(s.numel for s in shapes.values()) == matrices + (50257 + 2048) * width + 13 * layers * width + 2 * width
    assert loop.max_steps * loader.batch_size * model.max_position_embeddings == 104_857_600_000


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("kind,sparsity", [("dense", 0), ("s50", 0.5), ("s75", 0.75)])
def test_mediswift_flops_by_the_closed_formula(size, kind, sparsity):
    layers, width, _ = SHAPES[size]
    found = plan.make_plan(mediswift(f"{size}_{kind}"))
    formula = 6 * (1 - sparsity) * 12 * layers * width**2 + 12 * layers * 2048 * width + 6 * width * 50257
    assert found.start.total == formula == found.mean
    if kind != "dense":
        assert f"{found.dense.total / found.start.total:.3f}" == RATIOS[f"{size}_{kind}"]


@pytest.mark.parametrize("size", SHAPES)
def test_mediswift_sparse_models_differ_from_the_dense_in_sparsity_alone(size):
    dense = mediswift(f"{size}_dense")
    for kind, level in (("s50", 0.5), ("s75", 0.75)):
        init = mediswift(f"{size}_{kind}").trainer.init
        (group,) = init.sparsity
        assert (group.algorithm, group.init_method, group.sparsity.value) == ("static", "random", level)
        same = {"sparsity": (), "model_dir": dense.trainer.init.model_dir}
        assert init.model_copy(update=same) == dense.trainer.init


def same(ours: object, theirs: object, path: str = "") -> None:
    """Every value of the zoo's YAML is in the dumped config, under the same key."""
    if isinstance(theirs, dict) and theirs:
        assert isinstance(ours, dict), path
        for key, value in theirs.items():
            same(ours[key], value, f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for i, (a, b) in enumerate(zip(ours, theirs)):
            same(a, b, f"{path}.{i}")
    elif theirs:
        # PyYAML reads 6e-4 as text; the zoo means the number.
        assert ours == (float(theirs) if isinstance(theirs, str) and isinstance(ours, float) else theirs), path
    else:
        assert not ours, path


@pytest.mark.realdata
def test_every_model_zoo_config_loads_and_keeps_its_values(shared, tmp_path):
    paths = sorted((shared / "model_zoo_configs" / "release_2.10").rglob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        config = load(path, Config)
        text = dump(config)
        (tmp_path / "again.yaml").write_text(text)
        assert load(tmp_path / "again.yaml", Config) == config, path
        plan.check_sparsity(config.trainer.init, total_steps(config))
        plan_text.describe_plan(config)
        theirs, ours = yaml.safe_load(path.read_text())["trainer"], yaml.safe_load(text)["trainer"]
        # What we write in another form: a number as a constant schedule, one value as a list of one.
        if (sparsity := theirs["init"].pop("sparsity", None)) is not None:
            (group,) = ours["init"].pop("sparsity")
            assert group["sparsity"] == {"type": "constant", "value": sparsity["sparsity"]}
            assert group["algorithm"] == sparsity.get("algorithm", "static")
            assert group["param_filter"] == sparsity["param_filter"]
            if "drop_fraction" in sparsity:
                same(group["drop_fraction"], sparsity["drop_fraction"])
                same(group["update"], sparsity["update"])
        for loader in (*theirs["fit"].values(), theirs.get("validate", {}).get("val_dataloader", {})):
            if isinstance(loader.get("data_dir"), str):
                loader["data_dir"] = [loader["data_dir"]]
        for section, key in (("fit", "val_dataloader"), ("validate_all", "val_dataloaders")):
            if isinstance(theirs.get(section, {}).get(key), dict):
                theirs[section][key] = [theirs[section][key]]
        ours["init"]["model"] = {k: v for k, v in ours["init"]["model"].items() if v is not None}
        theirs["init"]["model"] = {k: v for k, v in theirs["init"]["model"].items() if v is not None}
        same(ours, theirs, path.name)
