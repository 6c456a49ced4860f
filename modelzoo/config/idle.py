"""The one table of keys without effect: what the schema accepts for Model Zoo's sake, and why it has no effect here.

tests/config/test_every_key.py walks the schema: a key that nothing reads must be in one of these tables.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from modelzoo.config.loading.walk import sections
from modelzoo.config.loading.yaml12 import Document
from modelzoo.redact import redact_text

HINT = "a compile hint of Model Zoo's own model, which this one does not take; the values are the same"
CYCLE = "a cycle is total_iters steps, and the end holds after it"
NO_EFFECT: Mapping[str, Mapping[str, str]] = {  # section: key: why
    "Init": {"autorestart": "nothing restarts a run by itself; the same command goes on from its last checkpoint"},
    "Checkpoint": {"checkpoint_name": "checkpoints are folders named step_N; `run.py export` writes a .mdl"},
    "DataLoader": {
        "data_processor": "both of Model Zoo's names read the same shards in the same order",
        "drop_last": "nothing is dropped: what an epoch leaves over opens the next batch",
        "use_worker_cache": "workers read the shards where they are",
    },
    "TensorBoardLogger": {"legacy_event_dirs": "events of all kinds go to one folder"},
    "PolynomialLR": {"cycle": CYCLE},
    "LinearLR": {"cycle": CYCLE},
    "CyclicLR": {"scale_mode": "it follows `mode`, as in cerebras.pytorch"},
    "GPTConfig": dict.fromkeys(("fold_rope_consts", "attention_kernel", "attention_softmax_fp32"), HINT),
    "Callback": {
        "ComputeNorm": "the gradient norm is always logged",
        "CheckLoss": "loop.on_nonfinite is always on",
    },
}
# section: key: a key next to it, whether its value lets the first one act, and why the first has no effect otherwise
CONDITIONS: Mapping[str, Mapping[str, tuple[str, Callable[[Any], bool], str]]] = {
    "GPTConfig": {
        **dict.fromkeys(("rotary_dim", "rope_theta"), (
            "position_embedding_type", lambda kind: kind == "rotary", "acts with position_embedding_type: rotary only"
        )),
        "scale_output_logits_by_d": ("mup_base_hidden_size", bool, "acts with mup_base_hidden_size only"),
    },
    "Loop": {
        "max_skipped_steps": ("on_nonfinite", lambda act: act == "skip", "acts with on_nonfinite: skip only"),
        "steps_per_epoch": ("num_epochs", bool, "acts with num_epochs only"),
    },
    "DataLoader": {
        "shuffle_seed": ("shuffle", bool, "nothing is shuffled (shuffle: false)"),
        **dict.fromkeys(("prefetch_factor", "persistent_workers"), ("num_workers", bool, "there are no num_workers")),
    },
    "SGD": {"dampening": ("momentum", bool, "acts with momentum only")},
}  # fmt: skip
CSX_ONLY: Mapping[str, tuple[str, ...]] = {  # section: keys that act on the CS-2 alone
    "Backend": (
        *("compile_dir", "num_csx", "num_workers_per_csx", "mgmt_address", "credentials_path", "mount_dirs"),
        *("python_paths", "job_labels", "job_priority", "job_time_sec", "disable_version_check", "cluster_config"),
    ),
    "Precision": ("precision_opt_level",),
    "Callback": ("GlobalFlags", "ScopedTrainFlags", "ScopedValidateFlags"),
}


def remarks(doc: Document, schema: type[BaseModel], csx: bool = False) -> list[str]:
    """What a user should know about a config before it runs, each with its line: old spellings, what was assumed or
    lost, and what has no effect. No secrets.

    Args:
        csx: the run goes to the CS-2, where its keys act.
    """
    found = [note.text for note in doc.notes if note.kind != "moved"] + list(idle(doc, schema, csx))
    return [redact_text(text) for text in dict.fromkeys(found)]


def idle(doc: Document, schema: type[BaseModel], csx: bool = False) -> Iterator[str]:
    """Keys of `doc` that are accepted and change nothing, each with its line. A key at its default requests nothing."""
    for path, model, data in sections(doc.data, schema):
        known = NO_EFFECT.get(model.__name__, {})
        if not csx:
            known = {**known, **dict.fromkeys(CSX_ONLY.get(model.__name__, ()), "acts on the CS-2 only")}
        known = {**known, **_unmet(model, data)}
        found = {key: why for key, why in known.items() if key in data and not _is_default(model, key, data[key])}
        if model.__name__ == "Precision" and not csx:
            found |= _of_precision(data)
        for key, why in found.items():
            yield f"{doc.mark((*path, key))}: {'.'.join(map(str, (*path, key)))}: {why}"


def _unmet(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a section that act with another value of a key next to them only."""
    conditions = CONDITIONS.get(model.__name__, {})
    return {
        key: why
        for key, (other, is_met, why) in conditions.items()
        if not is_met(data.get(other, model.model_fields[other].default))
    }


def _is_default(model: type[BaseModel], key: str, value: Any) -> bool:
    default = model.model_fields[key].default
    choice = default is None and isinstance(value, dict)  # {ComputeNorm: {}} asks for it, as a bare name does
    return value is None and not key[:1].isupper() or not choice and value in (default, _plain(default))


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def _of_precision(data: Mapping[str, Any]) -> dict[str, str]:
    """Keys of `precision` that act in another format only."""
    kind = data.get("fp16_type")
    return {
        key: why
        for key, off, why in (
            ("fp16_type", kind == "cbfloat16", "cbfloat16 is the CS-2's; bfloat16 elsewhere"),
            ("loss_scaling_factor", kind != "float16", "a dynamic scale acts in float16 only"),
            ("emulate", data.get("enabled") is False, "enabled: false computes in float32"),
        )
        if off and (data.get(key) in ("cbfloat16", "dynamic") or data.get(key) is True)
    }
