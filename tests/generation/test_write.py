"""Tokens are those of whole passes without a cache, and of transformers' generate; draws are repeatable."""

import pytest
import torch

from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.generation.load import LoadedModel, load_model
from modelzoo.generation.prompts import Prompt
from modelzoo.generation.settings import Settings
from modelzoo.generation.write import Text, write_texts
from modelzoo.kernels import few
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.names import is_mask
from modelzoo.sparsity.parameter import PackedLinear
from modelzoo.training.checkpoints import checkpoint
from tests.generation.conftest import VOCAB, run

ROTARY = {"position_embedding_type": "rotary", "rotary_dim": 4}
NO_BIAS = dict.fromkeys(("use_ffn_bias", "use_ffn_bias_in_attention", "use_projection_bias_in_attention"), False)
MODELS = {
    "learned": {},
    "learned, offset": {"position_embedding_offset": 3},
    "fixed": {"position_embedding_type": "fixed"},
    "rotary": ROTARY,
    "llama": {**ROTARY, **NO_BIAS, "rotary_dim": 8, "norm_type": "rmsnorm", "nonlinearity": "swiglu"},
    "llama, shared keys": {
        **ROTARY, **NO_BIAS, "norm_type": "rmsnorm", "nonlinearity": "swiglu", "num_heads": 4,
        "attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 2},
    },
    "pythia": {**ROTARY, "name": "gptj", "use_untied_layer_norm": True, "use_ffn_bias": True},
    "gptj": {
        **ROTARY, "name": "gptj", "use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False,
    },
    "bloom": {
        "position_embedding_type": "alibi", "filter_size": 64, "embedding_layer_norm": True, "nonlinearity": "gelu_new"
    },
    "mpt": {**NO_BIAS, "position_embedding_type": "alibi", "filter_size": 64, "norm_type": "biasless-layernorm"},
}  # fmt: skip
WIDE = {"hidden_size": 64, "filter_size": 128}
STORED = {
    "blocks": {"algorithm": "static", "sparsity": 0.75, "block": [32, 32]},
    "narrow blocks": {"algorithm": "static", "sparsity": 0.75, "block": [32, 1]},
    "single weights": {"algorithm": "static", "sparsity": 0.75},
}
PARTS = {
    "prefix": {"soft_prompt": {"tokens": 3, "place": "prefix"}},
    "before the text": {"soft_prompt": {"tokens": 3, "place": "before_target"}},
    "lora": {"lora": {"r": 2, "alpha": 8, "target_modules": ["*proj_q*", "*linear_layer"]}},
}
PROMPTS = ["aspirin", "does it lower fever?", "a", "fever lowers appetite yes no maybe", "Answer: no"]

GREEDY = Settings(25, repetition_penalty=1.5)  # so that texts do not run in circles


def write(model: LoadedModel, prompts: list[str], settings: Settings) -> list[Text]:
    """The texts of all prompts, as one batch."""
    found = [Text(model, Prompt(p, "--prompt"), k, settings) for p in prompts for k in range(settings.samples)]
    write_texts(model, found)
    return found


def whole_model(folder) -> GPTModel:
    """The checkpoint's model as training builds it, its weights whole."""
    init = load(str(folder / "config.yaml"), Config).trainer.init
    model = adapt(GPTModel(init.model), init).eval()
    files, _ = checkpoint.load(str(folder / "checkpoints" / "step_1"))
    model.load_state_dict({n: x for n, x in files["model"].items() if not is_mask(n)}, strict=False)
    return model


@torch.no_grad()
def check_greedy(folder, context: int = 48) -> None:
    """Every token of a batch of unlike prompts against a whole pass over all that comes before it."""
    model, whole = load_model(str(folder)), whole_model(folder)
    different = set()
    for text in write(model, PROMPTS, GREEDY):
        ids = list(text.begin)
        for token in text.ids:
            logits = whole.model.logits(whole.model.hidden(torch.tensor([ids])))[0, -1]
            for i in {i for i in ids if i < VOCAB}:
                logits[i] *= 1 / 1.5 if logits[i] > 0 else 1.5
            assert token == int(logits.argmax())
            ids.append(token)
        assert text.end in ("end", "length", "context") and len(ids) <= context
        different.add(tuple(text.ids))
    assert len(different) > 1


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_whole_passes(make, name):
    check_greedy(make(name, model=MODELS[name]))


@pytest.mark.parametrize("name", STORED)
def test_packed_weights_are_used_as_they_are(make, name):
    folder = make(name, model=WIDE, sparsity=STORED[name])
    packed = [m for m in load_model(str(folder)).model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == (0 if few.compiled() is None else 12)
    check_greedy(folder)


@pytest.mark.parametrize("name", PARTS)
def test_soft_prompts_and_lora_act(make, name):
    folder = make(name, **PARTS[name])
    check_greedy(folder)
    (text,), (bare,) = (write(load_model(str(f)), PROMPTS[:1], Settings(20)) for f in (folder, make("learned")))
    soft = [i for i in text.begin if i >= VOCAB]
    assert soft == ([] if name == "lora" else [VOCAB, VOCAB + 1, VOCAB + 2]) and text.ids != bare.ids
    assert name == "lora" or (text.begin[0] == VOCAB) is (name == "prefix")


@pytest.mark.parametrize("name", ["learned", "fixed", "rotary", "llama", "bloom", "mpt"])
def test_tokens_are_those_of_transformers_generate(make, tmp_path_factory, name):
    """50 prompts; the exported folder itself gives the same texts, too."""
    transformers = pytest.importorskip("transformers")
    folder, out = make(name, model=MODELS[name]), tmp_path_factory.mktemp("exported") / name
    assert run("export", folder, out, "--tokenizer", folder / "tokenizer.json") == 0
    theirs, model = (
        transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32").eval(),
        load_model(str(folder)),
    )
    words = ["aspirin", "fever", "it", "lowers", "no"]
    count = 50 if name == "learned" else 5
    prompts = [f"{words[i % 5]} {words[i // 5 % 5]} {i}" for i in range(count)]
    settings = GREEDY._replace(max_new_tokens=8)
    texts = [t for i in range(0, count, 7) for t in write(model, prompts[i : i + 7], settings)]
    for text in texts:
        ids = torch.tensor([text.begin])
        options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.5}
        found = theirs.generate(ids, **options, eos_token_id=0, pad_token_id=0)[0].tolist()
        expected = found[len(text.begin) :]
        assert text.ids == expected[: expected.index(0) if 0 in expected else None]
    assert len({tuple(t.ids) for t in texts}) > 3
    again = write(load_model(str(out)), prompts[:3], settings)
    assert [t.text for t in again] == [t.text for t in texts[:3]]


def test_rows_beyond_the_tokenizer_are_no_tokens(make):
    model = load_model(str(make("more rows", model={"vocab_size": 640})))
    drawn = write(model, PROMPTS, Settings(20, temperature=5.0))
    assert max(i for t in drawn for i in t.ids) < VOCAB


DRAWN = Settings(12, temperature=0.9, top_p=0.95, repetition_penalty=1.1, samples=2, seed=7)


def test_a_seed_gives_its_texts_in_any_batch(make):
    model = load_model(str(make("learned")))
    together = {(t.prompt.text, t.sample): t.text for t in write(model, PROMPTS, DRAWN)}
    assert len(set(together.values())) > 6
    for prompt in reversed(PROMPTS):
        for text in write(model, [prompt], DRAWN):
            assert text.text == together[prompt, text.sample]
    other = write(model, PROMPTS[:1], DRAWN._replace(seed=8))
    assert [t.text for t in other] != [together[PROMPTS[0], k] for k in (0, 1)]


def test_prompts_longer_than_the_context_keep_their_end(make):
    model = load_model(str(make("learned")))
    for new, kept in ((5, 43), (100, 24)):
        (text,) = write(model, ["fever " * 60 + "does it?"], Settings(new))
        whole = model.encode(Prompt("fever " * 60 + "does it?", ""))
        assert text.words == whole[-kept:] and text.cut == len(whole) - kept
        assert text.end == "end" or len(text.ids) == min(new, 24)
    fits = "fever " * 40
    (text,) = write(model, [fits], Settings(100))
    assert not text.cut and (text.end == "end" or (text.end, len(text.begin) + len(text.ids)) == ("context", 48))


def test_stops_end_a_text(make):
    model = load_model(str(make("learned")))
    how = Settings(25, temperature=3.0)
    (free,) = write(model, PROMPTS[:1], how)
    stop = next(c for c in free.text[3:] if c.isascii())
    (text,) = write(model, PROMPTS[:1], how._replace(stops=("never there", stop)))
    assert text.end == "stop" and text.text == free.text[: free.text.index(stop)] and len(text.ids) <= len(free.ids)
