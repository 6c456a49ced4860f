"""Tokenizers of kinds that are not read here, known by their files, each with the command that converts it."""

import os
from collections.abc import Iterable

from modelzoo.reading import exists

_SAVE = "from_pretrained('{folder}').save_pretrained('OUT')\", and name OUT/tokenizer.json"
SENTENCEPIECE = (
    "is a SentencePiece model, which is not read here; convert it by its model's own class, for LLaMA's (PMC-LLaMA): "
    'pip install transformers sentencepiece; python -c "import transformers as t; t.LlamaTokenizerFast.' + _SAVE
)
WORDPIECE = (
    "is a WordPiece vocabulary (BERT's), which is not read as it is; convert it: pip install transformers; "
    'python -c "import transformers as t; t.BertTokenizerFast.' + _SAVE
)
MOSES = (
    "is a BPE whose words end in </w>, as BioGPT's and XLM's after Moses' rules, which no tokenizer.json can hold. "
    "Make the ids with the model's own class (pip install transformers sacremoses; transformers.BioGptTokenizer) as "
    "JSONL with input_ids, and give that to `python -m data_preprocessing pack`; docs/preprocessing.md has the commands"
)


def explain_folder(folder: str) -> str | None:
    """What is wrong with a folder that holds another kind of tokenizer, as a message; None where it holds none."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = next((n for n in names if n.endswith(".model")), None)
    if found is not None:
        return explain(os.path.join(folder, found), SENTENCEPIECE)
    if {"bpecodes", "dict.txt"} <= set(names):
        return explain(os.path.join(folder, "bpecodes"), MOSES)
    if "vocab.txt" in names:
        return explain(os.path.join(folder, "vocab.txt"), WORDPIECE)
    return None


def explain_file(path: str) -> str | None:
    """The same of a file that is named as a tokenizer."""
    name = os.path.basename(path)
    if name.endswith(".model"):
        return explain(path, SENTENCEPIECE)
    if name == "vocab.txt":
        return explain(path, WORDPIECE)
    if name in ("bpecodes", "dict.txt"):
        return explain(path, MOSES)
    folder = os.path.dirname(path) or "."
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if name in (vocab, merges) and exists(os.path.join(folder, vocab)) and exists(os.path.join(folder, merges)):
            return f"{path}: is half of a tokenizer; name its folder: {folder}"
    return None


def explain_vocabulary(path: str, vocab: Iterable[str]) -> str | None:
    """The same of a vocabulary next to a list of merges: GPT-2's marks where a word begins, by a byte's letter."""
    words = list(vocab)
    if any(w.startswith("Ġ") for w in words):
        return None
    if sum(w.endswith("</w>") for w in words) > len(words) // 4:
        return explain(path, MOSES)
    if sum(w.startswith("▁") for w in words) > len(words) // 4:
        return explain(path, SENTENCEPIECE)
    return None


def explain(path: str, kind: str) -> str:
    """A message about the tokenizer at `path`."""
    return f"{path}: {kind.format(folder=os.path.dirname(path) or '.')}"
