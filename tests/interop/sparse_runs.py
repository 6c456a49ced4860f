"""Run folders of a step of static 75 % sparse training, which tests of exports share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from modelzoo.cli import main
from tests.support import examples, write_manifest, write_shard

CONFIG = """
trainer:
  init:
    seed: SEED
    model: MODEL
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    sparsity: SPARSITY
    loop: {max_steps: 1}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""


STATIC = {"algorithm": "static", "sparsity": 0.75, "param_filter": "*linear_layer.weight"}
PERMUTED = {**STATIC, "init_method": "topk", "block": [8, 8], "permute_inputs": "start", "storage": "packed"}


def train_sparse(
    folder: Path, name: str, model: dict[str, Any], *, vocab: int, msl: int = 8, words: str | None = None,
    seed: int = 1, sparsity: dict[str, Any] = STATIC,
) -> Path:  # fmt: skip
    """The run folder FOLDER/NAME, trained once.

    Args:
        vocab: ids of the data are below it. words: the tokenizer.json next to the data.
    """
    data = folder / "data/train"
    if not data.exists():
        write_shard(data / "output_chunk_0_0.h5", examples(16, vocab=vocab, msl=msl))
        write_manifest(data, eos_id=0, msl=msl)
    if words is not None:
        (folder / "data/tokenizer.json").write_text(words)
    if not (out := folder / name).exists():
        text = CONFIG.replace("DATA", str(data)).replace("MODEL", json.dumps(model)).replace("SEED", str(seed))
        text = text.replace("SPARSITY", json.dumps(sparsity))
        (folder / f"{name}.yaml").write_text(text)
        assert main(["CPU", "-p", str(folder / f"{name}.yaml"), "-m", "train", "-o", str(out)]) == 0
    return out


def read_dense(run: Path) -> dict[str, np.ndarray]:
    """The weights of a run with permuted inputs in its model's own order, 0 where masks are off, by name."""
    step = run / "checkpoints/step_1"
    found = load_file(step / "model.safetensors")
    masks = {n.removesuffix("_mask"): x != 0 for n, x in found.items() if n.endswith("_mask")}
    orders = list(load_file(step / "orders.safetensors").values())
    assert len(orders) == len(masks) > 0 and all((x != np.arange(x.size)).any() for x in orders)
    for mask in masks.values():  # no blocks as inputs are: the order makes them
        rows, columns = mask.shape
        assert len({int(n) for n in mask.reshape(rows // 8, 8, columns // 8, 8).sum((1, 3)).ravel()} - {0, 64})
    return {n: np.where(masks[n], x, 0) if n in masks else x for n, x in found.items() if not n.endswith("_mask")}
