"""lm-evaluation-harness over our checkpoint: its three requests answered as by its own Hugging Face model."""

import pytest

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.evaluation.scores import harness
from modelzoo.scoring.load_model import find_checkpoints, load_model
from modelzoo.training.build import Options

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `eval`)")
LONG = " ".join(["aspirin lowers fever and"] * 40)  # longer than the model's 96 positions


@pytest.fixture(scope="module")
def both(world, tmp_path_factory):
    """Our wrapper over the checkpoint, and the harness's own model over its export."""
    from lm_eval.models.huggingface import HFLM

    out = tmp_path_factory.mktemp("out") / "exported"
    assert main(["export", str(world / "run"), str(out)]) == 0
    config = load(world / "run/config.yaml", Config)
    path = find_checkpoints(config, Options(checkpoint_path=str(world / "run")))[0]
    s = load_model(path, config, Options(target="CPU"))
    s.model.eval()
    ours = harness.wrap_model(s.model, s.backend, s.tokenizer, s.length, 2)
    return ours, HFLM(pretrained=str(out), device="cpu", dtype="float32", batch_size=2)


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def test_loglikelihood(both):
    asked = requests("loglikelihood", ("aspirin", " lowers"), ("", "fever"), ("the ", "fever"), (LONG, " no"))
    before = both[0].cut
    ours, theirs = (m.loglikelihood(asked, disable_tqdm=True) for m in both)
    for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4) and greedy_a == greedy_b
    assert both[0].cut == before + 1
    with pytest.raises(UserError, match="exceeds the context of 96"):
        both[0].loglikelihood(requests("loglikelihood", ("a", LONG)), disable_tqdm=True)


def test_loglikelihood_rolling(both):
    asked = requests("loglikelihood_rolling", ("aspirin lowers fever",), (LONG,))
    ours, theirs = (m.loglikelihood_rolling(asked, disable_tqdm=True) for m in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_generate_until(both, monkeypatch):
    options = [{"until": ["\n"], "max_gen_toks": 12}, {"until": ["e", "zz"], "max_gen_toks": 20}, {"max_gen_toks": 5}]
    asked = requests("generate_until", *((("aspirin lowers", o)) for o in options), (LONG, options[0]))
    before, encode, encoded = (both[0].cut, both[0].shortened), both[0].tok_encode, []
    monkeypatch.setattr(both[0], "tok_encode", lambda text, **more: (encoded.append(text), encode(text, **more))[1])
    ours, theirs = (m.generate_until(asked) for m in both)
    assert encoded == [r.args[0] for r in asked]  # each once
    assert ours == theirs and (both[0].cut, both[0].shortened) == (before[0] + 1, before[1])
    both[0].generate_until(requests("generate_until", ("aspirin", {"max_gen_toks": 96, "until": ["a", "e", "i"]})))
    assert (both[0].cut, both[0].shortened) == (before[0] + 1, before[1] + 1)
