"""Tokenizers that are converted to a tokenizer.json give the ids of the packages that they come from."""

import json
import sys

import pytest

from data_preprocessing.tokens import tokenizing
from modelzoo.config.errors import UserError
from modelzoo.data import hub, moses, tokenizer_files
from modelzoo.data.bos import find_bos
from modelzoo.data.tokenizer import load_tokenizer, parse_tokenizer, read_tokenizer

TEXTS = (
    "Aspirin (75-325 mg/d) reduced the patients' risk by 12.5% [95% CI: 3.1-21.9], i.e. by one-eighth. No. 5 was left.",
    "The physician's classification, e.g. grade II/III, wasn't changed... in vivo, IL-1β & TNF-α rose 1,200-fold @ 3°.",
    "He said \"no effect (P < 0.05)\"; 5'-GATTACA-3'. Dr. Smith et al. found none. | 患者 <s> </s> &amp; x_y ²",
    "  spaces\tand\nlines (P > 0.05), and a full stop at the end of e.g.",
)


@pytest.fixture(scope="module")
def biogpt(tmp_path_factory):
    """A made vocabulary with merges as microsoft/biogpt has them: parts of entities and hyphens have no id."""
    words = TEXTS[3].split() + ["the", "of", "risk", "patients", "physician", "classification", "in", "vivo", "aspirin"]
    real = "q u|qu o|quo t|& quot|&quot ;</w>|a m|am p|& amp|&amp ;</w>|a p|ap o|apo s|& apos|&apos ;</w>|&apos ;"
    real += "|&apos; s</w>|5 &apos;|t ;</w>|l t;</w>|& lt;</w>|g t;</w>|& gt;</w>|& #|&# 9|1 ;</w>|&#9 1;</w>"
    real += "|1 2|12 4|&# 124|&#124 ;</w>|3 ;</w>|&#9 3;</w>|- @</w>|@ -@</w>"
    merges = [(a, b) for a, b in (pair.split() for pair in real.split("|"))]
    for word in words:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        while len(letters) > 1:
            merges.append((letters[0], letters[1]))
            letters[:2] = ["".join(letters[:2])]
    merges = list(dict.fromkeys(merges))
    made = [a + b for a, b in merges]
    partial = {
        "&apos",
        "&quot",
        "&#",
        "&#9",
        "-@</w>",
        "t;</w>",
        "lt;</w>",
        "gt;</w>",
        "1;</w>",
        "3;</w>",
    }  # have no id
    chars = sorted({c for text in TEXTS for c in text if not c.isspace() and c not in "患°²β&<>[]|\"'"})
    pieces = [*chars, *(f"{c}</w>" for c in chars)]
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys([*pieces, *(m for m in made if m not in partial)])]
    folder = tmp_path_factory.mktemp("biogpt")
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    lines = ["#version: 0.2", *(f"{a} {b} 9" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_biogpt_gives_the_ids_of_its_own_class(biogpt, capsys):
    pytest.importorskip("sacremoses", reason="pip install sacremoses (the extra `tokenizers`)")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BioGptTokenizer(str(biogpt / "vocab.json"), str(biogpt / "merges.txt"))
    ours = load_tokenizer(str(biogpt))
    assert ours.eos == 2 and ours.size == len(theirs)
    for text in TEXTS:
        expected = theirs.convert_tokens_to_ids(theirs.tokenize(text.replace("<s>", "").replace("</s>", "")))
        assert ours.encode(text.replace("<s>", "").replace("</s>", "")) == expected
    assert theirs("fever").input_ids[0] == find_bos(str(biogpt), ours.backend).id == 2
    assert not {0, 2} & set(ours.encode(TEXTS[2]))  # text never becomes control
    plain = "the patient's fever, in vivo (risk of the one-eighth)."
    assert ours.decode(ours.encode(plain)).replace("<unk>", "") == plain
    assert capsys.readouterr().err.count("BioGPT's BPE after Moses' rules") == 1  # once, though read again
    read_tokenizer(str(biogpt))
    assert not capsys.readouterr().err


def test_fairseqs_files_are_the_same_tokenizer(biogpt, tmp_path):
    pytest.importorskip("sacremoses", reason="pip install sacremoses (the extra `tokenizers`)")
    vocab = json.loads((biogpt / "vocab.json").read_text())
    lines = [p.removesuffix("</w>") if p.endswith("</w>") else f"{p}@@" for p in vocab if vocab[p] > 3]
    lines[-1:] = ["a\u2028b", lines[-1]]  # one piece, not two that give all after it other ids
    vocab = {**dict(list(vocab.items())[:-1]), "a\u2028b</w>": len(vocab) - 1, list(vocab)[-1]: len(vocab)}
    (tmp_path / "same").mkdir()
    (tmp_path / "same/vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "same/merges.txt").write_text((biogpt / "merges.txt").read_text())
    (tmp_path / "dict.txt").write_text("".join(f"{line} 7\n" for line in lines), encoding="utf-8")
    (tmp_path / "bpecodes").write_text((biogpt / "merges.txt").read_text().partition("\n")[2])
    ours, same = load_tokenizer(str(tmp_path / "same")), load_tokenizer(str(tmp_path))
    assert same.size == ours.size == len(vocab)
    assert [same.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]


@pytest.mark.realdata
def test_biogpt_on_real_abstracts(shared_data):
    pytest.importorskip("sacremoses", reason="pip install sacremoses (the extra `tokenizers`)")
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "biogpt_bpe"
    ours = load_tokenizer(str(folder))
    pieces = [line.rpartition(" ")[0] for line in (folder / "dict.txt").read_text(encoding="utf-8").splitlines()]
    names = [*moses.FIRST, *(p[:-2] if p.endswith("@@") else f"{p}</w>" for p in pieces)]
    theirs = transformers.BioGptTokenizer.__new__(transformers.BioGptTokenizer)  # its files are fairseq's here
    merges = (line.split()[:2] for line in (folder / "bpecodes").read_text(encoding="utf-8").splitlines())
    theirs.bpe_ranks = {tuple(pair): i for i, pair in enumerate(merges)}
    ids, moses_rules = {name: i for i, name in enumerate(names)}, pytest.importorskip("sacremoses").MosesTokenizer("en")
    theirs.cache = {}
    questions = json.loads((shared_data / "pubmedqa" / "pqal_cv_500.json").read_text(encoding="utf-8"))
    texts = [" ".join(q["CONTEXTS"]) for q in list(questions.values())[:100]]
    for text in texts:
        words = moses_rules.tokenize(text, aggressive_dash_splits=True, return_str=False, escape=True)
        expected = [ids.get(p, 3) for word in words for p in theirs.bpe(word).split(" ")]
        assert ours.encode(text) == expected


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request, tmp_path_factory):
    """A small SentencePiece model, as LLaMA's: byte fallback, identity, digits apart, a dummy space."""
    package = pytest.importorskip("sentencepiece", reason="pip install sentencepiece (the extra `tokenizers`)")
    folder = tmp_path_factory.mktemp(request.param)
    package.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *["aspirin lowers the fever, fever lowers appetite"] * 5] * 4),
        model_prefix=str(folder / "tokenizer"), model_type=request.param, vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
        hard_vocab_limit=False, character_coverage=1.0,
    )  # fmt: skip
    return folder


def test_pieces_that_no_merge_makes_are_reported(tmp_path, capsys):
    """As of merges that were cut short: the vocabulary is whole, and texts have other ids than the model's."""
    spec = json.loads(tokenizing.train(iter([[TEXTS[0]] * 5]), 300, ["<|endoftext|>"]))["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["merges"]]
    for name, kept in (("whole", len(merges)), ("cut", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(spec["vocab"]))
        (tmp_path / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[:kept]]), encoding="utf-8")
        load_tokenizer(str(tmp_path / name))
        said = capsys.readouterr().err
        number = len({m.replace(" ", "") for m in merges} - {m.replace(" ", "") for m in merges[:kept]})
        expected = f"{name}/merges.txt: no merge makes {number} pieces of its vocabulary of {len(spec['vocab'])}, "
        assert expected in said if name == "cut" else not said


def test_a_sentencepiece_model_gives_its_own_ids(pieces, tmp_path):
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    for path in (pieces, pieces / "tokenizer.model"):
        ours = load_tokenizer(str(path))
        assert ours.eos == own.eos_id() and ours.size == own.get_piece_size()
        for text in (*TEXTS, "", " ", "é🙂", "fever  fever"):
            assert ours.encode(text) == own.EncodeAsIds(text)
            assert ours.decode(own.EncodeAsIds(text)) == own.DecodeIds(own.EncodeAsIds(text))
        assert find_bos(str(path), ours.backend).id == own.bos_id()  # as LlamaTokenizer adds it
    tokenizer_files.copy_files([str(pieces / "tokenizer.model")], str(tmp_path))
    copied = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert [copied.encode(t) for t in TEXTS] == [own.EncodeAsIds(t) for t in TEXTS]
    flat, _ = tokenizing.Encoder(read_tokenizer(str(pieces)), "t", "auto").encode(list(TEXTS))  # as in preprocessing
    assert flat.tolist() == [i for t in TEXTS for i in own.EncodeAsIds(t)]


def test_tokens_that_were_added_later_have_their_ids(pieces):
    size, path = load_tokenizer(str(pieces)).size, pieces / "added_tokens.json"
    try:
        path.write_text(json.dumps({"[PAD]": size, "<s>": 1}))
        assert parse_tokenizer(read_tokenizer(str(pieces)), "t").token_to_id("[PAD]") == size
        path.write_text(json.dumps({"[PAD]": size + 7}))
        with pytest.raises(
            UserError, match=rf"added_tokens.json: '\[PAD\]' has the id {size + 7}, where {size} is next"
        ):
            read_tokenizer(str(pieces))
    finally:
        path.unlink()


@pytest.mark.parametrize("data", [b"", b"not a model", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path, data):
    pytest.importorskip("sentencepiece", reason="pip install sentencepiece (the extra `tokenizers`)")
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=r"^\S+tokenizer\.model: [^\n]+$"):
        load_tokenizer(str(tmp_path))


def test_a_sentencepiece_model_whose_normalizer_is_damaged_is_refused(pieces, tmp_path):
    """The library raises a bare Exception."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((pieces / "tokenizer.model").read_bytes())
    model.normalizer_spec.precompiled_charsmap = (1024).to_bytes(4, "little") + bytes(1024) + b"\xff"
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"^\S+tokenizer\.model: is no SentencePiece model that .* \(.*charsmap"):
        load_tokenizer(str(tmp_path))


def test_a_package_that_lacks_is_named(biogpt, tmp_path, monkeypatch):
    for package in ("sacremoses", "sentencepiece"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"vocab\.json: [^\n]*pip install sacremoses$"):
        read_tokenizer(str(biogpt))
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"tokenizer\.model: [^\n]*pip install sentencepiece protobuf$"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_json_is_read_before_vocabularies_beside_it(tmp_path):
    """Qwen's and others' have rules that vocab.json does not hold."""
    words = tokenizing.train(iter([["aspirin lowers fever"] * 5]), 300, ["<|endoftext|>"])
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert set(parse_tokenizer(read_tokenizer(str(tmp_path)), "t").get_vocab()) == {"a"}
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: tokenizer_class: 'Qwen2Tokenizer' splits text by rules"
    ):
        read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(words)
    assert read_tokenizer(str(tmp_path)) == words


@pytest.mark.parametrize(
    "name,command",
    [
        ("gpt2", r"hf download openai-community/gpt2 --include '\*token\*' --include 'vocab\*'"),
        (
            "EleutherAI/pythia-160m",
            "hf download EleutherAI/pythia-160m .*--local-dir pythia-160m .*and name pythia-160m$",
        ),
    ],
)
def test_a_name_of_the_hub_gets_the_command(name, command):
    with pytest.raises(UserError, match=rf"^{name}: no such file or folder; wanted is a tokenizer\.json.*{command}"):
        read_tokenizer(name)


@pytest.mark.parametrize("path", ["/no/such", "runs/a/b", "a.json", "dir/tokenizer.json", "../x/y", "x y"])
def test_what_is_no_name_of_the_hub_gets_none(path):
    assert "hf download" not in hub.explain_missing(path, "a tokenizer", hub.TOKENIZER)
