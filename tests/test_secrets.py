"""Canaries: secrets of many forms on the command line and in the config, looked for in everything that leaves a run."""

import html
import json
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from modelzoo import entry
from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.interop.cards.provenance import describe_provenance
from modelzoo.study.reports.compare import compare_runs
from modelzoo.study.reports.report import report_runs
from tests.support import TINY, examples, write_manifest, write_shard
from tests.training.logs.test_trackers import MLflow, Wandb

CANARIES = [
    "--set=x.token=CANARY01", "--hf_token=CANARY02", "--api-key=CANARY03", "password: CANARY04",
    '{"secret": "CANARY05"}', "https://me:CANARY06@host/x", "postgresql://me:CANARY07@host/db", "http://CANARY08@host",
    "s3://CANARY09:x@bucket", "Authorization: Bearer CANARY10CANARY10", "https://host/?access_token=CANARY11&x=1",
    "AWS_SECRET_ACCESS_KEY=CANARY12", "private_key=CANARY13", "passphrase='CANARY14 CANARY14'",
    "x={deep: {auth: CANARY15}}", "--wandb_api_key CANARY16", "https://host/x?sv=1&sig=CANARY17CANARY17",
    "MLFLOW_TRACKING_PASSWORD=CANARY18", "client_secret=CANARY19", "cookie: CANARY20", "hf_CANARY21" + "a" * 30,
    "ghp_CANARY22" + "b" * 30, "AKIACANARY23AAAAAAAA", "sk-CANARY24" + "d" * 30,
]  # fmt: skip
CLUSTER = {
    "mgmt_address": "canarycluster:9000", "credentials_path": "/canarycluster/x.pem",
    "mount_dirs": ["/canarycluster/m"], "python_paths": ["/canarycluster/p"], "job_labels": ["who=canarycluster"],
    "compile_dir": "canarycluster/c", "cluster_config": {"canarycluster": 1},
}  # fmt: skip
STAY = ("num_memory_tokens=3", "--eos_token", "max_tokens=5")


def assert_clean(text: str, where: str, cluster: bool = True) -> None:
    assert "CANARY" not in text, (where, [line for line in text.splitlines() if "CANARY" in line][:3])
    assert not cluster or "canarycluster" not in text, where


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs whose commands and configs hold every canary."""
    root = tmp_path_factory.mktemp("secrets")
    for split in ("train", "val"):
        write_shard(root / split / "a.h5", examples(12, msl=12))
        write_manifest(root / split, n_examples=12, msl=12)
    loader = {"batch_size": 4, "data_dir": str(root / "train")}
    for name, user in (("a", "CANARY25"), ("b", "CANARY26")):
        mlflow = {"tracking_uri": f"http://me:{user}@host", "experiment": name}
        init = {
            "model": TINY, "optimizer": {"AdamW": {"lr": 1e-3}}, "precision": {"enabled": False}, "backend": CLUSTER,
            "loop": {"max_steps": 2, "eval_frequency": 2}, "seed": {"a": 1, "b": 2}[name],
            "loggers": ["WandbLogger", {"MLflowLogger": mlflow}],
        }  # fmt: skip
        fit = {"train_dataloader": loader, "val_dataloader": {**loader, "data_dir": str(root / "val")}}
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"init": init, "fit": fit}}))
    return root


@pytest.fixture(scope="module")
def trained(runs):
    """Both runs trained with fake services; what those got."""
    wandb, mlflow, seen = Wandb(), MLflow(), []
    wandb.init = lambda **options: seen.append((options, list(sys.argv))) or wandb
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "wandb", wandb)
    patch.setitem(sys.modules, "mlflow", mlflow)
    for name in ("a", "b"):
        config, out = str(runs / f"{name}.yaml"), str(runs / name)
        from modelzoo.tasks import pretrain
        from modelzoo.training.build import Options

        words = ["CPU", "-p", config, *CANARIES, *STAY, "--mgmt_address", CLUSTER["mgmt_address"], "-o", out]
        patch.setattr(sys, "argv", ["run.py", *words])
        command = "run.py " + " ".join(words)  # as it is; every exit must hide by itself
        pretrain.train(load(config, Config), Options("CPU", out, command=command), evaluate=True)
    patch.undo()
    return seen, mlflow


def test_what_a_run_folder_stores_of_its_commands_holds_no_secret(runs, trained):
    for name in ("a", "b"):
        launches, config = (runs / name / "launches.jsonl").read_text(), (runs / name / "config.yaml").read_text()
        assert_clean(launches, "launches.jsonl", cluster=False)
        comment = "".join(line for line in config.splitlines() if line.startswith("#"))
        assert_clean(comment, "the comment of config.yaml", cluster=False)
        for text in (launches, comment):
            assert all(word in text for word in STAY)


def test_a_secret_that_the_run_needs_acts_and_is_its_owners_alone(runs, trained):
    assert trained[1].uris == ["http://me:CANARY25@host", "http://me:CANARY26@host"]
    path = runs / "a" / "config.yaml"
    assert load(str(path), Config).trainer.init.loggers[1].value.tracking_uri == "http://me:CANARY25@host"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_services_get_no_secret_and_no_cluster(trained):
    for options, arguments in trained[0]:
        assert_clean(json.dumps(options) + str(arguments), "wandb")
        assert options["config"]["model"]["hidden_size"] == TINY["hidden_size"] and "backend" not in options["config"]
        assert options["settings"] == {"console": "off"}


def test_the_card_holds_no_secret_and_no_cluster(runs, trained):
    card = "\n".join(describe_provenance(load(str(runs / "a.yaml"), Config), str(runs / "a"), print))
    assert_clean(card, "the model card")
    assert all(word in html.unescape(card) for word in STAY)


def test_reports_and_comparisons_hold_no_secret(runs, trained, capsys):
    folders = [str(runs / "a"), str(runs / "b")]
    compare_runs(folders, str(runs / "out" / "c.svg"))
    report_runs(folders, str(runs / "out" / "r.html"))
    printed = capsys.readouterr()
    assert "tracking_uri" not in printed.out or "***" in printed.out
    assert_clean(printed.out + printed.err, "compare", cluster=False)
    for path in Path(runs / "out").rglob("*"):
        if path.is_file():
            assert_clean(path.read_text(), str(path), cluster=False)


@pytest.mark.parametrize("canary", CANARIES)
def test_no_error_and_no_traceback_names_one(canary, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entry.host, "private_folder", lambda: str(tmp_path))
    for error in (ValueError(f"cannot use {canary}"), OSError(5, "failed", canary)):
        raising = lambda error=error: (_ for _ in ()).throw(error)
        assert entry.run_command(raising, ["run.py", canary], "") in (2, 70)
    main(["CPU", "-p", str(tmp_path / "gone.yaml"), "-m", "train", "--set", f"trainer.init.nothing={canary}"])
    main(["CPU", "-p", f"nowhere/{canary}"])
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err, "an error")
    for path in tmp_path.iterdir():
        assert_clean(path.read_text(), "a traceback")


def test_a_config_without_secrets_is_anyones_to_read(tmp_path):
    from modelzoo.files import write_guarded, write_text

    write_text(str(tmp_path / "a"), "eos_token: x\n")
    write_guarded(str(tmp_path / "b"), "eos_token: x\nnum_memory_tokens: 3\n")
    write_guarded(str(tmp_path / "c"), "token: x\n")
    modes = [stat.S_IMODE(os.stat(tmp_path / n).st_mode) for n in "abc"]
    assert modes[0] == modes[1] and modes[2] == 0o600
