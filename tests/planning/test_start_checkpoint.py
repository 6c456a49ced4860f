"""Where a tokenizer is looked for: one answer for prompts, scores and exports."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.data.tokenizer import read_tokenizer
from modelzoo.data.tokenizer_files import list_files
from modelzoo.planning import start_checkpoint
from modelzoo.training.build import encode_prompt_words
from tests.support import TINY


def run_on(folder: Path, mixed: bool) -> Config:
    """A config whose data lies in `folder`/a/train and `folder`/b/train, with soft prompts that begin with words."""
    folders = [str(folder / name / "train") for name in "ab"]
    for name in folders:
        Path(name).mkdir(parents=True, exist_ok=True)
    data = {"mixture": [{"data_dir": d, "weight": 1} for d in folders]} if mixed else {"data_dir": folders}
    prompt = {"tokens": 2, "init": "words", "words": "b a"}
    init = {"model": TINY, "optimizer": {"AdamW": {"lr": 0.1}}, "soft_prompt": prompt}
    return Config.model_validate({"trainer": {"init": init, "fit": {"train_dataloader": {**data, "batch_size": 2}}}})


def write_tokenizer(folder: Path, gpt2: bool) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    bpe = models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])
    if gpt2:
        return bpe.save(str(folder))
    Tokenizer(bpe).save(str(folder / "tokenizer.json"))
    return [str(folder / "tokenizer.json")]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("gpt2", [False, True])
@pytest.mark.parametrize("place", ["a/train", "a", "b/train", "b"])
def test_the_tokenizer_beside_the_data_is_found_by_all_that_look_for_it(tmp_path, mixed, gpt2, place):
    config = run_on(tmp_path, mixed)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_1"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(dump(config, "test"))
    for looks in (
        lambda: start_checkpoint.find_tokenizer_path(config.trainer.init, str(checkpoint)),
        lambda: encode_prompt_words(config),
    ):
        with pytest.raises(UserError, match=r"no tokenizer.json next to .*trainer.init.tokenizer=PATH"):
            looks()
    assert list_files(None, config) == []
    written = write_tokenizer(tmp_path / place, gpt2)
    assert sorted(list_files(None, config)) == sorted(written)
    found = start_checkpoint.find_tokenizer_path(config.trainer.init, str(checkpoint))
    assert Tokenizer.from_str(read_tokenizer(found)).get_vocab() == {"a": 0, "b": 1, "ab": 2}
    assert [i for i in encode_prompt_words(config) if i < 2][:1] == [1]  # b comes first
    write_tokenizer(tmp_path / "a" / "train", gpt2=False)
    nearest = str(tmp_path / "a" / "train" / "tokenizer.json")
    assert start_checkpoint.find_tokenizer_path(config.trainer.init, str(checkpoint)) == nearest
    assert list_files(None, config)[0] == nearest


def test_the_run_folder_is_asked_last_and_a_named_one_first(tmp_path):
    config = run_on(tmp_path, False)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_1"
    checkpoint.mkdir(parents=True)
    write_tokenizer(tmp_path / "run", gpt2=False)
    init = config.trainer.init
    assert start_checkpoint.find_tokenizer_path(init, str(checkpoint)) == str(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "run" / "config.yaml").write_text(dump(config, "test"))
    write_tokenizer(tmp_path / "b", gpt2=False)
    assert start_checkpoint.find_tokenizer_path(init, str(checkpoint)) == str(tmp_path / "b" / "tokenizer.json")
    named = init.model_copy(update={"tokenizer": "elsewhere"})
    assert start_checkpoint.find_tokenizer_path(named, str(checkpoint)) == "elsewhere"
