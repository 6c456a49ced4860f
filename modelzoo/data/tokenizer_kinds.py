"""Tokenizers by their files: those that are converted where they are read, and those that are refused. No torch."""

import contextlib
import os
from collections.abc import Iterable, Iterator

from modelzoo.config.errors import UserError
from modelzoo.reading import exists

_SAVE = "from_pretrained('{folder}').save_pretrained('OUT')\", and name OUT/tokenizer.json"
SENTENCEPIECE = (
    "is a SentencePiece model whose ids its own class changes; convert it with that class: pip install transformers "
    'sentencepiece; python -c "import transformers as t; t.AutoTokenizer.' + _SAVE
)
WORDPIECE = (
    "is a WordPiece vocabulary (BERT's), which is not read as it is; convert it: pip install transformers; "
    'python -c "import transformers as t; t.BertTokenizerFast.' + _SAVE
)
END_OF_WORD = (
    "is a BPE whose words end in </w>, and not BioGPT's (whose vocabulary begins with <s>, <pad>, </s>, <unk>); "
    'convert it: pip install transformers; python -c "import transformers as t; t.AutoTokenizer.' + _SAVE
)
OTHER_RULES = (
    "splits text by rules that vocab.json does not hold; convert it: pip install transformers; python -c "
    '"import transformers as t; t.AutoTokenizer.' + _SAVE
)
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # a vocabulary and its merges
FAIRSEQ = ("dict.txt", "bpecodes")  # of BioGPT's own release
PIECES = "tokenizer.model"  # SentencePiece's, whose ids are the places of its pieces
SHIFTED = ("spiece.model", "sentencepiece.bpe.model")  # transformers gives their pieces other ids


@contextlib.contextmanager
def refusing(what: str, more: str = "") -> Iterator[None]:
    """Refuse what a library of tokenizers fails on: they raise bare Exceptions, and Rust can panic, which is none.

    Args:
        what: the files, and what they are not; the library's reason follows, then `more`.

    Raises:
        UserError: the library failed.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as e:
        raise UserError(f"{what} ({' '.join(str(e).split())[:120]}){more}") from None


def explain_folder(folder: str) -> str | None:
    """What is wrong with a folder that holds another kind of tokenizer, as a message; None where it holds none."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = next((n for n in names if n.endswith(".model")), None)
    if found is not None:
        return explain(os.path.join(folder, found), SENTENCEPIECE)
    if "vocab.txt" in names:
        return explain(os.path.join(folder, "vocab.txt"), WORDPIECE)
    for pair in (*PAIRS, FAIRSEQ):
        if len(there := [n for n in pair if n in names]) == 1:
            other = next(n for n in pair if n not in names)
            return f"{os.path.join(folder, there[0])}: is half of a tokenizer; {other} is not there"
    return None


def explain_file(path: str) -> str | None:
    """The same of a file that is named as a tokenizer."""
    name = os.path.basename(path)
    if name in SHIFTED:
        return explain(path, SENTENCEPIECE)
    if name == "vocab.txt":
        return explain(path, WORDPIECE)
    folder = os.path.dirname(path) or "."
    for vocab, merges in (*PAIRS, FAIRSEQ):
        if name in (vocab, merges) and exists(os.path.join(folder, vocab)) and exists(os.path.join(folder, merges)):
            return f"{path}: is half of a tokenizer; name its folder: {folder}"
    return None


def has_word_ends(vocab: Iterable[str]) -> bool:
    """Whether a vocabulary next to a list of merges marks the last piece of a word, as BioGPT's and XLM's do."""
    words = list(vocab)
    return not any(w.startswith("Ġ") for w in words) and sum(w.endswith("</w>") for w in words) > len(words) // 4


def explain_vocabulary(path: str, vocab: Iterable[str]) -> str | None:
    """The same of a vocabulary next to a list of merges: GPT-2's marks where a word begins, by a byte's letter."""
    words = list(vocab)
    if any(w.startswith("Ġ") for w in words):
        return None
    if has_word_ends(words):
        return explain(path, END_OF_WORD)
    if sum(w.startswith("▁") for w in words) > len(words) // 4:
        return explain(path, SENTENCEPIECE)
    return None


def explain(path: str, kind: str) -> str:
    """A message about the tokenizer at `path`."""
    return f"{path}: {kind.format(folder=os.path.dirname(path) or '.')}"
