"""A checkpoint as ONNX: the model itself, traced, with batch and sequence left open. No architecture is asked of it."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from modelzoo.checksums import write_checksums
from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import check_vocabulary, parse_tokenizer, read_tokenizer, vocabulary_size
from modelzoo.data.tokenizer_files import copy_files
from modelzoo.files import making_folder, write_text
from modelzoo.interop.cards.model_card import ONNX, render_card
from modelzoo.interop.exporting.checkpoint import Exportable, merge_adapters, name_tokenizer, note_unread
from modelzoo.models.gpt import GPT, GPTModel
from modelzoo.progress import format_size
from modelzoo.training.runs.folder import RunFolder

FILE = "model.onnx"


class _Logits(nn.Module):
    """Token ids [batch, sequence] to logits [batch, sequence, vocab_size]."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model.logits(self.model.hidden(input_ids))


def export_onnx(found: Exportable, out: str) -> str:
    """Write a checkpoint as the folder `out`, whole or not at all: `model.onnx`, the tokenizer and a card.

    Weights beyond protobuf's 2 GB go to a file next to the model.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: onnx or onnxscript is not installed, there is a soft prompt, or `out` cannot be written.
    """
    try:
        import onnx  # noqa: F401  torch's exporter takes both
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UserError(f"{out}: ONNX needs {e.name}: pip install onnx onnxscript") from None
    c = found.model
    weights, masks, notes = merge_adapters(found, "ONNX")
    if found.words:
        words = name_tokenizer(found.words)
        check_vocabulary(words, vocabulary_size(parse_tokenizer(read_tokenizer(words), words)), c.vocab_size)
    model = GPTModel(c)
    model.load_state_dict({n: x.float() for n, x in weights.items()}, strict=False)
    context = c.max_position_embeddings
    ids = torch.zeros(2, min(2, context), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch", min=1)}
    if context > 1:  # of one place there is nothing to leave open
        axes[1] = torch.export.Dim("sequence", min=1, max=context)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Logits(model.model).eval(),
            (ids,),
            dynamo=True,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": axes},
            verbose=False,
        )
    assert program is not None
    name = os.path.basename(os.path.abspath(out))
    run = RunFolder.containing(found.path).path
    card = render_card(name, "ONNX", found.config, found.state, masks, run, note_unread, ONNX)
    try:
        with making_folder(out) as temporary:
            program.save(os.path.join(temporary, FILE))
            write_text(os.path.join(temporary, "README.md"), card)
            copy_files(found.words, temporary, c.bos_token_id)
            write_checksums(temporary)
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
    size = sum(os.path.getsize(os.path.join(out, n)) for n in os.listdir(out))
    lines = [f"wrote      {out}: {FILE}, input_ids [batch, sequence] to logits, float32, {format_size(size)}"]
    lines += [f"           {', '.join(sorted(os.listdir(out)))}", *(f"           {line}" for line in notes)]
    return "\n".join(
        [*lines, f"next       onnxruntime.InferenceSession({json.dumps(os.path.join(out, FILE), ensure_ascii=False)})"]
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints of packages that are not there, and of itself."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
