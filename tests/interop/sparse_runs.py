"""Run folders of a step of static 75 % sparse training, which tests of exports share."""

import json
from pathlib import Path
from typing import Any

from modelzoo.cli import main
from tests.support import examples, write_manifest, write_shard

CONFIG = """
trainer:
  init:
    seed: SEED
    model: MODEL
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    sparsity: {algorithm: static, sparsity: 0.75, param_filter: '*linear_layer.weight'}
    loop: {max_steps: 1}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""


def train_sparse(
    folder: Path, name: str, model: dict[str, Any], *, vocab: int, msl: int = 8, words: str | None = None, seed: int = 1
) -> Path:
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
        (folder / f"{name}.yaml").write_text(text)
        assert main(["CPU", "-p", str(folder / f"{name}.yaml"), "-m", "train", "-o", str(out)]) == 0
    return out
