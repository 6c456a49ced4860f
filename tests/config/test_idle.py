"""What has no effect is reported, each key with its line; what asks for nothing is not."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.idle import CSX_ONLY, NO_EFFECT, remarks
from modelzoo.config.loading.load import dump, load, resolve
from modelzoo.config.trainer import Config

MODEL = "{hidden_size: 8, num_heads: 2, num_hidden_layers: 1, filter_size: 16}"
FILE = f"""\
trainer:
  init:
    model: {MODEL}
    checkpoint: {{checkpoint_name: x.mdl}}
    autorestart: {{max_num_restarts: 3}}
    backend: {{num_csx: 2, mount_dirs: /x}}
    callbacks:
      - CheckLoss
      - ComputeNorm: {{}}
      - KeepNCheckpoints: {{n: 2}}
    loggers:
      - ProgressLogger
      - TensorBoardLogger: {{legacy_event_dirs: true}}
  fit:
    train_dataloader: {{data_dir: a, batch_size: 4, drop_last: true, use_worker_cache: true}}
    val_dataloader:
      - {{data_dir: a, batch_size: 4, drop_last: false}}
"""
LINES = {
    4: "init.checkpoint.checkpoint_name", 5: "init.autorestart", 8: "init.callbacks.0.CheckLoss",
    9: "init.callbacks.1.ComputeNorm", 13: "init.loggers.1.TensorBoardLogger.legacy_event_dirs",
    15: "fit.train_dataloader.drop_last", 17: "fit.val_dataloader.0.drop_last",
}  # fmt: skip


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(FILE)
    return "a.yaml"


def said(path: str, csx: bool = False) -> list[str]:
    return remarks(resolve(path, Config), Config, csx)


def test_each_key_is_one_line_with_its_place(path):
    lines = said(path)
    for line, key in LINES.items():
        assert sum(text.startswith(f"a.yaml:{line}: trainer.{key}: ") for text in lines) == 1, (line, lines)
    assert sum("use_worker_cache" in text for text in lines) == 1
    assert sum(text.endswith("acts on the CS-2 only") for text in lines) == 2
    assert len(lines) == len(LINES) + 1 + 2


def test_on_the_cs2_its_own_keys_act(path):
    assert [x for x in said(path) if x not in said(path, csx=True)] == [
        f"a.yaml:6: trainer.init.backend.{key}: acts on the CS-2 only" for key in ("num_csx", "mount_dirs")
    ]


def test_a_dumped_config_says_no_more_than_its_file(path, tmp_path):
    (tmp_path / "plain.yaml").write_text(f"trainer:\n  init:\n    model: {MODEL}\n")
    (tmp_path / "dumped.yaml").write_text(dump(load("plain.yaml", Config)))
    assert said("plain.yaml") == said("dumped.yaml") == []
    (tmp_path / "again.yaml").write_text(dump(load(path, Config)))
    keys = lambda lines: sorted(x.split(": ")[1] for x in lines)
    assert keys(said("again.yaml")) == keys(said(path))


def test_every_reason_is_a_line_of_its_own():
    reasons = [why for keys in NO_EFFECT.values() for why in keys.values()]
    assert all(why and "\n" not in why and not why.endswith(".") for why in reasons) and CSX_ONLY


@pytest.mark.parametrize("text,kind", [("device: CPU", "CPU"), ("device: CPU\n    backend: {num_threads: 2}", "CPU"),
                                       ("device: cpu\n    backend: {backend_type: CPU}", "CPU")])  # fmt: skip
def test_device_is_the_backends_type(tmp_path, text, kind):
    (tmp_path / "a.yaml").write_text(f"trainer:\n  init:\n    model: {MODEL}\n    {text}\n")
    assert load(tmp_path / "a.yaml", Config).trainer.init.backend.backend_type == kind


def test_two_devices_are_refused(tmp_path):
    text = "device: CSX\n    backend: {backend_type: CPU}"
    (tmp_path / "a.yaml").write_text(f"trainer:\n  init:\n    model: {MODEL}\n    {text}\n")
    with pytest.raises(UserError, match=r"device: CSX is not backend.backend_type: CPU"):
        load(tmp_path / "a.yaml", Config)


@pytest.mark.parametrize(
    "settings,met",
    [
        ("trainer.init.model.rotary_dim=4", "trainer.init.model.position_embedding_type=rotary"),
        ("trainer.init.model.rope_theta=500.0", "trainer.init.model.position_embedding_type=rotary"),
        ("trainer.init.model.scale_output_logits_by_d=false", "trainer.init.model.mup_base_hidden_size=8"),
        ("trainer.init.loop.max_skipped_steps=5", "trainer.init.loop.on_nonfinite=skip"),
        ("trainer.init.loop.steps_per_epoch=5", "trainer.init.loop.num_epochs=2"),
        ("trainer.fit.train_dataloader.shuffle_seed=3", "trainer.fit.train_dataloader.shuffle=true"),
        ("trainer.fit.train_dataloader.prefetch_factor=3", "trainer.fit.train_dataloader.num_workers=1"),
        ("trainer.init.optimizer.SGD.dampening=0.5", "trainer.init.optimizer.SGD.momentum=0.9"),
    ],
)
def test_a_key_that_acts_with_another_only_is_reported_without_it(tmp_path, settings, met):
    plain = f"trainer: {{init: {{model: {MODEL}}}, fit: {{train_dataloader: {{data_dir: a, batch_size: 4}}}}}}\n"
    (tmp_path / "c.yaml").write_text(plain)
    found = remarks(resolve(tmp_path / "c.yaml", Config, [settings]), Config)
    key = settings.partition("=")[0]
    assert [text for text in found if f": {key}: " in text] and len(found) == 1
    assert remarks(resolve(tmp_path / "c.yaml", Config, [settings, met]), Config) == []
    (tmp_path / "dumped.yaml").write_text(dump(load(tmp_path / "c.yaml", Config, [settings])))
    assert len(remarks(resolve(tmp_path / "dumped.yaml", Config), Config)) == 1
