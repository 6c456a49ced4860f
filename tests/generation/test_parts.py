"""Sampling against transformers' own processors, growing texts against whole decodings, prompts from anywhere."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.draws import make_generator
from modelzoo.entry import escape_controls
from modelzoo.generation.prompts import read_prompts
from modelzoo.generation.sampling import choose_token, narrow, penalize
from modelzoo.generation.settings import Settings, choose_settings
from modelzoo.generation.text import GrowingText
from tests.evaluation_world import tokenizer, words  # noqa: F401 - fixtures


@pytest.mark.parametrize("penalty,temperature,top_k,top_p", [
    (1.0, 1.0, None, None), (1.3, 0.7, None, None), (1.0, 1.0, 5, None), (1.0, 2.0, None, 0.8), (0.8, 0.5, 20, 0.3),
    (1.0, 1.0, 2000, 0.99), (1.0, 5.0, None, 0.95), (1.0, 0.1, None, 0.0),
])  # fmt: skip
def test_the_distribution_is_that_of_transformers(penalty, temperature, top_k, top_p):
    from transformers.generation import logits_process as theirs

    scores = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 3
    seen = [5, 17, 2999]
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), scores[None].clone())
    expected = theirs.TemperatureLogitsWarper(temperature)(None, expected)
    expected = expected if top_k is None else theirs.TopKLogitsWarper(top_k)(None, expected)
    expected = expected if top_p is None else theirs.TopPLogitsWarper(top_p)(None, expected)
    values, ids = narrow(penalize(scores, set(seen), penalty) / temperature, top_k, top_p)
    found = torch.full((3000,), float("-inf"))
    found[ids] = values
    torch.testing.assert_close(found.softmax(-1), expected[0].softmax(-1), rtol=1e-5, atol=1e-9)


def test_draws_follow_the_distribution():
    scores, how = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]), Settings(1, temperature=1.5, top_k=4)
    generator = make_generator(0)
    drawn = np.bincount([choose_token(scores, set(), how, generator) for _ in range(4000)], minlength=5) / 4000
    expected = (scores / 1.5).masked_fill(torch.tensor([0, 0, 0, 1, 0]).bool(), float("-inf")).softmax(-1).numpy()
    assert drawn[3] == 0 and np.abs(drawn - expected).max() < 0.03


def test_of_equal_scores_the_first_is_taken():
    scores = torch.zeros(100)
    assert choose_token(scores, set(), Settings(), None) == 0
    scores[[7, 9]] = 1.0
    assert choose_token(scores, set(), Settings(), None) == 7


TEXTS = st.text(st.sampled_from("aß语🩺 \n<f"), max_size=12)


@settings(max_examples=60)
@given(
    prompt=TEXTS, text=TEXTS, broken=st.lists(st.integers(200, 260), max_size=3), stop=st.sampled_from(["", "a语", "ß"])
)
def test_texts_grow_by_whole_characters_up_to_a_stop(tokenizer, prompt, text, broken, stop):  # noqa: F811
    ids, before = [*tokenizer.encode(text), *broken], tokenizer.encode(prompt)
    growing, shown = GrowingText(tokenizer.decode, before, [stop] if stop else []), ""
    for token in ids:
        if growing.stopped:
            break
        growing.add(token)
        assert growing.shown.startswith(shown) and (broken or "\ufffd" not in growing.shown)
        shown = growing.shown
    growing.finish()
    whole = tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
    assert growing.text == (whole[: whole.find(stop)] if stop and stop in whole else whole)
    assert growing.text.startswith(shown) and growing.stopped is bool(stop and stop in whole)


def test_a_terminal_gets_no_orders():
    assert escape_controls("a\x1b[2J\u202eb\r\n\tß\u00a0🩺", "\n\t") == "a\\x1b[2J\\u202eb\\r\n\tß\u00a0🩺"


def stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_prompts_come_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes("one\r\n\n  \nzw\u2028ei\n".encode())
    (tmp_path / "p.jsonl").write_text('{"id": 3, "q": "ß"}\n\n{"q": ""}\n')
    text, rows = str(tmp_path / "p.txt"), str(tmp_path / "p.jsonl")
    assert [p.text for p in read_prompts(["a", "a"], None, None, False)] == ["a", "a"]
    found = read_prompts([], text, None, False)
    assert [(p.text, p.where) for p in found] == [("one", f"{text}:1"), ("zw\u2028ei", f"{text}:4")]
    assert [p.text for p in read_prompts([], text, None, True)] == ["one\n\n  \nzw\u2028ei\n"]
    found = read_prompts([], rows, "q", False)
    assert [(p.text, p.row) for p in found] == [("ß", {"id": 3, "q": "ß"}), ("", {"q": ""})]
    stdin(monkeypatch, b"x\ny\n")
    assert [(p.text, p.where) for p in read_prompts([], "-", None, False)] == [
        ("x", "standard input:1"), ("y", "standard input:2")
    ]  # fmt: skip


@pytest.mark.parametrize("lines,field,message", [
    ('{"q": "a"}', None, "p.jsonl:1: has no field 'prompt' \\(it has: q\\); name the prompts' field with --field"),
    ('{"prompt": "a"}\n{"prompt": 3}', None, "p.jsonl:2: prompt: is not a text"),
    ('{"prompt": "\\ud800"}', None, "p.jsonl:1: is not valid JSON \\(holds half a surrogate pair"),
    ("[]", None, "p.jsonl:1: is not a JSON object"),
    ("{", "x", "p.jsonl:1: is not valid JSON"),
    ("", None, "p.jsonl: holds no prompt"),
])  # fmt: skip
def test_rows_that_hold_no_prompt_are_named(tmp_path, lines, field, message):
    (tmp_path / "p.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        read_prompts([], str(tmp_path / "p.jsonl"), field, False)


def test_bad_prompts_are_one_line(tmp_path, monkeypatch):
    for data, message in ((b"\xff", r"standard input: is not UTF-8 text \(byte 0\)"), (b"\n \n", "holds no prompt")):
        stdin(monkeypatch, data)
        with pytest.raises(UserError, match=message):
            read_prompts([], "-", None, False)
    for arguments, message in (
        ((["a"], "f", None, False), "--prompt: does not go with --file"),
        ((["a"], None, "f", False), "--field: is for a --file of JSON lines"),
        ((["a"], None, None, True), "--whole: is for a --file of text"),
        (([], str(tmp_path), None, False), "is a folder"),
        (([], str(tmp_path / "x"), None, False), "x: no such file"),
        ((["\udcff"], None, None, False), "--prompt: is not UTF-8 text"),
    ):
        with pytest.raises(UserError, match=message):
            read_prompts(*arguments)


def test_settings_say_what_does_nothing():
    assert choose_settings(5).greedy and choose_settings(5, top_k=3).temperature == 1.0
    assert choose_settings(5, samples=2, temperature=0.5, seed=3) == Settings(5, 2, 0.5, seed=3)
    for given_ in ({"temperature": 0.0, "top_p": 0.5}, {"seed": 3}, {"temperature": 0.0, "samples": 2}):
        with pytest.raises(UserError, match="does nothing where the likeliest token is taken") as e:
            choose_settings(5, **given_)
        assert json.dumps(str(e.value)).count("\\n") == 0
    with pytest.raises(UserError, match="--stop: is empty"):
        choose_settings(5, stops=("",))
