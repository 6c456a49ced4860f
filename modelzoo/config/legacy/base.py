"""What the translation of older dialects uses: the tables of moved and idle keys, and the file in translation."""

from collections.abc import Mapping
from typing import Any

from modelzoo.config.loading.yaml12 import Document, Note, Path

CSX = "acts on CS-2 clusters only"
ALWAYS = "this is always so here"

# Keys with another place: old key -> place under `trainer`.
RUNCONFIG = {
    **{k: f"init.loop.{k}" for k in ("max_steps", "num_steps", "num_epochs", "steps_per_epoch", "eval_steps")},
    "eval_frequency": "init.loop.eval_frequency",
    "checkpoint_steps": "init.checkpoint.steps",
    "keep_checkpoint_max": "init.checkpoint.keep",
    "max_checkpoints": "init.checkpoint.keep",
    **{
        k: f"init.checkpoint.{k}"
        for k in ("save_initial_checkpoint", "autoload_last_checkpoint", "disable_strict_checkpoint_loading")
    },
    "log_steps": "init.logging.log_steps",
    "logging": "init.logging.log_level",
    "seed": "init.seed",
    "model_dir": "init.model_dir",
    "target_device": "init.backend.backend_type",
    "precision_opt_level": "init.precision.precision_opt_level",
    "checkpoint_path": "fit.ckpt_path",
    **{
        k: f"init.backend.{k}"
        for k in (
            "compile_dir",
            "num_csx",
            "num_workers_per_csx",
            "mgmt_address",
            "credentials_path",
            "mount_dirs",
            "python_paths",
            "job_labels",
            "job_priority",
            "job_time_sec",
            "disable_version_check",
        )
    },
}
MODEL = {"mixed_precision": "init.precision.enabled", "precision_opt_level": "init.precision.precision_opt_level"}
# Keys that change nothing here, and why.
IDLE = {
    "runconfig": {
        **dict.fromkeys(
            (
                "use_cs_grad_accum",
                "use_appliance_data",
                "num_wgt_servers",
                "num_act_servers",
                "execution_strategy",
                "transfer_processes",
                "wsc_log_level",
                "mgmt_namespace",
                "lazy_initialization",
                "retrace_every_iteration",
                "drop_data",
                "debug_args",
                "debug_args_path",
                "ini",
                "op_profiler_config",
                "execute_crd_memory_gi",
                "compile_crd_memory_gi",
                "wrk_memory_gi",
                "act_memory_gi",
                "cmd_memory_gi",
                "wgt_memory_gi",
                "use_cstorch_optimizer_step",
            ),
            CSX,
        ),
        **dict.fromkeys(("save_losses", "check_loss_values"), ALWAYS),
        **dict.fromkeys(
            ("show_debug_metrics", "save_summary_steps", "main_process_id"), "only changed what was displayed"
        ),
        **dict.fromkeys(("dist_addr", "dist_backend", "init_method"), "torchrun says it"),
        "mode": "the command line says it (-m)",
    },
    "model": {
        **dict.fromkeys(("tf_summary", "allow_multireplica", "alibi_implementation"), CSX),
    },
    "input": {
        "vocab_size": "the model's holds",
        "mixed_precision": "tokens are integers",
        "use_multiple_workers": CSX,
    },
}
# Keys accepted with one value only: key -> (that value, what else would mean).
ONLY: dict[str, dict[str, tuple[Any, str]]] = {
    "runconfig": {
        "enable_distributed": (False, "more than one process; start those with torchrun"),
        "sync_batchnorm": (False, "batch normalisation, which no GPT has"),
        "validate_only": (False, "the command-line flag --validate_only"),
        "compile_only": (False, "the command-line flag --compile_only"),
        "is_pretrained_checkpoint": (False, "the command-line flag --load_checkpoint_states model"),
        "load_checkpoint_states": (None, "the command-line flag --load_checkpoint_states"),
        "dump_activations": (False, "dumps of activations, which this trainer does not have"),
        "log_input_summaries": (False, "summaries of inputs, which this trainer does not have"),
        "summary_dir": (None, "another place for TensorBoard (use trainer.init.loggers)"),
        "experimental": ({}, "experimental listeners, which this trainer does not have"),
    },
    "model": {
        "lora_params": (None, "LoRA in Model Zoo's form (here it is trainer.init.lora)"),
        "scale_glu_initialization": (False, "a rescaled GLU initialisation (give ffn_initializer)"),
        "compression": (None, "weight compression, which this trainer does not have"),
        "selective_grad": (None, "selective gradients, which this trainer does not have"),
    },
    "train_input": {"repeat": (True, "a run that ends with its data (use loop.num_epochs)")},
    "eval_input": {"repeat": (False, "validation without end")},
}


class Upgrade:
    """An older file in translation: `old` sections are consumed, `new` grows, marks follow."""

    def __init__(self, doc: Document):
        self.doc, self.old = doc, doc.data
        self.new: dict[str, Any] = {}

    def note(self, kind: str, path: Path, text: str) -> None:
        self.doc.notes.append(Note(kind, f"{self.doc.mark(path)}: {dotted(path)}: {text}"))

    def refuse(self, path: Path, text: str) -> None:
        self.doc.problems.append(f"{self.doc.mark(path)}: {dotted(path)}: {text}")

    def put(self, place: str, value: Any, old: Path | None = None, kind: str = "moved") -> None:
        """Write `value` at `place` (dotted, under trainer); its marks are those of `old`."""
        *parents, last = path = place.split(".")
        target = self.new
        for part in parents:
            target = target.setdefault(part, {})
        target[last] = value
        if old is not None:
            remark(self.doc, old, ("trainer", *path))
            if kind:
                self.note(kind, old, f"is now trainer.{place}")

    def section(self, name: str, moves: Mapping[str, str], inputs: str | None = None) -> dict[str, Any]:
        """Work through one section by the tables above; returns what they don't mention."""
        found = self.old.pop(name, None)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.refuse((name,), f"a mapping of keys to values is wanted, got {found!r}")
            return {}
        rest = {}
        for key, value in found.items():
            path, kind = (name, key), inputs or name
            if key in moves:
                if value is not None:
                    self.put(moves[key], value, path)
            elif key in IDLE[kind]:
                self.note("idle", path, f"no effect: {IDLE[kind][key]}")
            elif key in ONLY.get(name, {}):
                neutral, meaning = ONLY[name][key]
                if value in (neutral, None):
                    self.note("idle", path, f"{value!r} asks for nothing")
                else:
                    self.refuse(path, f"{value!r} asks for {meaning}")
            else:
                rest[key] = value
        return rest


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def remark(doc: Document, old: Path, new: Path) -> None:
    """Give `new` and what is below it the marks of `old`."""
    for known in doc.marks.at_or_below(old):
        doc.marks.setdefault((*new, *known[len(old) :]), doc.marks[known])
