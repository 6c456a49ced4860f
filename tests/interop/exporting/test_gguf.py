"""GGUF: what is written is read back by llama.cpp's own reader, and computed by a forward pass in NumPy."""

import json
import sys
import urllib.request

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.training.checkpoints import checkpoint, saving
from tests.interop.sparse_runs import PERMUTED, read_dense, train_sparse
from tests.interop.words import train_words

gguf = pytest.importorskip("gguf", reason="llama.cpp's package gguf is not installed (the export extra)")
BASE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "filter_size": 64, "vocab_size": 310,
    "max_position_embeddings": 16, "initializer_range": 0.2, "nonlinearity": "gelu_new", "dropout_rate": 0.0,
}  # fmt: skip
ROTARY = {"position_embedding_type": "rotary", "num_heads": 2, "rotary_dim": 16}
LLAMA = {**ROTARY, "norm_type": "rmsnorm", "nonlinearity": "swiglu"}
KINDS = {
    "gpt2": {"position_embedding_offset": 2},
    "untied": {"position_embedding_type": "fixed", "share_embedding_weights": False, "use_ffn_bias": False},
    "mup": {
        "mup_base_hidden_size": 8, "mup_base_filter_size": 16, "embeddings_scale": 2.0, "output_logits_alpha": 3.0
    },
    "gptneox": {**ROTARY, "rotary_dim": 8, "pos_scaling_factor": 2.0, "use_projection_bias_in_attention": True},
    "parallel": {**ROTARY, "name": "gptj", "use_untied_layer_norm": True},
    "llama": {**LLAMA, "rope_theta": 500.0},
    "grouped": {
        **LLAMA, "num_heads": 4, "rotary_dim": 8, "pos_scaling_type": "llama3", "pos_scaling_factor": 4.0,
        "pos_scaling_extra_args": {"original_max_position_embeddings": 64},
        "attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 2},
    },
}  # fmt: skip
TEXT = "Aspirin lowers fever,  isn't it?\n\n 123 naïve 😀 times "


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def words() -> str:
    """A byte-level tokenizer of 300 entries, and a token that users add."""
    return train_words("<cite>")


@pytest.fixture(scope="module")
def world(tmp_path_factory, words):
    """A function that trains one of KINDS for a step, once, and gives its run folder."""
    folder = tmp_path_factory.mktemp("gguf")

    def train(name: str, model: dict | None = None):
        return train_sparse(folder, name, BASE | (model or KINDS[name]), vocab=270, words=words, seed=3)

    return train


def write(source, out, *flags):
    """Export, and read back: the metadata by key, the tensors as float32 by name, and their ggml types."""
    if not out.exists():
        assert run("export", source, out, *flags) == 0
    reader = gguf.GGUFReader(out)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return keys, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


def forward(keys, tensors, ids) -> np.ndarray:
    """Logits [t, vocab] by llama.cpp's graphs of gpt2, gptneox and llama, in float64, from a file alone."""
    arch = keys["general.architecture"]
    get = lambda key, default=None: keys.get(f"{arch}.{key}", default)
    w = {n: x.astype(np.float64) for n, x in tensors.items()}
    heads, t = get("attention.head_count"), len(ids)
    assert get("context_length") == 16

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x, name):
        if arch == "llama":
            scale = np.sqrt((x**2).mean(-1, keepdims=True) + get("attention.layer_norm_rms_epsilon"))
            return x / scale * w[f"{name}.weight"]
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + get("attention.layer_norm_epsilon"))
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def rotate(x):  # [heads, t, head_dim]
        n = get("rope.dimension_count")
        if n is None:
            return x
        rates = get("rope.freq_base") ** (-np.arange(0, n, 2) / n)
        angles = np.arange(t)[:, None] / get("rope.scaling.factor", 1.0) * rates / w.get("rope_freqs.weight", 1.0)
        first, second = (slice(0, n, 2), slice(1, n, 2)) if arch == "llama" else (slice(0, n // 2), slice(n // 2, n))
        a, b, out = x[..., first], x[..., second], x.copy()
        out[..., first], out[..., second] = (
            a * np.cos(angles) - b * np.sin(angles),
            a * np.sin(angles) + b * np.cos(angles),
        )
        return out

    x = w["token_embd.weight"][ids]
    if "position_embd.weight" in w:
        x = x + w["position_embd.weight"][:t]
    for i in range(get("block_count")):
        at = f"blk.{i}."
        y = norm(x, f"{at}attn_norm")
        packed = np.split(linear(y, f"{at}attn_qkv"), 3, -1) if f"{at}attn_qkv.weight" in w else None
        q, k, v = packed or (linear(y, f"{at}attn_{p}") for p in "qkv")
        groups = get("attention.head_count_kv", heads)
        q, k, v = (z.reshape(t, n, -1).transpose(1, 0, 2) for z, n in ((q, heads), (k, groups), (v, groups)))
        k, v = (np.repeat(z, heads // groups, 0) for z in (k, v))
        scores = rotate(q) @ rotate(k).transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        y = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(t, -1)
        before, x = x, x + linear(y, f"{at}attn_output")
        y = norm(before if get("use_parallel_residual", False) else x, f"{at}ffn_norm")
        up = linear(y, f"{at}ffn_up")
        if arch == "llama":
            gate = linear(y, f"{at}ffn_gate")
            up = up * gate / (1 + np.exp(-gate))
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(up, f"{at}ffn_down")
    return linear(norm(x, "output_norm"), "output" if "output.weight" in w else "token_embd")


def ours(folder) -> GPTModel:
    files, _ = checkpoint.load(checkpoint.newest(str(folder / "checkpoints"))[0])
    model = GPTModel(load(folder / "config.yaml", Config).trainer.init.model)
    model.load_state_dict({n: x for n, x in files["model"].items() if not n.endswith("_mask")}, strict=False)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_alone_computes_what_the_model_does(kind, world, tmp_path):
    folder = world(kind)
    keys, tensors, _ = write(folder, tmp_path / "m.gguf")
    ids = torch.randint(0, 310, (2, 16), generator=torch.Generator().manual_seed(1))
    model = ours(folder)
    with torch.no_grad():
        expected = model.model.logits(model.model.hidden(ids)).numpy()
    for row, logits in zip(ids.numpy(), expected):
        np.testing.assert_allclose(forward(keys, tensors, row), logits, rtol=1e-4, atol=1e-4)


def test_weights_of_permuted_inputs_are_written_in_the_models_own_order(tmp_path, words):
    folder = train_sparse(tmp_path, "run", BASE, vocab=270, words=words, seed=3, sparsity=PERMUTED)
    dense = read_dense(folder)
    keys, tensors, _ = write(folder, tmp_path / "m.gguf")
    for i in range(2):
        for theirs, inner in (("ffn_up", "ffn.ffn.0.linear_layer"), ("ffn_down", "ffn.ffn.1.linear_layer")):
            name = f"transformer_decoder.layers.{i}.{inner}.weight"
            (weight,) = (x for n, x in dense.items() if n.endswith(name))
            np.testing.assert_array_equal(tensors[f"blk.{i}.{theirs}.weight"], weight)
    ids = torch.randint(0, 310, (1, 16), generator=torch.Generator().manual_seed(1))
    model = GPTModel(load(folder / "config.yaml", Config).trainer.init.model).eval()
    model.load_state_dict({n: torch.from_numpy(x) for n, x in dense.items()}, strict=False)
    with torch.no_grad():
        expected = model.model.logits(model.model.hidden(ids)).numpy()[0]
    np.testing.assert_allclose(forward(keys, tensors, ids[0].numpy()), expected, rtol=1e-4, atol=1e-4)


def lay(name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    """A tensor of the Hugging Face folder as llama.cpp's converter lays it, row by row."""
    if name.startswith("transformer.h.") and x.dim() == 2:
        return x.t()
    if "query_key_value" in name:
        size = len(x) // heads // 3
        return torch.cat([x[(3 * h + p) * size :][:size] for p in range(3) for h in range(heads)])
    if ".q_proj." in name or ".k_proj." in name:
        size = len(x) // heads
        return torch.stack([x[h * size + i // 2 + size // 2 * (i % 2)] for h in range(heads) for i in range(size)])
    return x


@pytest.mark.parametrize("kind", ["gpt2", "untied", "gptneox", "llama"])
def test_every_tensor_is_the_exports(kind, world, tmp_path):
    assert run("export", world(kind), tmp_path / "folder") == 0
    heads = 4 if kind in ("gpt2", "untied") else 2
    exported = {n: lay(n, x, heads) for n, x in load_file(tmp_path / "folder/model.safetensors").items()}
    _, tensors, types = write(world(kind), tmp_path / "m.gguf")
    assert set(types.values()) == {"F32"}
    left = dict(tensors)
    if kind == "gptneox":  # llama.cpp has no tied head there
        np.testing.assert_array_equal(left.pop("output.weight"), tensors["token_embd.weight"])
    assert len(left) == len(exported)
    for name, x in exported.items():
        block = [part for part in name.split(".") if part.isdigit()]
        same = [n for n, y in left.items() if y.shape == x.shape and (not block or f"blk.{block[0]}." in n)]
        same = [n for n in same if np.array_equal(left[n], x.numpy()) and n.endswith(name.rpartition(".")[2])]
        assert same, name
        del left[same[0]]  # those that equal each other are biases of zeros and norms of ones


def test_sixteen_bits_are_torchs_and_masked_weights_stay_zero(world, tmp_path):
    _, exact, _ = write(world("gpt2"), tmp_path / "f32.gguf")
    for dtype, name, cast in (("float16", "F16", torch.float16), ("bfloat16", "BF16", torch.bfloat16)):
        keys, tensors, types = write(world("gpt2"), tmp_path / f"{name}.gguf", "--dtype", dtype)
        assert keys["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{name}"]
        for n, x in exact.items():
            small = x.ndim < 2 or n == "position_embd.weight"
            assert types[n] == ("F32" if small else name), n
            expected = torch.from_numpy(x.copy())
            expected = expected if small else expected.to(cast).float()
            np.testing.assert_array_equal(tensors[n], expected.numpy())
    _, tensors, types = write(world("gpt2"), tmp_path / "q8.gguf", "--dtype", "q8_0")
    off = 0
    for n, x in exact.items():
        if types[n] == "Q8_0":
            blocks = np.abs(x).reshape(-1, 32)
            bound = (blocks.max(-1, keepdims=True) / 127).repeat(32, -1).reshape(x.shape)
            assert (np.abs(tensors[n] - x) <= 0.51 * bound + np.abs(x) * 1e-3).all(), n
            assert not tensors[n][x == 0].any()
            off += int((x == 0).sum())
        else:
            np.testing.assert_array_equal(tensors[n], x)
    masks = load_file(checkpoint.newest(str(world("gpt2") / "checkpoints"))[0] + "/model.safetensors")
    assert off >= sum(int((~m).sum()) for n, m in masks.items() if n.endswith("_mask")) > 0


def test_the_tokenizer_is_all_there(world, words, tmp_path):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    keys, _, _ = write(world("gpt2"), tmp_path / "m.gguf")
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2"
    n, kinds = Tokenizer.from_str(words).get_vocab_size(), gguf.TokenType
    assert tokens[n - 1 :] == ["<cite>", *(f"[PAD{i}]" for i in range(n, 310))]
    assert types == [kinds.CONTROL, *[kinds.NORMAL] * (n - 2), kinds.USER_DEFINED, *[kinds.UNUSED] * (310 - n)]
    assert [keys[f"tokenizer.ggml.{n}_token_id"] for n in ("bos", "eos", "padding")] == [0, 0, 0]
    assert keys["tokenizer.ggml.add_bos_token"] is False and keys["tokenizer.ggml.add_eos_token"] is False
    vocabulary = {t: i for i, t in enumerate(tokens)}
    again = Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ")) for m in keys["tokenizer.ggml.merges"]]))
    again.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    again.add_tokens([AddedToken("<cite>", special=False)])
    assert again.encode(TEXT + "<cite>").ids == Tokenizer.from_str(words).encode(TEXT + "<cite>").ids


@pytest.mark.parametrize("kind", ["gpt2", "gptneox", "parallel", "llama", "grouped"])
def test_llama_cpp_itself_cuts_words_and_computes_the_same(kind, world, words, tmp_path):
    """To what its 16-bit cache and its table of gelu leave."""
    llama = pytest.importorskip("xllamacpp", reason="llama.cpp (pip install xllamacpp) is not installed")
    from tokenizers import Tokenizer

    write(world(kind), tmp_path / "m.gguf")
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads = str(tmp_path / "m.gguf"), 16, 1
    server, model = llama.Server(params), ours(world(kind))

    def post(path, **body):
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        return json.loads(urllib.request.urlopen(request, timeout=60).read())

    tokenizer = Tokenizer.from_str(words)
    assert post("/tokenize", content=TEXT, add_special=True)["tokens"] == tokenizer.encode(TEXT).ids
    letter = tokenizer.token_to_id("a")  # is what it writes: of a lone byte of a longer character it reports nothing
    for text in ("aspirin lowers", "the fever and"):
        ids = tokenizer.encode(text).ids
        found = post("/completion", prompt=ids, n_predict=1, n_probs=310, logit_bias=[[letter, 100]])
        with torch.no_grad():
            expected = model.model.logits(model.model.hidden(torch.tensor([ids])))[0, -1]
        expected = expected.log_softmax(-1)
        listed = found["completion_probabilities"][0]["top_logprobs"]
        assert len(listed) >= 300
        assert all(abs(p["logprob"] - float(expected[p["id"]])) < 0.01 for p in listed)


def test_lora_is_merged(world, tmp_path, capsys):
    source = world("gpt2")
    files, state = checkpoint.load(checkpoint.newest(str(source / "checkpoints"))[0])
    name = "model.transformer_decoder.layers.1.self_attn.proj_q_dense_layer"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    files["model"] |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
    state["lora"] = {"r": 2, "alpha": 4, "target_modules": ["*proj_q_dense_layer"]}
    step = saving.save(str(tmp_path / "run/checkpoints"), 1, files, state, None)
    (tmp_path / "run/config.yaml").write_text((source / "config.yaml").read_text())
    _, plain, _ = write(source, tmp_path / "plain.gguf")
    _, tensors, _ = write(step, tmp_path / "lora.gguf")
    assert "LoRA is merged" in capsys.readouterr().out
    for n, x in plain.items():
        if n == "blk.1.attn_qkv.weight":
            x = np.concatenate([x[:32] + (2 * b.double() @ a.double()).numpy(), x[32:]])
        np.testing.assert_allclose(tensors[n], x, rtol=1e-6, atol=1e-6)


ALIBI = {"position_embedding_type": "alibi", "embedding_layer_norm": True, "filter_size": 128}
REFUSED = {
    "alibi": (ALIBI, "alibi positions"),
    "relu": ({"nonlinearity": "relu"}, "nonlinearity: relu"),
    "gptj": ({**ROTARY, "name": "gptj"}, "GPTJForCausalLM"),
    "llama3": ({**ROTARY, "pos_scaling_type": "llama3", "pos_scaling_factor": 2.0}, "pos_scaling_type: llama3"),
    "reglu": ({**LLAMA, "nonlinearity": "reglu"}, "nonlinearity: reglu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_lacks_is_refused_by_name(name, world, tmp_path, capsys):
    model, words = REFUSED[name]
    check_refusal(world(name, model), tmp_path, capsys, words)


def check_refusal(source, tmp_path, capsys, words, *flags, name="m.gguf"):
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert run("export", source, tmp_path / name, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and words in error, error
    assert sorted(tmp_path.rglob("*")) == before


TOKENIZERS = {
    "normalizer": (lambda t: t | {"normalizer": {"type": "Lowercase"}}, "normalizer"),
    "space": (lambda t: t | {"pre_tokenizer": t["pre_tokenizer"] | {"add_prefix_space": True}}, "add_prefix_space"),
    "whitespace": (lambda t: t | {"pre_tokenizer": {"type": "Whitespace"}}, "is not ByteLevel"),
    "own words": (
        lambda t: (
            t
            | {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False},
                        t["pre_tokenizer"] | {"use_regex": False},
                    ],
                }
            }
        ),
        "cuts words otherwise",
    ),
    "too large": (
        lambda t: t | {"added_tokens": [*t["added_tokens"], {**t["added_tokens"][0], "id": 310, "content": "<x>"}]},
        "ids up to 310",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_gguf_cannot_hold_is_refused_by_its_part(name, world, words, tmp_path, capsys):
    change, message = TOKENIZERS[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(change(json.loads(words))))
    check_refusal(world("gpt2"), tmp_path, capsys, message, "--tokenizer", tmp_path / "tokenizer.json")


def test_a_name_and_a_format_that_differ_are_refused(world, tmp_path, capsys):
    source = world("gpt2")
    check_refusal(source, tmp_path, capsys, "ends in .gguf", "--format", "gguf", name="folder")
    check_refusal(source, tmp_path, capsys, "name of a folder", "--format", "hf")
    check_refusal(source, tmp_path, capsys, "q8_0", "--dtype", "q8_0", name="folder")


def test_without_the_package_one_line_says_how_to_get_it(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    check_refusal(world("gpt2"), tmp_path, capsys, "pip install gguf")


def test_a_failure_leaves_nothing(world, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    check_refusal(world("gpt2"), tmp_path, capsys, "No space left")


def test_a_weight_beyond_float16_is_refused_and_never_infinite(world, tmp_path, capsys):
    files, state = checkpoint.load(checkpoint.newest(str(world("gpt2") / "checkpoints"))[0])
    files["model"]["model.transformer_decoder.layers.0.ffn.ffn.0.linear_layer.weight"][0, 0] = 1e5
    step = saving.save(str(tmp_path / "run/checkpoints"), 1, files, state, None)
    words = ("--tokenizer", world("gpt2").parent / "data/tokenizer.json")
    check_refusal(step, tmp_path, capsys, "beyond what float16 holds", *words, "--dtype", "float16")
    check_refusal(step, tmp_path, capsys, "beyond what float16 holds", *words, "--dtype", "float16", name="folder")
    assert run("export", step, tmp_path / "m.gguf", *words, "--dtype", "bfloat16") == 0
    files["model"]["model.transformer_decoder.layers.0.ffn.ffn.0.linear_layer.weight"][0, 0] = float("nan")
    step = saving.save(str(tmp_path / "run/checkpoints"), 2, files, state, None)
    for name in ("n.gguf", "folder"):  # whatever its state says of it
        check_refusal(step, tmp_path, capsys, "ffn.ffn.0.linear_layer.weight); export an earlier", *words, name=name)


def test_a_soft_prompt_has_no_place(world, tmp_path, capsys):
    files, state = checkpoint.load(checkpoint.newest(str(world("gpt2") / "checkpoints"))[0])
    files["model"]["model.embedding_layer.word_embeddings.soft_prompt"] = torch.zeros(3, 32)
    state["soft_prompt"] = {"tokens": 3}
    step = saving.save(str(tmp_path / "run/checkpoints"), 1, files, state, None)
    check_refusal(step, tmp_path, capsys, "soft prompt", "--tokenizer", world("gpt2").parent / "data/tokenizer.json")
