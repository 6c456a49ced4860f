"""Command lines with one word otherwise."""

from collections.abc import Sequence
from random import Random

VALUES = (
    "", " ", "-", "--", "x", "0", "-1", "1", "1e3", "1e999", "nan", "inf", "²", "99999999999999999999", "1/2",
    "2/1", "0/0", "null", "[]",
    "{}", "a=b", "=", "a.b.c=1", "trainer=1", "trainer.init=1", "trainer.init.model.hidden_size=0",
    "trainer.init.loop.max_steps=-1",
    "trainer.init.seed=x", "trainer.init.optimizer=1", "trainer.init.sparsity.sparsity=2", "../../x", ".", "..",
    "/", "/dev/null", "/dev/zero",
    "/dev/stdin", "/proc/self/mem", "{fifo}", "{folder}", "{missing}", "{missing}/x/y", "$x^$", "a\nb", "é",
    "\udcff", "x" * 3000, "--help",
    "--version", "-h", "-v", "~", "*", "%s", "<b>",
)  # fmt: skip
FLAGS = (
    "-p", "-o", "-m", "--set", "--seed", "--max_steps", "--num_steps", "--num_epochs", "--eval_steps",
    "--checkpoint_path", "--restart",
    "--validate_only", "--tasks", "--data_dir", "--split", "--load_checkpoint_states", "--force", "--weights",
    "--tokenizer", "--dtype",
    "--output", "--input", "--msl", "--workers", "--vocab_size", "--share", "--config", "--unknown", "-x",
    "--num_csx", "--logging",
)  # fmt: skip


def mutate_words(words: Sequence[str], draw: Random, paths: dict[str, str]) -> list[str]:
    """A command line that differs from `words` in one place; `paths` as in `mutate_yaml`."""
    while True:
        found = _mutate(list(words), draw)
        for name, path in paths.items():
            found = [w.replace(f"{{{name}}}", path) for w in found]
        found = [w.replace("\0", "") for w in found]  # no command line holds one
        if found != list(words):
            return found


def _mutate(words: list[str], draw: Random) -> list[str]:
    at, kind = draw.randrange(len(words)), draw.randrange(8)
    if kind < 3:
        words[at] = draw.choice(VALUES)
    elif kind == 3:
        del words[at]
    elif kind == 4:
        words.insert(at, draw.choice((*VALUES, *FLAGS)))
    elif kind == 5:
        words += [draw.choice(FLAGS), draw.choice(VALUES)]
    elif kind == 6:
        other = draw.randrange(len(words))
        words[at], words[other] = words[other], words[at]
    else:
        words[at] = draw.choice(
            (
                words[at] + "x",
                words[at][:-1],
                words[at].upper(),
                words[at] * 2,
                words[at].replace("--", "-"),
                words[at] + "=",
            )
        )
    return words
