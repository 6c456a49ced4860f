"""BioGPT's tokenizer as a tokenizer.json: Moses' rules for words as regular expressions, then its BPE. No torch.

Moses (https://github.com/moses-smt/mosesdecoder, scripts/tokenizer/tokenizer.perl, with aggressive hyphen splitting)
rewrites text by ordered rules; BioGPT cuts the resulting words by BPE. The rules are sacremoses' (its port to Python),
and so are the characters and abbreviations that they name, which are read from it when a tokenizer is converted. Two
things are held by one character each, which spares merges of half an entity: `&apos;` by the apostrophe that it means,
and so on, and Moses' `@-@` by `DASH`.

Known to differ: commas and apostrophes that follow each other (at once or after one sign, `2'5'-`), where a rule of
Moses' passes over a neighbour of its last match. Text comes back as by Moses' detokenizer, but for single quotes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from modelzoo.config.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DASH, KEPT = "\ue000", "\ue001"  # a split hyphen; a full stop that stays with its word
END = "</w>"  # of a word's last piece
FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # of a fairseq dictionary
ENTITIES = {
    "&#124;": "|", "&lt;": "<", "&gt;": ">", "&apos;": "'", "&quot;": '"', "&#91;": "[", "&#93;": "]", "&amp;": "&",
    "@-@": DASH,
}  # fmt: skip
MADE_UP = re.compile(r"madeupword\d+</w>")  # with which fairseq fills a dictionary


def make_tokenizer(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], name: str) -> "Tokenizer":
    """The tokenizer of `vocab` (pieces as Hugging Face's vocab.json has them) and `merges`, in the order of learning.

    Raises:
        UserError: sacremoses is not installed, or this is no such vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    lacking = [t for t in FIRST if t not in vocab]
    if lacking:
        raise UserError(f"{name}: has no {lacking[0]}, which BioGPT's vocabulary has")
    pieces, kept = _hold(vocab, merges)
    model = models.BPE(vocab=pieces, merges=kept, unk_token="<unk>", end_of_word_suffix=END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _make_normalizer(name)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = _make_decoder()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in FIRST])
    return tokenizer


def _hold(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges with entities as single characters.

    tokenizers wants each piece that a merge makes to have an id. A piece that the vocabulary lacks takes that of a
    made-up word; merges beyond those are left out.
    """
    pieces = {piece: i for piece, i in vocab.items() if _rewrite(piece) == piece}
    pieces |= {
        _rewrite(piece): i for piece, i in vocab.items() if _rewrite(piece) != piece
    }  # text holds entities alone
    spare = [piece for piece in pieces if MADE_UP.fullmatch(piece)]
    kept = []
    for a, b in merges:
        left, right, made = _rewrite(a), _rewrite(b), _rewrite(a + b)
        if left + right != made:  # ends an entity, which is one character already; of `&apos;s` the rest is left to do
            left, right = made[:1], made[1:]
            if right in ("", END):
                continue
        elif a + b not in vocab and any(a + b in entity + END for entity in ENTITIES):
            continue
        lacking = [x for x in dict.fromkeys((left, right, made)) if x not in pieces]
        if len(lacking) > len(spare):
            continue
        for x in lacking:
            pieces[x] = pieces.pop(spare.pop())
        kept.append((left, right))
    return pieces, kept


def _rewrite(piece: str) -> str:
    for entity, char in ENTITIES.items():
        piece = piece.replace(entity, char)
    return piece


def _make_normalizer(name: str):
    from tokenizers import Regex, normalizers

    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        raise UserError(
            f"{name}: is BioGPT's BPE after Moses' rules, whose words need: pip install sacremoses"
        ) from None
    rules = MosesTokenizer(lang="en")
    alpha, alnum, number, lower = (_make_class(x) for x in (rules.IsAlpha, rules.IsAlnum, rules.IsN, rules.IsLower))
    numeric = set(rules.NUMERIC_ONLY_PREFIXES)
    whole = [p for p in rules.NONBREAKING_PREFIXES if " " not in p and p not in numeric]
    before = "|".join(rf"(?:^|\s){re.escape(p)}" for p in whole)
    counted = "|".join(rf"(?:^|\s){re.escape(p)}" for p in sorted(numeric))
    odd = rf"[^{alnum}\s.'`,\-]"
    ends = r"(?=\s|$)"
    steps = [
        (f"[{DASH}{KEPT}]", "\ufdd0"),
        (r"[\s\x1c-\x1f]+", " "),
        (r"[\x00-\x1f]", ""),
        (r"^\s+|\s+$", ""),
        (rf"(?<={odd})|(?={odd})", " "),
        (rf"(?<=[{alnum}])-(?=[{alnum}])", f" {DASH} "),
        (r"(?<!\.)(?=\.\.)|(?<=\.\.)(?!\.)", " "),
        (rf"(?<=[^{number}]),|,(?=[^{number}])|(?<=[{number}]),$", " , "),
        (rf"(?<=[^{alpha}])'(?=[^{alpha}])|(?<=[^{alpha}{number}])'(?=[{alpha}])|(?<=[{alpha}])'(?=[^{alpha}])", " ' "),
        (rf"(?<=[{alpha}])'(?=[{alpha}])|(?<=[{number}])'(?=s)", " '"),
        (rf"(?<=[{alpha}]\S*\.\S*|\.\S*[{alpha}]\S*)\.{ends}", KEPT),
        (rf"(?<={before})\.{ends}", KEPT),
        (rf"(?<={counted})\.(?=\s+[0-9])", KEPT),
        (rf"(?<=[^\s.])\.(?=\s+[{lower}])", KEPT),
        (rf"(?<=[^\s.])\.{ends}", " ."),
        (KEPT, "."),
        (r"\.' ?$", " . ' "),
    ]  # fmt: skip
    return normalizers.Sequence([normalizers.Replace(Regex(pattern), by) for pattern, by in steps])


def _make_class(chars: str) -> str:
    """Characters as the inside of a character class: ranges by code."""
    codes = sorted({ord(c) for c in chars if c != "\n"})
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in ranges)


def _make_decoder():
    """Moses' detokenizer: words apart, but for punctuation, brackets, contractions, hyphens and double quotes.

    Each rule is certain of its characters when they come: what was decoded of some ids begins what is decoded of more.
    """
    from tokenizers import Regex, decoders

    odd = r'^[^"]*"(?:[^"]*"[^"]*")*'  # up to a quote that opens
    steps = [
        (f"(?:^| ){DASH} ", "-"),
        (r" (?=[,.?!:;%)\]}] )", ""),
        (r"(?<=(?:^| )[$£¥€(\[{¿¡]) ", ""),
        (r" (?='(?:\w|$))|(?<=s) (?=' )", ""),
        (rf"(?<={odd}) ", ""),
        (rf"(?<={odd}[^\"]*) (?=\")", ""),
        (r" +\z", ""),  # decoders.Strip panics at an empty text
    ]
    rules = [decoders.Replace(Regex(pattern), by) for pattern, by in steps]
    return decoders.Sequence([decoders.Replace(END, " "), decoders.Fuse(), *rules])
