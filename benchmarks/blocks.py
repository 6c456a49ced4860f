"""The blocks of docs/performance.md: what is measured on every class of processor, in which arithmetic."""

import os
from typing import NamedTuple


class Block(NamedTuple):
    """One command of the page."""

    name: str
    text: str  # what it measures; no figures, which differ by class
    command: str  # after `python`
    dtype: str | None = None  # None: no matter
    peers: bool = False  # takes programs and clones that live elsewhere


PEERS = {"--nanogpt": "NANOGPT", "--litgpt-python": "LITGPT_PYTHON", "--csx-python": "CSX_PYTHON"}  # flag: variable
_STEP = (
    "A whole training step: forward, backward, clipping, AdamW and masks, against the faster of our dense steps. "
    "`masked` is weights times a mask, `unstructured` (`single weights` in older blocks) "
    "the paper's pattern stored alone (`storage: packed`)"
)
_WIDE = "At twice the width, where head and attention weigh less."
_PEERS = (
    "Beside others, on the same shapes with the same optimizer and precision: Hugging Face's GPT-2 in the loop that "
    "one writes by hand and in its Trainer; where they are at hand, nanoGPT's loop, litgpt's, compiled, as its "
    "`pretrain` does, and cerebras.pytorch's CPU backend, which knows float32 alone and multiplies by masks."
)
_D768 = "--hidden 768 --heads 12 --batch 4"
_D1536 = "--hidden 1536 --heads 12 --batch 4"

BLOCKS = (
    Block(
        "linear-float32",
        "Linear layers: live blocks alone, against torch's dense product (`F.linear`, and the two products of its "
        "backward). Forward is x W^T; backward is dX and dW together.",
        "benchmarks/linear.py --summary --dtype float32 --sparsity 0.5 0.75 0.9",
        "float32",
    ),
    Block(
        "linear-bf16",
        "The same in bfloat16.",
        "benchmarks/linear.py --summary --dtype bfloat16 --sparsity 0.5 0.75 0.9",
        "bfloat16",
    ),
    Block(
        "linear-bf16-2048",
        "With twice as many tokens packing the weights weighs half: they change at every step, so every product does.",
        "benchmarks/linear.py --summary --dtype bfloat16 --tokens 2048",
        "bfloat16",
    ),
    Block(
        "step-float32",
        f"{_STEP}.",
        f"benchmarks/train_step.py --dtype float32 --patterns 0.5,0.75,0.9 --rigl {_D768} --rounds 7",
        "float32",
    ),
    Block(
        "step-bf16",
        f"{_STEP}; with torch.compile, too.",
        f"benchmarks/train_step.py --dtype bfloat16 --patterns 0.5,0.75,0.9 --compile --rigl {_D768} --rounds 9",
        "bfloat16",
    ),
    Block(
        "wide-float32",
        _WIDE,
        f"benchmarks/train_step.py --dtype float32 --patterns 0.75 {_D1536} --rounds 5",
        "float32",
    ),
    Block(
        "wide-bf16",
        _WIDE,
        f"benchmarks/train_step.py --dtype bfloat16 --patterns 0.75 --compile {_D1536} --rounds 7",
        "bfloat16",
    ),
    Block("peers-float32", _PEERS, "benchmarks/train_step.py --dtype float32 --rounds 11", "float32", peers=True),
    Block("peers-bf16", _PEERS, "benchmarks/train_step.py --dtype bfloat16 --rounds 11", "bfloat16", peers=True),
    Block(
        "peers-wide-float32",
        "Beside others at twice the width.",
        f"benchmarks/train_step.py --dtype float32 --rounds 7 {_D768}",
        "float32",
        peers=True,
    ),
    Block(
        "peers-wide-bf16",
        "Beside others at twice the width.",
        f"benchmarks/train_step.py --dtype bfloat16 --rounds 7 {_D768}",
        "bfloat16",
        peers=True,
    ),
    Block(
        "startup",
        "Waiting: for help, for a plan, for the first training step, and for data between steps.",
        "benchmarks/startup.py --rounds 4",
    ),
)


def command(block: Block) -> str:
    """The command with the flags of the peers whose variables are set; the page names variables, not their values."""
    flags = [f"{flag} ${name}" for flag, name in PEERS.items() if block.peers and os.environ.get(name)]
    return " ".join([block.command, *flags])


def absent(block: Block) -> list[str]:
    """The variables of peers that are not set."""
    return [name for name in PEERS.values() if block.peers and not os.environ.get(name)]
