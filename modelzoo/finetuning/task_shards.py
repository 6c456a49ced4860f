"""A task's training examples as an ordinary folder of shards, so that fine-tuning is ordinary training."""

import hashlib
import json
import os

import h5py
import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data.folder import open_shard
from modelzoo.data.tokenizer import read_tokenizer
from modelzoo.files import replacing, write_text
from modelzoo.finetuning.task import FinetuneTask
from modelzoo.progress import Progress
from modelzoo.reading import exists, read_bytes
from modelzoo.sink import Sink

SHARD = f.SHARD_NAME.format(process=0, chunk=0)


def write_shards(folder: str, task: FinetuneTask, fold: int, out: Progress, replace: bool = False) -> str:
    """Tokenize the training examples of `fold` into `folder`; files that are there already, equal to the byte, stay.

    The tokenizer is written next to them, as preprocessing does. A shard that was damaged since is made again.

    Args:
        replace: whether other examples that the folder holds make way.

    Raises:
        UserError: an example that does not fit, a disk that is full, or other examples in the folder.
    """
    data, counts = task.encode_training(fold)
    manifest = {
        "vocab_size": task.tokenizer.size,
        "eos_id": task.tokenizer.eos,
        "task": task.name,
        "template": task.task.template_path,
        "fold": fold,
        "counts": counts._asdict(),
        "shards": [{"file": SHARD, "examples": len(data), "data_sha256": hashlib.sha256(data.tobytes()).hexdigest()}],
    }
    text, words = json.dumps(manifest, indent=1) + "\n", read_tokenizer(task.tokenizer.name)
    lost = counts.tokens_cut / max(counts.tokens_cut + counts.tokens, 1)
    cut = f", {counts.truncated} cut to the context: {counts.tokens_cut:,} tokens are left out, {lost:.0%} of all"
    out.note(
        f"data       {counts.examples} training examples, {counts.tokens:,} tokens without the answers"
        + (cut if counts.truncated else "")
    )
    task.note_remarks("train", fold, out)
    path, shard = os.path.join(folder, f.MANIFEST), os.path.join(folder, SHARD)
    try:
        if exists(path) and not replace:
            if read_bytes(path) != text.encode():
                raise UserError(
                    f"{folder}: holds training examples that were made otherwise (another task, template, tokenizer or "
                    "length); give another -o, or --restart"
                )
            if _holds(shard, data):
                return folder
            out.note(f"damaged    {shard}: does not hold the task's examples; it is made again")
        os.makedirs(folder, exist_ok=True)
        _write_shard(shard, data)
        write_text(os.path.join(folder, f.TOKENIZER), words)
        write_text(path, text)  # last: where it is there, the rest is whole
    except (OSError, RuntimeError) as e:  # h5py raises both
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())[:160]
        raise UserError(f"{folder}: cannot be written ({reason}); free some space or give another -o") from None
    return folder


def _holds(shard: str, data: np.ndarray) -> bool:
    """Whether a shard holds exactly these examples."""
    try:
        file, found = open_shard(shard)
        with file:
            return found.shape == data.shape and found.dtype == data.dtype and bool(np.array_equal(found[:], data))
    except (UserError, OSError, RuntimeError, ValueError):
        return False


def _write_shard(path: str, data: np.ndarray) -> None:
    with replacing(path) as temporary, Sink(temporary) as sink:
        with h5py.File(sink, "w") as file:
            file.create_dataset(f.DATASET, data=data, chunks=(1, *data.shape[1:]), compression="gzip")
            file.attrs[f.N_EXAMPLES] = len(data)
        sink.check()
