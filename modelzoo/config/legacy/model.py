"""The `model` section of older dialects: precision that moved out, muP's former fields, defaults that changed."""

from typing import Any

from modelzoo.config.legacy.base import MODEL, Note, Upgrade, dotted, remark
from modelzoo.config.legacy.model_names import find_name
from modelzoo.config.loading.yaml12 import Document, Path
from modelzoo.config.sections.model import MUP_GROUPS

PLACE: Path = ("trainer", "init", "model")


def model(up: Upgrade, optimizer: dict[str, Any]) -> None:
    """`model` to trainer.init.model and trainer.init.precision."""
    given = up.old.get("model") if isinstance(up.old.get("model"), dict) else {}
    rest = up.section("model", MODEL)
    if "mixed_precision" not in given:
        up.put("init.precision.enabled", False)
        up.note("assumed", ("model",), "no mixed_precision means float32 (trainer.init.precision.enabled: false)")
    _half(up, rest)
    _renamed(up, rest)
    _boolean_like(up, rest)
    if "name" not in rest:
        name, known = find_name(up.doc.mark(()).file, rest)
        rest = {"name": name, **rest}
        other = "gpt2" if name != "gpt2" else "gpt3"
        known = f" {known}" if known else ""
        up.note("assumed", ("model",), f"no name, so {name}{known} (else --set trainer.init.model.name={other})")
    if "dropout_rate" in rest and "attention_dropout_rate" not in rest:
        rest["attention_dropout_rate"] = None  # then dropout_rate holds in attention too
    _mup(up, rest, optimizer)
    up.put("init.model", {**up.new.get("init", {}).get("model", {}), **rest}, ("model",))


def _half(up: Upgrade, rest: dict[str, Any]) -> None:
    """fp16_type, or 1.9's use_bfloat16; bfloat16 where neither is given (the GPT scripts' own default)."""
    if "use_bfloat16" in rest and "fp16_type" in rest:
        up.refuse(("model", "use_bfloat16"), "give fp16_type or use_bfloat16, not both")
    if "use_bfloat16" in rest:
        value = rest.pop("use_bfloat16")
        up.put("init.precision.fp16_type", "bfloat16" if value else "float16", ("model", "use_bfloat16"), "changed")
    if "fp16_type" in rest:
        up.put("init.precision.fp16_type", rest.pop("fp16_type"), ("model", "fp16_type"))


def _renamed(up: Upgrade, rest: dict[str, Any]) -> None:
    for old, new in (("embedding_dropout_rate", "embd_pdrop"),):
        if old in rest and new in rest:
            up.refuse(("model", old), f"is another name of {new}; give one of them")
        elif old in rest:
            rest[new] = rest.pop(old)
            remark(up.doc, ("model", old), ("trainer", "init", "model", new))
            up.note("moved", ("model", old), f"is now trainer.init.model.{new}")


def _boolean_like(up: Upgrade, rest: dict[str, Any]) -> None:
    """Switches that became values of another key."""
    if "use_position_embedding" in rest:
        wanted = rest.pop("use_position_embedding")
        if wanted is False:
            rest["position_embedding_type"] = None
        text = "position_embedding_type says it" if wanted else "is now position_embedding_type: null"
        up.note("changed", ("model", "use_position_embedding"), text)
    for key, kind in (("use_rms_norm", "rmsnorm"), ("use_biasless_norm", "biasless-layernorm")):
        if key in rest and rest.pop(key):
            rest["norm_type"] = kind
            up.note("changed", ("model", key), f"is now norm_type: {kind}")


def _mup(up: Upgrade, rest: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """muP up to release 2.2 wrote the scaled numbers down; today's form names the base width and scales by itself.

    Same logits, learning rates and initial spreads, up to the last bit of a product.
    """
    adjust = optimizer.get("adjust_learning_rate") or {}
    scale = rest.pop("output_logits_scale", None)
    path = ("model", "output_logits_scale")
    if scale is not None and not (isinstance(scale, int | float) and scale > 0):
        up.refuse(path, f"takes a positive number, got {scale!r}")
        return
    if scale is None:
        groups = {k: v for k, v in adjust.items() if k in MUP_GROUPS}
    else:
        _widths(up, rest, scale)
        rest.setdefault("scale_qk_dot_by_d", False)
        same = abs(adjust.get("decoder_kernel", 0) - scale) <= 1e-9 * scale and set(adjust) == {"decoder_kernel"}
        neutral = dict.fromkeys(("decoder_attention", "decoder_input_ffn", "decoder_output_ffn"), 1.0)
        groups = {} if same else {**neutral, **{k: v for k, v in adjust.items() if k in MUP_GROUPS}}
        if same:
            up.note("changed", ("optimizer", "adjust_learning_rate"), "follows from mup_base_hidden_size")
    for key in adjust.keys() - MUP_GROUPS.keys():
        up.refuse(("optimizer", "adjust_learning_rate", key), f"unknown group; known: {', '.join(MUP_GROUPS)}")
    if groups:
        rest["lr_adjustment_groups"] = {
            k: {"param_filter_patterns": list(MUP_GROUPS[k]), "scale": v} for k, v in groups.items()
        }
        up.note("changed", ("optimizer", "adjust_learning_rate"), "is now trainer.init.model.lr_adjustment_groups")


def _widths(up: Upgrade, rest: dict[str, Any], scale: float) -> None:
    """mup_base_* such that width factors equal `scale`, and initializers as they were before scaling."""
    path = ("model", "output_logits_scale")
    for key, base in (("hidden_size", "mup_base_hidden_size"), ("filter_size", "mup_base_filter_size")):
        size = rest.get(key, {"hidden_size": 768, "filter_size": 3072}[key])
        if isinstance(size, int):
            exact = size * scale
            rest[base] = round(exact) if round(exact) and abs(exact - round(exact)) < 1e-9 * exact else exact
    up.note("changed", path, f"is now mup_base_hidden_size: {rest.get('mup_base_hidden_size')} (and filter_size's)")
    rest["output_logits_alpha"] = 1.0
    width = scale**0.5
    depth = (2 * rest["num_hidden_layers"]) ** -0.5 if isinstance(rest.get("num_hidden_layers"), int) else 1.0
    default = {"name": "truncated_normal", "std": rest.get("initializer_range", 0.02)}
    plain = rest.get("initializer")
    output = rest.get("output_layer_initializer") or (plain if plain is not None else _divided(default, 1 / depth))
    rest["initializer"] = _divided(plain or default, width)
    rest["output_layer_initializer"] = rest["ffn_output_layer_initializer"] = _divided(output, width * depth)
    up.note("changed", ("model",), "initializers: the width and depth factors that muP applies by itself are taken out")


def _divided(init: Any, by: float) -> Any:
    """`init` with its spread divided by `by`; what has no spread is left to the schema to check."""
    if not isinstance(init, dict):
        return init
    # 14 digits: what was 0.08 before it was scaled is 0.08 again, not 0.08000000000000002
    numbers = {k: float(f"{init[k] / by:.14g}") for k in ("std", "a", "b") if isinstance(init.get(k), int | float)}
    return {**init, **numbers}


def find_section(doc: Document) -> dict[str, Any] | None:
    """The model section of today's format, where there is one."""
    found = doc.data
    for key in PLACE:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def precision_in_model(doc: Document) -> None:
    """Release 2.4 still wrote mixed_precision and fp16_type in the model, next to `precision`."""
    section = find_section(doc)
    if section is None or not isinstance((init := doc.data["trainer"]["init"]).get("precision", {}), dict):
        return
    for old, new in (("mixed_precision", "enabled"), ("fp16_type", "fp16_type")):
        if old not in section:
            continue
        path, value = (*PLACE, old), section.pop(old)
        precision = init.setdefault("precision", {})
        if precision.setdefault(new, value) != value:
            doc.problems.append(
                f"{doc.mark(path)}: {dotted(path)}: {value!r} contradicts "
                f"trainer.init.precision.{new}: {precision[new]!r}"
            )
        remark(doc, path, ("trainer", "init", "precision", new))
        doc.notes.append(Note("moved", f"{doc.mark(path)}: {dotted(path)}: is now trainer.init.precision.{new}"))
