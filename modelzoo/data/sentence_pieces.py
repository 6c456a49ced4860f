"""A SentencePiece model (`tokenizer.model` of LLaMA, Mistral, T5, ...) as a tokenizer.json. No torch.

The file is a protocol buffer of the package sentencepiece (https://github.com/google/sentencepiece,
src/sentencepiece_model.proto), which is needed to read it and to compare: what is made gives the ids of the package
itself for `SAMPLE`, or is refused.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelzoo.config.errors import UserError
from modelzoo.reading import MIB, read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 * MIB
SPACE = "▁"  # which SentencePiece writes for a space
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, DEFINED, BYTE = 1, 2, 3, 4, 6  # types of pieces; 5 is one that is not used
SAMPLE = (
    "Aspirin (acetylsalicylic acid, 75-325 mg/d) reduced the risk by 12.5% [95% CI: 3.1–21.9]; P<0.001.",
    "  Two spaces,\ta tab\nand a new line; naïve café, ﬁne ligature, ½ and ².  ",
    "IL-1β, TNF-α and NF-κB at 37 °C; H₂O₂ ± 5 µM. 5'-GATTACA-3' 患者 🙂",
    "<s> is text, and so is </s>",
)


def make_tokenizer(path: str) -> "Tokenizer":
    """The tokenizers.Tokenizer that the SentencePiece model at `path` describes.

    Raises:
        UserError: sentencepiece is not installed, the file is none of its models, or of a kind that is not held.
    """
    model = _read(path)
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    spec, norm = model.trainer_spec, model.normalizer_spec
    if spec.treat_whitespace_as_suffix or not norm.escape_whitespaces:
        raise UserError(f"{path}: writes spaces behind words, or as they are, which no tokenizer.json does")
    pieces = [(p.piece, p.score, p.type) for p in model.pieces]
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    unknown = next((i for i, p in enumerate(pieces) if p[2] == UNKNOWN), None)
    if unknown is None or len(ids) < len(pieces):
        raise UserError(f"{path}: has no piece for what is unknown, or a piece twice")
    if spec.model_type == UNIGRAM:
        # text never becomes a control piece: such a score takes part in no best path of known characters
        never = min(score for _, score, _ in pieces) - 1000.0
        scores = [(piece, never if kind == CONTROL else score) for piece, score, kind in pieces]
        words: Any = models.Unigram(scores, unk_id=unknown, byte_fallback=spec.byte_fallback)
    elif spec.model_type == BPE:
        words = models.BPE(
            vocab=ids, merges=list(_list_merges(pieces, ids)), unk_token=pieces[unknown][0], fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )  # fmt: skip
    else:
        raise UserError(f"{path}: is neither a unigram nor a BPE model, which are read")
    tokenizer = Tokenizer(words)
    steps: list[Any] = []
    if norm.precompiled_charsmap:
        steps.append(normalizers.Precompiled(norm.precompiled_charsmap))
    if norm.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if norm.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in piece.lstrip(SPACE) for piece, _, _ in pieces):  # then no piece crosses into the next word
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")
    first = [decoders.Strip(" ", 1, 0)] if norm.add_dummy_prefix else []
    decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    tokenizer.decoder = decoders.Sequence(decoder)
    control = [piece for piece, _, kind in pieces if kind in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    defined = [piece for piece, _, kind in pieces if kind == DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in defined])
    _compare(tokenizer, model, path)
    return tokenizer


def _read(path: str) -> Any:
    """The parsed protocol buffer."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise UserError(f"{path}: is a SentencePiece model, which needs: pip install sentencepiece protobuf") from None
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as e:
        raise UserError(f"{path}: tokenizer cannot be read: {e.strerror}") from None
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as e:  # DecodeError of one of several implementations
        raise UserError(f"{path}: is no SentencePiece model ({' '.join(str(e).split())[:80]})") from None
    if not model.pieces:
        raise UserError(f"{path}: is no SentencePiece model (it has no pieces)")
    return model


def _list_merges(pieces: list[tuple[str, float, int]], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two, the piece of the highest score first, which SentencePiece merges first."""
    made = [(piece, score) for piece, score, kind in pieces if kind in (NORMAL, DEFINED) and len(piece) > 1]
    for piece, _ in sorted(made, key=lambda p: -p[1]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [(ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
        yield from ((a, b) for _, _, a, b in sorted(found))


def _compare(tokenizer: "Tokenizer", model: Any, path: str) -> None:
    """Refuse a tokenizer that gives other ids than sentencepiece does.

    Raises:
        UserError: names the text.
    """
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor()
    try:
        own.LoadFromSerializedProto(model.SerializeToString())
    except Exception as e:
        raise UserError(f"{path}: sentencepiece cannot load it ({' '.join(str(e).split())[:80]})") from None
    tokenizer.encode_special_tokens = True
    for text in SAMPLE:
        if tokenizer.encode(text, add_special_tokens=False).ids != own.EncodeAsIds(text):
            raise UserError(f"{path}: as a tokenizer.json it would give other ids than sentencepiece, as of {text!a}")
