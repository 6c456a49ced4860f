"""Soft prompts: rows that ids beyond the vocabulary select, their beginnings, and gradients against Hugging Face's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import SoftPrompt
from modelzoo.config.trainer import Init
from modelzoo.interop.hf.config import choose_family, make_config_json
from modelzoo.interop.hf.tensors import convert_to_hf, fold_scales
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters, list_with_adapters, trains
from modelzoo.names import SOFT_PROMPT
from tests.support import TINY, batch, config, tiny

MUP = {"mup_base_hidden_size": 4, "mup_base_filter_size": 8, "embeddings_scale": 7.0}
MODELS = {
    "learned": {},
    "fixed": {"position_embedding_type": "fixed"},
    "rotary": {"position_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"position_embedding_type": "alibi"},
    "none": {"position_embedding_type": None},
    "mup, scaled embeddings": MUP,
    "embedding norm": {"embedding_layer_norm": True, "embeddings_scale": 3.0},
    "untied": {"share_embedding_weights": False, "use_bias_in_output": True},
}
PROMPT = {"tokens": 3}
ADAPTED = {
    "nothing": {},
    "prompt": {"soft_prompt": PROMPT},
    "prompt and all": {"soft_prompt": {**PROMPT, "train": "all"}},
    "lora": {"lora": {}},
    "both": {"soft_prompt": PROMPT, "lora": {"r": 2, "target_modules": ["*proj_k*", "*ffn.ffn.?.linear_layer*"]}},
}


def model(prompt: dict | None, seed=0, words=None, **fields) -> GPTModel:
    init = Init.model_validate({"model": {**TINY, **fields}, **({"soft_prompt": prompt} if prompt else {})})
    return adapt(GPTModel(init.model, seed=seed), init, words).eval()


def rows(m: GPTModel) -> torch.Tensor:
    return m.get_parameter(SOFT_PROMPT).detach()


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_a_prompt_of_words_is_as_these_words(fields):
    words = [5, 36, 5]
    prompted = model({"tokens": 3, "init": "words", "words": "of no account here"}, words=words, **fields)
    plain = model(None, **fields)
    ids = batch()["input_ids"]
    for at in (slice(0, 3), slice(4, 7)):  # a prefix, and in the middle
        soft, hard = ids.clone(), ids.clone()
        soft[:, at], hard[:, at] = torch.tensor([37, 38, 39]), torch.tensor(words)
        assert torch.equal(prompted.model.hidden(soft), plain.model.hidden(hard))


@settings(max_examples=30)
@given(st.integers(1, 9), st.sampled_from(["random", "vocab_mean", "sample_vocab"]), st.integers(0, 99))
def test_beginnings(tokens, how, seed):
    made = model({"tokens": tokens, "init": how, "seed": seed})
    words = made.model.embedding_layer.word_embeddings.weight
    assert torch.equal(rows(made), rows(model({"tokens": tokens, "init": how, "seed": seed})))
    if how == "vocab_mean":
        assert torch.equal(rows(made), words.mean(0).expand(tokens, -1))
    else:  # one seed or another draws otherwise: two may pick the same word of 37
        others = [rows(model({"tokens": tokens, "init": how, "seed": seed + i})) for i in range(1, 9)]
        assert not all(torch.equal(rows(made), other) for other in others)
    if how == "sample_vocab":
        found = (rows(made)[:, None] == words[None]).all(-1)
        assert found.any(1).all() and len(set(found.float().argmax(1).tolist())) == tokens


def test_random_beginnings_spread_like_the_embedding():
    made = model({"tokens": 400}, seed=1)
    spread = float(made.model.embedding_layer.word_embeddings.weight.detach().std())
    assert float(rows(made).std()) == pytest.approx(spread, rel=0.05) and abs(float(rows(made).mean())) < spread / 20


def test_few_words_repeat():
    made = model({"tokens": 5, "init": "words", "words": "x"}, words=[4, 9])
    words = made.model.embedding_layer.word_embeddings.weight
    assert torch.equal(rows(made), words[[4, 9, 4, 9, 4]])


@pytest.mark.parametrize(
    "ids,what", [([], "no token"), ([1, 2, 3], "set soft_prompt.tokens: 3"), ([1, 40], "token id 40")]
)
def test_words_that_do_not_fit(ids, what):
    with pytest.raises(UserError, match=what):
        model({"tokens": 2, "init": "words", "words": "x"}, words=ids)


@pytest.mark.parametrize("init", ADAPTED.values(), ids=ADAPTED)
@pytest.mark.parametrize("fields", [{}, {"share_embedding_weights": False, "use_ffn_bias": False}], ids=["", "untied"])
def test_the_table_of_shapes_is_the_model(init, fields):
    init = Init.model_validate({"model": {**TINY, **fields}, **init})
    made = adapt(GPTModel(init.model), init)
    shapes = list_with_adapters(init)
    assert [(n, tuple(p.shape)) for n, p in made.named_parameters()] == [(n, s.size) for n, s in shapes.items()]
    assert all(p.requires_grad == trains(init, shapes[n].kind) for n, p in made.named_parameters())
    assert {n: s for n, s in shapes.items() if s.kind not in ("prompt", "adapter")} == list_parameters(init.model)


def test_no_tokens_is_no_prompt():
    assert config(soft_prompt={"tokens": 0, "train": "prompt"}) == config()
    assert not config(soft_prompt={"tokens": 0}).trainer.init.base_frozen


@pytest.mark.parametrize("fields", [{}, MUP], ids=["plain", "mup"])
def test_gradients_equal_hugging_face_with_inputs_embeds(fields):
    """A prefix, and a prompt between source and target, by hand: embeddings joined and fed as inputs_embeds."""
    transformers = pytest.importorskip("transformers")
    made = model({"tokens": 3}, **fields)
    c = made.model.config
    weights = fold_scales({n: p.detach() for n, p in made.named_parameters() if n != SOFT_PROMPT}, c)
    family = choose_family(c)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(make_config_json(c, family, None)))
    theirs.load_state_dict(convert_to_hf(weights, c, family), strict=False)
    theirs.eval()
    data = batch(uneven=True)
    for at in (0, 5):
        ids, mask, labels = data["input_ids"].clone().long(), data["attention_mask"].float(), data["labels"].long()
        ids[:, at : at + 3] = torch.arange(37, 40)
        loss = made({"input_ids": ids, "attention_mask": mask, "labels": labels}, 7.0)
        (ours,) = torch.autograd.grad(loss, made.get_parameter(SOFT_PROMPT))
        prompt = (rows(made) * c.embeddings_scale).requires_grad_()
        embeds = theirs.transformer.wte(ids.clamp(max=36))
        embeds = torch.cat((embeds[:, :at], prompt.expand(len(ids), -1, -1), embeds[:, at + 3 :]), 1)
        logp = theirs(inputs_embeds=embeds).logits.log_softmax(-1)
        expected = -(logp.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * mask).sum() / 7.0
        assert torch.allclose(loss, expected, atol=1e-5)
        (grad,) = torch.autograd.grad(expected, prompt)
        assert torch.allclose(ours, grad * c.embeddings_scale, atol=1e-6)


def test_the_tie_to_the_head_stays():
    made = model({"tokens": 2, "train": "all"})
    assert made.model.lm_head.weight is made.model.embedding_layer.word_embeddings.weight
    assert made.model.logits(made.model.hidden(batch()["input_ids"])).shape[-1] == tiny().vocab_size


@pytest.mark.parametrize(
    "section,what",
    [
        ({"tokens": 2, "init": "words"}, "words"),
        ({"tokens": 2, "words": "x"}, "init: random"),
        ({"tokens": 2, "init": "words", "words": "  "}, "words"),
        ({"tokens": -1}, "tokens"),
    ],
)
def test_sections_that_make_no_sense(section, what):
    with pytest.raises(ValueError, match=what):
        SoftPrompt.model_validate(section)


def test_lora_and_a_prompt_with_the_whole_model_contradict():
    with pytest.raises(ValueError, match="lora freezes"):
        config(lora={}, soft_prompt={"tokens": 2, "train": "all"})
