"""What a lowered training step holds, read from its MLIR, and which op, module and config key made one fail."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from modelzoo.config.errors import UserError

_TORCH_OP = re.compile(r"torch\.aten\.([\w.]+)")
_CIRH_OP = re.compile(r"\bcirh\.(\w+)")
_STATE = re.compile(r'%arg\d+: tensor<((?:\d+x)*)(\w+)> \{[^{}]*tf\.resource_name = "state\.([^"]+)"')
_FAILED_OP = re.compile(r"(?:aten::|torch\.aten\.|'torch\.|Operator |op )_?'?([\w.:]+)")

# Where an op can only come from one choice of the config, that choice; else the section that decides.
KEYS = (
    ("drop", "trainer.init.model.dropout_rate"),
    ("self_attn", "trainer.init.model.attention_type, position_embedding_type"),
    ("ffn", "trainer.init.model.nonlinearity"),
    ("norm", "trainer.init.model.norm_type"),
    ("embedding", "trainer.init.model.position_embedding_type"),
    ("lm_head", "trainer.init.model.share_embedding_weights"),
    ("optim", "trainer.init.optimizer"),
    ("sparse", "trainer.init.sparsity"),
    ("grad_scaler", "trainer.init.precision"),
    ("clip_grad", "trainer.init.precision.max_gradient_norm"),
    ("scheduler", "trainer.init.schedulers"),
)


class Lowered(NamedTuple):
    """One training step as lowered."""

    torch_ops: Counter
    cirh_ops: Counter
    states: dict[str, tuple[int, ...]]  # shape of each tensor that lives on the wafer, by name

    @property
    def parameters(self) -> int:
        """Weights of the model (its buffers, such as masks, not counted)."""
        return sum(_numel(s) for n, s in self.states.items() if n.startswith("model.") and not n.endswith("_mask"))

    @property
    def masked(self) -> list[str]:
        """Names of the weights that have a mask on the wafer."""
        return [n.removeprefix("model.").removesuffix("_mask") for n in self.states if n.endswith("_mask")]


def read(folder: str) -> Lowered:
    """What `torch.mlir` and `cirh.mlir` of an executor's folder hold."""
    torch_text, cirh_text = (Path(folder, f"{n}.mlir").read_text(errors="replace") for n in ("torch", "cirh"))
    states = {name: tuple(int(d) for d in dims.split("x") if d) for dims, _, name in _STATE.findall(cirh_text)}
    return Lowered(Counter(_TORCH_OP.findall(torch_text)), Counter(_CIRH_OP.findall(cirh_text)), states)


def text(found: Lowered, folder: str, seconds: float, live: Mapping[str, int]) -> str:
    """What a person reads of a lowered step.

    Args:
        live: live weights of each sparse parameter, by name, at step 0.
    """
    total = found.parameters
    lines = [
        f"lowered    one training step in {seconds:.1f} s: {sum(found.torch_ops.values()):,} torch ops of "
        f"{len(found.torch_ops)} kinds to {sum(found.cirh_ops.values()):,} CIRH ops of {len(found.cirh_ops)} kinds",
        f"           most: {', '.join(f'{n} {op}' for op, n in found.cirh_ops.most_common(6))}",
        f"parameters {total:,} in {len(found.states)} tensors of state with the optimizer's",
    ]
    if live:
        sparse = sum(_numel(found.states[f"model.{n}"]) for n in live if f"model.{n}" in found.states)
        lines.append(
            f"live       {total - sparse + sum(live.values()):,}: {sum(live.values()):,} of {sparse:,} weights under "
            f"{len(found.masked)} masks"
        )
    lines.append(f"files      {Path(folder, 'torch.mlir')}, {Path(folder, 'cirh.mlir')}")
    lines.append("           lowered, not placed: whether it fits the wafer is for a cluster to say (--compile_only)")
    return "\n".join(lines)


def guarded(work):
    """Do `work`; what fails while tracing or lowering comes back as a message to the user."""
    try:
        return work()
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError, KeyError) as e:
        raise explain(e) from e


def explain(error: BaseException) -> UserError:
    """The user's message for a step that would not trace or lower: op, module, and the config key to change."""
    message = str(error).strip()
    line = next((x for x in message.splitlines() if "support" in x or "Lowering" in x or "aten" in x), message[:300])
    op = _FAILED_OP.search(line)
    frames, at = [], error.__traceback__
    while at is not None:
        frames.append((at.tb_frame.f_code.co_filename, at.tb_lineno, at.tb_frame.f_code.co_name))
        at = at.tb_next
    ours = [f for f in frames if "/modelzoo/" in f[0] and "/backends/" not in f[0]]
    trail = " ".join(f"{Path(f[0]).stem} {f[2]}" for f in frames) + " " + message
    key = next((key for sign, key in KEYS if sign in trail), "trainer.init.model")
    where = f" in {Path(ours[-1][0]).name}:{ours[-1][1]} ({ours[-1][2]})" if ours else ""
    return UserError(
        f"CSX: the training step does not lower: {op.group(1) if op else 'an op'}{where}: {line.strip()[:300]}\n"
        f"look at {key}"
    )


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n
