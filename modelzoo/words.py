"""What a person may type for a command line, turned into its full form: `plan s75.yaml` is `-p s75.yaml -m plan`."""

import os
from collections.abc import Sequence

from modelzoo import modes, verbs
from modelzoo.config.arguments import DEVICES, device
from modelzoo.config.errors import UserError
from modelzoo.config.loading.explain import did_you_mean

CONFIG = (".yaml", ".yml")
DATA_VERBS = (
    "pubmed", "pmc", "bioc", "jsonl", "download", "tokenizer", "pack", "inspect", "verify", "synthetic",
)  # fmt: skip


def complete_words(words: Sequence[str]) -> list[str]:
    """`words` with devices in capitals, and a leading mode or config behind its flag.

    Raises:
        UserError: a leading word is none of these and no verb; names what is near.
    """
    if words[:1] and words[0] in verbs.VERBS:
        return [*words]
    before, after, rest = [], [], [*words]
    while rest and not rest[0].startswith("-"):
        word = rest.pop(0)
        if (found := device(word)) in DEVICES:
            before.append(found)
        elif word in modes.MODES or word in modes.FORMER:
            after += ["-m", word]
        elif word.endswith(CONFIG):
            after += ["-p", word]
        elif word in DATA_VERBS:
            raise UserError(f"{word}: is a verb of python -m data_preprocessing, which prepares data")
        elif os.path.isfile(own := os.path.join(word, "config.yaml")):
            raise UserError(f"{word}: is a run's folder; name its config, {own}")
        else:
            near = did_you_mean(word, [*modes.MODES, *verbs.VERBS, *DEVICES])
            meant = near if near.endswith("?") else "; see --help"
            raise UserError(f"{word}: is no mode, verb, device or config{meant}")
    return [*before, *after, *rest]
