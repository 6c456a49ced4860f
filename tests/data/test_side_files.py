"""Manifests, data_params.json and tokenizers of others: strict, in one line that names file and key."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo import records
from modelzoo.config.errors import UserError
from modelzoo.data import folder, side_files, tokenizer

HASH = "a" * 64
SHARDS = [{"file": "a.h5", "sha256": HASH, "n_examples": 3}, {"file": "b.h5", "data_sha256": HASH, "n_examples": 4}]
GOOD = {"msl": 8, "vocab_size": 50, "eos_id": 0, "n_examples": 7, "documents": 2, "shards": SHARDS, "later": [1.5]}

WRONG = {
    "msl": [0, -1, 10**9, "8", 8.0, True],
    "vocab_size": [0, 2**31, "50", [50]],
    "eos_id": [-1, 50, 2**31 - 1, 2**63, "0", 0.5, False],
    "n_examples": [6, -7, "7"],
    "shards": [
        {}, "a.h5", [1], [{}], [{"file": 1}], [*SHARDS, SHARDS[0]], [{"file": "../a.h5"}], [{"file": "/etc/passwd"}],
        [{"file": "x/a.h5"}], [{"file": "a.h5", "sha256": "A" * 64}], [{"file": "a.h5", "sha256": HASH + "\n"}],
        [{"file": "a.h5", "n_examples": -1}],
    ],
    "files": [[], {"../x": HASH}, {"x/../../y": HASH}, {"x": 1}, {"": HASH}],
    "documents": [-1, {"../x": HASH}, {"x": "short"}],
    "splits": [{"..": {}}, {"a/b": {}}, ["train"]],
}  # fmt: skip


@pytest.mark.parametrize("key,value", [(k, v) for k, values in WRONG.items() for v in values])
def test_a_key_that_does_not_fit_is_named(tmp_path, key, value):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(GOOD))
    assert folder.read_manifest(str(tmp_path)) == GOOD
    path.write_text(json.dumps({**GOOD, key: value}))
    with pytest.raises(UserError) as e:
        folder.read_manifest(str(tmp_path))
    assert str(e.value).startswith(f"{path}: {key}") and "\n" not in str(e.value)


def test_a_sealed_manifest_may_not_change(tmp_path):
    path, sealed = tmp_path / "manifest.json", records.seal(GOOD)
    path.write_text(json.dumps(sealed, indent=3))
    assert folder.read_manifest(str(tmp_path)) == sealed
    path.write_text(json.dumps({**sealed, "documents": 3}))
    with pytest.raises(UserError, match=r"manifest\.json: has been changed since it was written"):
        folder.read_manifest(str(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*side_files.Manifest.model_fields, "post-process"]), json_values)
def test_any_value_of_any_key_is_taken_or_refused(tmp_path_factory, key, value):
    root = tmp_path_factory.mktemp("m")
    for name, read in (("manifest.json", folder.read_shards), ("data_params.json", side_files.read_params)):
        (root / name).write_text(json.dumps({**GOOD, key: value}))
        try:
            read(str(root))
        except UserError as e:
            assert name in str(e) and "\n" not in str(e)


def test_model_zoos_parameters(tmp_path):
    path = tmp_path / "data_params.json"
    assert side_files.read_params(str(tmp_path)) == {}
    for text in ({"post-process": {"eos_id": 3, "vocab_size": 9, "x": 1}, "eos_id": 7}, {"eos_id": 3, "vocab_size": 9}):
        path.write_text(json.dumps(text))
        assert side_files.read_params(str(tmp_path)) == {"eos_id": 3, "vocab_size": 9}
    path.write_text(json.dumps({"post-process": {"eos_id": "3"}}))
    with pytest.raises(UserError, match=r"data_params\.json: post-process\.eos_id: "):
        side_files.read_params(str(tmp_path))


# --- tokenizers -------------------------------------------------------------------------------------------------------

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def with_model(**fields):
    return {**TOKENIZER, "model": {**TOKENIZER["model"], **fields}}


TOKENIZERS = {
    "ids as text": (with_model(vocab={"a": "0"}), r"model\.vocab"),
    "an id twice": (with_model(vocab={"a": 0, "b": 1, "ab": 1}), "'b' and 'ab' have the same id 1"),
    "an id below 0": (with_model(vocab={"a": -1}), r"model\.vocab"),
    "a giant id": (with_model(vocab={"a": 0, "b": 2**31 - 1}), r"model\.vocab"),
    "an id past 64 bits": (with_model(vocab={"a": 2**80}), r"model\.vocab"),
    "an empty vocabulary": (with_model(vocab={}, merges=[]), "an empty vocabulary"),
    "merges of numbers": (with_model(merges=[[1, 2]]), r"model\.merges"),
    "merges of three": (with_model(merges=[["a", "b", "ab"]]), "is not a Hugging Face tokenizer"),
    "merges of strangers": (with_model(merges=[["x", "y"]]), "is not a Hugging Face tokenizer"),
    "added tokens as text": ({**TOKENIZER, "added_tokens": "no"}, "added_tokens"),
    "an added token without id": (
        {**TOKENIZER, "added_tokens": [{"content": "x"}]},
        r"added_tokens\.0\.id: is missing",
    ),
    "added giant": ({**TOKENIZER, "added_tokens": [{"content": "x", "id": 2**31}]}, r"added_tokens\.0\.id"),
    "no model": ({"added_tokens": []}, "model: is missing"),
    "a model of text": ({"model": "BPE"}, "model"),
    "a list": ([], "is not a Hugging Face tokenizer"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_another_form_is_refused(tmp_path, name):
    value, message = TOKENIZERS[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER))
    assert tokenizer.parse_tokenizer(tokenizer.read_tokenizer(str(path)), "t").encode("ab").ids == [2]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{message}") as e:
        tokenizer.read_tokenizer(str(path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": NaN}', '{"model": 1, "model": 2}', "\ud800", "{", ""])
def test_a_tokenizer_that_is_no_json_is_refused(tmp_path, text):
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt")):
        root = tmp_path / names[0]
        root.mkdir()
        for name in names:
            (root / name).write_text(text, errors="surrogatepass")
        with pytest.raises(UserError) as e:
            tokenizer.read_tokenizer(str(root))
        assert names[0] in str(e.value) and "\n" not in str(e.value)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["model", "added_tokens", "vocab", "merges", "type", "pre_tokenizer", "decoder"]), json_values)
def test_any_value_in_a_tokenizer_is_taken_or_refused(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    path.write_text(json.dumps(with_model(**{key: value}) if key in TOKENIZER["model"] else {**TOKENIZER, key: value}))
    try:
        text = tokenizer.read_tokenizer(str(path))
    except UserError as e:
        assert str(path) in str(e) and "\n" not in str(e)
    else:
        assert 0 < tokenizer.vocabulary_size(tokenizer.parse_tokenizer(text, "t")) <= 2**24


def test_an_end_of_text_id_outside_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "manifest.json").write_text(json.dumps({"eos_id": 2}))
    assert tokenizer.load_tokenizer(str(tmp_path)).eos == 2
    (tmp_path / "manifest.json").write_text(json.dumps({"eos_id": 3}))
    with pytest.raises(UserError, match="has ids below 3, the end-of-text id is 3"):
        tokenizer.load_tokenizer(str(tmp_path))
