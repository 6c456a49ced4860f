"""`run.py prompt`: the words of the vocabulary that a soft prompt's learned vectors are near to."""

import shlex

import torch

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.data import tokenizer
from modelzoo.models.soft_prompt import find_nearest
from modelzoo.names import SOFT_PROMPT, WORDS_WEIGHT
from modelzoo.planning import start_checkpoint
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.runs.folder import RunFolder


def format_prompt_table(path: str, words: str | None = None, nearest: int = 5) -> str:
    """The vocabulary's tokens that each learned vector of a run or step folder is nearest to.

    Args:
        words: tokenizer.json or its folder; default: the run's own. Without any, tokens are printed as ids.
        nearest: how many tokens a vector.

    Raises:
        UserError: no whole checkpoint, or one without a soft prompt.
    """
    if nearest < 1:
        raise UserError(f"--nearest {nearest}: give at least 1")
    found = start_checkpoint.find_checkpoint(path)
    files, state = checkpoint.load(found)
    held, section = files.get("model", {}), start_checkpoint.check_state(state, found).soft_prompt
    if SOFT_PROMPT not in held or section is None:
        raise UserError(f"{found}: has no soft prompt; it is of a run without trainer.init.soft_prompt")
    rows, table = held[SOFT_PROMPT].float(), held.get(WORDS_WEIGHT, torch.empty(0)).float()
    if rows.dim() != 2 or rows.shape[1:] != table.shape[1:]:
        raise UserError(f"{found}: its soft prompt is {list(rows.shape)}, its word embedding {list(table.shape)}")
    text = _texts(words, found, len(table))
    lines = [
        f"{found}: soft prompt of {len(rows)} vectors ({section.place}, from {section.init}), width "
        f"{rows.shape[1]}; a word's norm is {float(table.norm(dim=1).mean()):.3f} on average",
        "",
        "| vector | norm | nearest by cosine | nearest by dot product |",
        "|---:|---:|---|---|",
    ]
    cosine, dot = find_nearest(rows, table, nearest)
    for i, row in enumerate(rows):
        cells = (", ".join(f"{text(t)} {v:.3f}" for v, t in side[i]) for side in (cosine, dot))
        lines.append(f"| {i} | {float(row.norm()):.3f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"next       python run.py export {shlex.quote(path)} OUT   (the vectors, with the Hugging Face model)",
    ]
    return "\n".join(lines)


def _texts(words: str | None, checkpoint_path: str, vocab_size: int):
    """A function from a token id to its text in the table."""
    if words is None:
        try:
            init = load(RunFolder.containing(checkpoint_path).config, Config).trainer.init
            words = start_checkpoint.find_tokenizer_path(init, checkpoint_path)
        except UserError:  # a step folder alone, or the data is elsewhere now
            return str
    backend = tokenizer.parse_tokenizer(tokenizer.read_tokenizer(words), words)
    tokenizer.check_vocabulary(words, tokenizer.vocabulary_size(backend), vocab_size)

    def show(i: int) -> str:
        text = backend.decode([i], skip_special_tokens=False) or f"#{i}"
        text = text if text.isprintable() else ascii(text)[1:-1]  # one line, and no orders to a terminal
        return "`" + text.replace("|", "\\|") + "`"

    return show
