"""Models whose tokenizer begins each text with a token: prompts and scores are those of transformers."""

import json
import shutil

import pytest
import torch

import modelzoo
from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.data.bos import find_bos, write_bos
from modelzoo.data.tokenizer import load_tokenizer, parse_tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.prompts.encode import encode_prompt
from modelzoo.evaluation.prompts.few_shot import encode_choices
from modelzoo.evaluation.prompts.soft_prompt import Soft
from tests.interop.words import train_words

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
PROMPT, CHOICES = "aspirin lowers", [" fever", " the appetite"]


def run(*argv) -> int:
    return main([str(a) for a in argv])


def template(single: str) -> str:
    """A tokenizer.json with `<s>` (286) and `</s>` (287), whose post-processor makes texts like `single`."""
    made = tokenizers.Tokenizer.from_str(train_words())
    made.add_special_tokens(["<s>", "</s>"])
    special = [(t, made.token_to_id(t)) for t in ("<s>", "</s>")]
    own = tokenizers.processors.TemplateProcessing(single=single, special_tokens=special)
    made.post_processor = tokenizers.processors.Sequence([tokenizers.processors.ByteLevel(), own])
    return made.to_str()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of transformers whose logits depend on what comes first, in its folder."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=288, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=24, bos_token_id=286, eos_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0 if p.dim() > 1 else 1.0, 0.3)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer.from_str(template("<s> $A"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "llama"
    assert run("import", llama, out) == 0
    return out


def generate(folder) -> str:
    """What transformers writes behind PROMPT, as its own tokenizer reads it."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = words(PROMPT, return_tensors="pt").input_ids
    assert ids[0, 0] == 286
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return words.decode(out).removesuffix("<|endoftext|>")


@torch.no_grad()
def score(folder, text: str, of: str) -> float:
    """log p(of | BOS text) by a plain log-softmax over transformers' logits."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    before, ids = words(text).input_ids, torch.tensor([words(text + of).input_ids])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = torch.log_softmax(model(ids).logits[0], -1)
    return sum(float(found[i - 1, ids[0, i]]) for i in range(len(before), ids.shape[1]))


def test_an_import_writes_and_scores_as_transformers_does(llama, imported, tmp_path, capsys):
    assert load(str(imported / "config.yaml"), Config).trainer.init.model.bos_token_id == 286
    assert run("export", imported, tmp_path / "out") == 0
    expected = [score(llama, PROMPT, choice) for choice in CHOICES]
    whole = score(llama, "", PROMPT)
    capsys.readouterr()
    for folder in (llama, imported, tmp_path / "out"):  # through transformers, our model, and its export
        model = modelzoo.load(folder)
        assert any("begins with '<s>' (id 286" in note for note in model.notes)
        assert model.generate(PROMPT, max_new_tokens=8) == [generate(llama)], folder
        assert model.score_choices(PROMPT, CHOICES) == pytest.approx(expected, abs=1e-4), folder
        assert model.score(PROMPT) == pytest.approx([whole], abs=1e-4), folder
    assert generate(tmp_path / "out") == generate(llama)
    again = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (again["bos_token_id"], again["eos_token_id"]) == (286, 0)  # no training data here says where texts end


def test_a_long_prompt_keeps_its_bos(imported, recwarn):
    model = modelzoo.load(imported)
    words, long = model.tokenizer, " fever the" * 40
    kept = words.encode(long)[-(23 - 8) :]  # 24 places, less BOS and what is to be written
    with torch.no_grad():
        ids = [286, *kept]
        for _ in range(8):
            ids.append(int(model.module.model.logits(model.module.model.hidden(torch.tensor([ids])))[0, -1].argmax()))
    assert model.generate(long, max_new_tokens=8) == [words.decode(ids[16:])]
    assert f"leave no room in the context of 23; its last {len(kept)} are read" in str(recwarn[0].message)


def test_task_prompts_begin_with_it_and_make_room_for_it(imported, tmp_path):
    (tmp_path / "task.yaml").write_text("form: classification\ntemplate: t.yaml\nlong_fields: [text]\n")
    (tmp_path / "t.yaml").write_text('source: "{text}? "\ntarget: "{label}"\nlabels: {a: "a", b: "b"}\n')
    task, plain = load_task(str(tmp_path / "task.yaml")), load_tokenizer(str(imported))
    words = plain._replace(bos=286)
    example = Example("1", {"text": "fever " * 30}, "a")
    without, found = (encode_prompt(task, example, w, 20) for w in (plain, words))
    assert found.ids[0] == 286 and len(found.ids) == len(without.ids) == 19
    assert (found.cut, found.ids[-2:]) == (without.cut + 1, without.ids[-2:])
    assert encode_prompt(task, example, words, 20, Soft(2, 500, "prefix")).ids[:3] == [500, 501, 286]
    before, behind = encode_choices("", [" a"], words)
    assert (before, behind) == ([286], [words.encode(" a")])


def test_an_export_begins_texts_as_the_training_data_did(tmp_path):
    """A run on shards, whose texts have no BOS, by a tokenizer that adds one where transformers reads it."""
    text = template("<s> $A </s>")
    assert write_bos(text, None, "t") != text
    for bos, expected in ((None, []), (286, [286])):
        made = write_bos(text, bos, "t")
        (tmp_path / "tokenizer.json").write_text(made)
        found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        assert found("fever").input_ids == [
            *expected,
            *parse_tokenizer(text, "t").encode("fever", add_special_tokens=False).ids,
        ]
        assert write_bos(made, bos, "t") == made
    assert write_bos(train_words(), None, "t") == train_words()


@pytest.mark.parametrize(
    "single,config,bos",
    [
        ("$A", {}, None),
        ("<s> $A", {}, 286),
        ("<s> $A </s>", {}, 286),
        ("<s> </s> $A", {}, None),
        ("<s> $A", {"add_bos_token": False, "bos_token": "<s>"}, 286),
        ("$A", {"add_bos_token": True, "bos_token": "</s>"}, None),
    ],
)
def test_who_says_what_comes_first(tmp_path, single, config, bos):
    (tmp_path / "tokenizer.json").write_text(template(single))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", **config}))
    found = find_bos(str(tmp_path), load_tokenizer(str(tmp_path), eos=287).backend)
    assert found.id == bos
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("fever").input_ids[:1]
    if single != "<s> </s> $A":  # of two, which one token cannot hold; a note says so
        assert (theirs == [bos]) == (bos is not None)
    else:
        assert "'<s>' '</s>' in front" in found.notes[0]


def test_an_adapter_that_is_not_applied_is_named(llama, tmp_path, capsys):
    shutil.copytree(llama, tmp_path / "llama")
    for adapter in (False, True):
        (tmp_path / "llama/adapter").mkdir() if adapter else None
        modelzoo.load(tmp_path / "llama")
        assert ("its adapter/ is not applied" in capsys.readouterr().err) == adapter
