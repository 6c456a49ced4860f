"""Tokenizers of others: the same ids each time, byte-order marks, newer versions, and kinds that are not read here."""

import codecs
import json
import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_preprocessing.tokens import tokenizing
from modelzoo.config.errors import UserError
from modelzoo.data import tokenizer_files
from modelzoo.data.tokenizer import load_tokenizer, parse_tokenizer, read_tokenizer

TEXT = "aspirin lowers the fever, and fever lowers appetite"


@pytest.fixture(scope="module")
def words():
    """A byte-level BPE as tokenizer.json text."""
    return tokenizing.train(iter([[TEXT] * 5]), 300, ["<|endoftext|>"])


def with_dropout(words, share):
    spec = json.loads(words)
    spec["model"]["dropout"] = share
    return json.dumps(spec)


def split(words, folder):
    """The same as a GPT-2 style vocabulary: vocab.json and merges.txt."""
    model = json.loads(words)["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def test_dropout_is_switched_off_wherever_a_tokenizer_is_loaded_and_reported_once(words, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    path.write_text(with_dropout(words, 0.5))
    expected = Tokenizer.from_str(words).encode(TEXT).ids
    raw = Tokenizer.from_file(str(path))
    assert len({tuple(raw.encode(TEXT).ids) for _ in range(20)}) > 1  # what the file asks for
    text = read_tokenizer(str(path))
    loaded = load_tokenizer(str(path))
    engines = [
        tokenizing.Encoder(x, "t", engine) for x in (text, path.read_text()) for engine in ("auto", "tokenizers")
    ]
    (tmp_path / "copy").mkdir()
    tokenizer_files.copy_files([str(path)], str(tmp_path / "copy"))
    copied = Tokenizer.from_file(str(tmp_path / "copy/tokenizer.json"))
    for _ in range(20):
        assert loaded.encode(TEXT) == copied.encode(TEXT).ids == parse_tokenizer(path.read_text(), "t").encode(TEXT).ids
        assert all(e.encode([TEXT])[0].tolist() == expected for e in engines) and loaded.encode(TEXT) == expected
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note       {path}: its BPE dropout of 0.5 is switched off")
    path.write_text(with_dropout(words, 0.0))  # none: nothing is changed or reported
    assert read_tokenizer(str(path)) == path.read_text() and not capsys.readouterr().err


def test_byte_order_marks_and_windows_line_ends_change_nothing(words, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(codecs.BOM_UTF8 + words.encode())
    assert read_tokenizer(str(tmp_path / "tokenizer.json")) == words
    (tmp_path / "copy").mkdir()
    tokenizer_files.copy_files([str(tmp_path / "tokenizer.json")], str(tmp_path / "copy"))
    assert (tmp_path / "copy/tokenizer.json").read_text() == words
    split(words, tmp_path)
    plain = read_tokenizer(str(tmp_path))
    for name in ("vocab.json", "merges.txt"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + data.replace(b"\n", b"\r\n"))
    assert read_tokenizer(str(tmp_path)) == plain
    assert Tokenizer.from_str(plain).encode(TEXT).ids == Tokenizer.from_str(words).encode(TEXT).ids


def test_a_newer_version_of_a_file_is_named_as_such(words, tmp_path):
    path = tmp_path / "tokenizer.json"
    for key, value in (("version", "2.0"), ("pre_tokenizer", {"type": "OfNextYear"})):
        path.write_text(json.dumps({**json.loads(words), key: value}))
        with pytest.raises(
            UserError, match=r"tokenizer\.json: .*if a newer version wrote it, pip install tokenizers --upgrade"
        ):
            read_tokenizer(str(path))
    path.unlink()  # which is read before the others
    split(words, tmp_path)
    (tmp_path / "merges.txt").write_text((tmp_path / "merges.txt").read_text().replace("0.2", "0.3"))
    with pytest.raises(UserError, match=r"merges\.txt:1: version: 0\.3, where up to 0\.2 is read"):
        read_tokenizer(str(tmp_path))


XLM = {"<s>": 0, "</s>": 1, "t": 2, "h": 3, "e</w>": 4, "the</w>": 5, "fever</w>": 6}
OTHERS = {
    "SentencePiece": ({"sentencepiece.bpe.model": b"x"}, "its own class.*AutoTokenizer", "sentencepiece.bpe.model"),
    "WordPiece": ({"vocab.txt": b"[PAD]\n[UNK]\n##ed\n"}, "BertTokenizerFast", "vocab.txt"),
    "XLM": (
        {"vocab.json": json.dumps(XLM).encode(), "merges.txt": b"#version: 0.2\nt h 9\nth e</w> 8\n"},
        "not BioGPT's.*AutoTokenizer",
        None,
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_named_with_what_converts_them(tmp_path, kind):
    files, way, single = OTHERS[kind]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for path in filter(None, (tmp_path, single and tmp_path / single)):
        with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/[\w.]+: is a .*{way}") as e:
            read_tokenizer(str(path))
        assert "\n" not in str(e.value)


def test_half_a_vocabulary_names_its_folder(words, tmp_path):
    split(words, tmp_path)
    with pytest.raises(UserError, match=rf"merges\.txt: is half of a tokenizer; name its folder: {tmp_path}$"):
        read_tokenizer(str(tmp_path / "merges.txt"))


def test_long_words_are_learnt_from_in_pieces(capsys):
    longest = tokenizing.MAX_WORD
    texts = ["ab " * 5000, "y" * 2500 + " z", "a" + "_-" * 1200, " " * 3000 + "b", "x" * longest, "", "short"]
    pieces = tokenizing.Pieces()
    found = pieces.cut(texts)
    assert "".join(found) == "".join(texts) and pieces.words == 3
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lengths = [end - begin for text in found for _, (begin, end) in level.pre_tokenize_str(text)]
    assert max(lengths) <= longest + 1  # with the space before it
    assert [text for text in texts if text in found] == [texts[0], *texts[4:]]  # what has no long word is not cut
    capsys.readouterr()
    tokenizing.train(iter([[TEXT, "q" * 5000]]), 300, [])
    (note,) = capsys.readouterr().err.splitlines()
    assert note == "note: the tokenizer: 1 words of over 1,000 characters were learnt from in pieces"


def test_unigram_and_words_without_merges_are_still_read(tmp_path):
    """Kinds whose tokenizer.json is read as it is, though none of their vocabulary is a byte's letter."""
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.Unigram([("<unk>", 0.0), ("▁fever", -1.0), ("</s>", -2.0)], unk_id=0)).save(str(path))
    assert load_tokenizer(str(path)).encode("▁fever") == [1]
