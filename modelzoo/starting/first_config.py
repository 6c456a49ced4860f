"""`run.py init DIR`: a commented config for the data that is there, to be changed by hand. It asks nothing."""

import json
import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.data.files import find_shards
from modelzoo.data.folder import read_manifest
from modelzoo.files import making_folder, write_text

SIZES = {  # layers, width, heads; and the highest learning rate that suited such a width here
    "tiny": (4, 128, 4, 3e-3),
    "small": (4, 256, 4, 2e-3),
    "medium": (8, 512, 8, 1e-3),
    "med": (24, 1024, 16, 4e-4),
}
DEPTH = 3  # folders below the present one in which data is looked for
TEMPLATE = """\
# Written by `run.py init` for {data}. Every key: docs/reference.md, or `run.py list keys`.
# Look first:  python run.py plan {command_file}
# Then train:  python run.py train_and_eval {command_file}
trainer:
  init:
    seed: 1
    model_dir: {runs}
    backend: {{backend_type: auto}}  # CSX, GPU or CPU insist on one; auto takes what is there
    model:
      # {size}: {weights:,} weights in its matrices. Sizes to grow into: run.py init --size, configs/mediswift/
      vocab_size: {vocab}  # the data's tokenizer has so many tokens
      max_position_embeddings: {msl}  # the data's sequences are this long
      num_hidden_layers: {layers}
      hidden_size: {hidden}
      num_heads: {heads}
      filter_size: {ffn}
      dropout_rate: 0.0
      attention_dropout_rate: 0.0
{sparsity}    optimizer:
      AdamW: {{betas: [0.9, 0.95], weight_decay: 0.1}}
    schedulers:
      - SequentialLR:
          schedulers:  # {warm} steps up, the rest down; lower the rate if the loss jumps
            - LinearLR: {{initial_learning_rate: 0.0, end_learning_rate: {rate:g}, total_iters: {warm}}}
            - CosineDecayLR: {{initial_learning_rate: {rate:g}, end_learning_rate: {low:g}, total_iters: {rest}}}
    precision: {{fp16_type: bfloat16, max_gradient_norm: 1.0}}  # where the device multiplies it, else float32
    loop: {{max_steps: {steps}, eval_frequency: 10%}}  # {epochs:.2g} times {examples:,} examples
    checkpoint: {{steps: 10%}}  # the last ones are kept; a killed run goes on with the same command
  fit:
    train_dataloader:
      data_dir: {train}
      batch_size: {batch}
      shuffle: true
"""
SPARSE = """\
    sparsity:  # of the matrices between embedding and head; `run.py list algorithms`
      sparsity: {level:g}  # the share of their weights that is off
"""
DENSE = "    # sparsity: {sparsity: 0.75}  # the share of the matrices' weights that is off\n"
VAL = """\
    val_dataloader:
      data_dir: {val}
      batch_size: {batch}
"""


class _Data(NamedTuple):
    train: str
    val: str | None
    vocab: int
    msl: int
    examples: int


def write_first_config(folder: str, data: str | None, size: str | None, level: float) -> list[str]:
    """Make `folder` with a config.yaml for the shards in `data`, or for those found below the present folder.

    Args:
        size: of SIZES; default: small for a machine without a GPU driver, by its memory.
        level: the share of weights off; 0 for a dense model.

    Returns:
        Lines about what was made and what to do next.

    Raises:
        UserError: the folder is there, no data or several are found, or the data has no manifest.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists; give another name")
    found = _read_data(data or _find_data("."))
    size = size or ("small" if (host.total_memory() or 0) > 8 << 30 else "tiny")
    layers, hidden, heads, rate = SIZES[size]
    batch = max(1, 4096 // found.msl)
    steps = max(100, min(20_000, round(found.examples / batch)))
    warm = max(1, steps // 10)
    file = os.path.join(folder, "config.yaml")
    text = TEMPLATE.format(
        data=os.path.dirname(found.train) or found.train, command_file=shlex.quote(file),
        runs=json.dumps(os.path.join(folder, "run")), size=size,
        weights=12 * layers * hidden**2, vocab=found.vocab, msl=found.msl, layers=layers, hidden=hidden, heads=heads,
        ffn=4 * hidden, rate=rate, low=rate / 10, warm=warm, rest=steps - warm, steps=steps, batch=batch,
        epochs=steps * batch / found.examples, examples=found.examples, train=json.dumps(found.train),
        sparsity=SPARSE.format(level=level) if level else DENSE,
    )  # fmt: skip
    if found.val is not None:
        text += VAL.format(val=json.dumps(found.val), batch=batch)
    with making_folder(folder) as temporary:
        write_text(os.path.join(temporary, "config.yaml"), text)
    return [
        f"made       {file}: {size}, {level:g} of its matrices' weights off, for {found.examples:,} examples of "
        f"{found.msl} tokens in {found.train}",
        f"next       python run.py plan {shlex.quote(file)}",
    ]


def _find_data(top: str) -> str:
    """The one data folder below `top`.

    Raises:
        UserError: there is none, or there are several.
    """
    found = []
    for path, folders, names in os.walk(top):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if path.count(os.sep) >= DEPTH:
            folders.clear()
        if "manifest.json" in names and os.path.isdir(os.path.join(path, "train")):
            found.append(os.path.normpath(path))
            folders.clear()
    if not found:
        raise UserError(
            "init: no data is below this folder; make some with `python -m data_preprocessing pubmed --input XML "
            "--output data`, or name its folder with --data"
        )
    if len(found) > 1:
        raise UserError(f"init: data is in {', '.join(found[:5])}; name one with --data")
    return found[0]


def _read_data(folder: str) -> _Data:
    parts: Sequence[str] = [os.path.join(folder, part) for part in ("train", "val")]
    train = parts[0] if os.path.isdir(parts[0]) else folder
    find_shards([train])
    recorded = read_manifest(train)
    facts = [recorded.get(key) for key in ("vocab_size", "msl", "n_examples")]
    if not all(isinstance(x, int) and x > 0 for x in facts):
        raise UserError(
            f"{train}: its manifest.json does not say vocab_size, msl and n_examples; write a config by hand"
        )
    vocab, msl, examples = (int(x) for x in facts if isinstance(x, int))
    return _Data(train, parts[1] if train != folder and os.path.isdir(parts[1]) else None, vocab, msl, examples)
