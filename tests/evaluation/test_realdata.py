"""PubMedQA and HoC as they are: counts, label shares, official forms, and a whole evaluation."""

import json
from collections import Counter

import numpy as np
import pytest

from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import load_tokenizer
from modelzoo.evaluation.forms.hoc import HALLMARKS
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.prompts.encode import encode_training
from modelzoo.evaluation.scores.evaluate import evaluate_task
from modelzoo.models.gpt import GPTModel
from tests.support import local, tiny

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def gpt2(shared_data):
    return load_tokenizer(str(shared_data / "gpt2_bpe"))


def task(shared_data, name):
    return load_task(f"configs/eval/{name}.yaml", [f"data_dir={shared_data / name.split('_')[0]}"])


def test_the_ten_folds_part_the_500(shared_data):
    pubmedqa = task(shared_data, "pubmedqa")
    devs = [[e.id for e in pubmedqa.examples("dev", fold)] for fold in range(10)]
    assert len({i for dev in devs for i in dev}) == sum(map(len, devs)) == 500
    for fold in (0, 9):
        train = pubmedqa.examples("train", fold)
        assert len(train) == 450 and not {e.id for e in train} & set(devs[fold])
    golds = Counter(e.gold for fold in range(10) for e in pubmedqa.examples("dev", fold))
    assert golds == Counter(
        q["final_decision"] for q in json.loads((shared_data / "pubmedqa/pqal_cv_500.json").read_text()).values()
    )
    with pytest.raises(UserError, match="ori_pqal"):
        pubmedqa.examples("test")


def test_contexts_are_cut_and_questions_never(shared_data, gpt2):
    pubmedqa = task(shared_data, "pubmedqa")
    examples = pubmedqa.examples("train")
    data, counts = encode_training(pubmedqa, examples, gpt2, 256)
    assert 300 < counts.truncated < 450
    for e, (ids, mask, labels) in zip(examples, data, strict=True):
        assert f"Question: {e.fields['question']}\nAnswer" in gpt2.decode(ids.tolist())
        assert gpt2.decode(labels[mask == 1].tolist()) == f" {e.gold}<|endoftext|>"


def test_hocs_labels_are_numbered_as_we_name_them(shared_data):
    """Each hallmark's own word stands oftener in its sentences than in those of any other."""
    sentences = task(shared_data, "hoc_biogpt").examples("train")
    words = {
        "activating invasion and metastasis": "metasta", "avoiding immune destruction": "immun",
        "cellular energetics": "glycoly", "enabling replicative immortality": "telomer",
        "evading growth suppressors": "arrest", "genomic instability and mutation": "damage",
        "inducing angiogenesis": "angiogen", "resisting cell death": "apopto",
        "sustaining proliferative signaling": "prolifer", "tumor promoting inflammation": "inflamm",
    }  # fmt: skip
    for name, word in words.items():
        share = {}
        for hallmark in HALLMARKS:
            mine = [word in e.fields["text"].lower() for e in sentences if hallmark in e.gold]
            share[hallmark] = np.mean(mine)
        assert max(share, key=share.get) == name, (name, share)


@pytest.mark.parametrize(
    ("name", "train", "dev"), [("hoc_blurb", 1295, 186), ("hoc_blue", 1098, 164), ("hoc_biogpt", 12119, 1798)]
)
def test_hocs_counts_by_protocol(shared_data, name, train, dev):
    hoc = task(shared_data, name)
    assert (len(hoc.examples("train")), len(hoc.examples("dev"))) == (train, dev)


@pytest.mark.parametrize("name", ["pubmedqa", "pubmedqa_generation", "hoc_blurb", "hoc_biogpt"])
def test_an_untrained_model_is_scored(shared_data, gpt2, name):
    found_task = task(shared_data, name)
    examples = found_task.examples("dev")[:6]
    model = GPTModel(tiny(vocab_size=50257, max_position_embeddings=512), seed=0)
    scores = evaluate_task(model, local(enabled=False), found_task, examples, gpt2, 512, batch_size=3, resamples=20)
    assert scores.n == 6 and [p.id for p in scores.predictions] == [e.id for e in examples]
    for metric, value in scores.metrics.items():
        low, high = scores.intervals[metric]
        assert 0 <= low <= high <= 1 and 0 <= value <= 1
    if name.startswith("pubmedqa"):
        assert all(p.prediction in ("yes", "no", "maybe") for p in scores.predictions)
    else:
        assert all(set(p.prediction) <= set(HALLMARKS) for p in scores.predictions)
