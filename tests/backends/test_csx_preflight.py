"""Before a job goes to a cluster: what is missing, wrong or would be sent is said, in the default environment too."""

import importlib.metadata
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelzoo.backends.csx import preflight
from modelzoo.backends.select import select_device
from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend
from tests.support import config

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_site(monkeypatch):
    for name in (preflight.DEFAULTS, "CSCONFIG_PATH", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def address():
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


def job(tmp_path, batch=6, **backend):
    c = config(backend={"backend_type": "CSX", **backend})
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    loader = c.trainer.fit.train_dataloader.model_copy(update={"data_dir": (str(data),), "batch_size": batch})
    fit = c.trainer.fit.model_copy(update={"train_dataloader": loader})
    return c.model_copy(update={"trainer": c.trainer.model_copy(update={"fit": fit})})


def problems(c, monkeypatch, version=preflight.RELEASE) -> str:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(UserError) as e:
        preflight.check_job(c, c.trainer.init.backend)
    return str(e.value)


def test_no_cluster_is_one_reason_and_three_ways_out():
    with pytest.raises(UserError) as e:
        preflight.require_cluster(Backend())
    for words in ("no cluster is configured", "--mgmt_address HOST:PORT", "--validate_only", "`auto` or `CPU`"):
        assert words in str(e.value)


def test_an_address_that_does_not_answer_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "does not answer (connection refused)" in preflight.explain_missing_cluster(
        Backend(mgmt_address=f"localhost:{port}")
    )
    for odd in ("cluster", "h:²", f"{'x' * 64}:1", "localhost:99999999999999999999", f"h:{'9' * 5000}"):
        assert "HOST:PORT" in preflight.explain_missing_cluster(Backend(mgmt_address=odd))
    assert "\n" not in preflight.explain_missing_cluster(Backend(mgmt_address="a\nb:1"))


def test_an_address_that_answers_asks_for_the_library_next(address, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    assert "make env-csx" in preflight.explain_missing_cluster(Backend(mgmt_address=address))
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: object())
    assert preflight.explain_missing_cluster(Backend(mgmt_address=address)) is None


def test_a_cluster_file_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("CSCONFIG_PATH", str(tmp_path / "config_v2"))
    assert "config_v2" in preflight.explain_missing_cluster(Backend())
    (tmp_path / "config_v2").write_text("{}")
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: object())
    assert preflight.explain_missing_cluster(Backend()) is None


def test_auto_falls_back_aloud():
    init = config(backend={"backend_type": "CSX"}).trainer.init
    choice = select_device("auto", init)
    assert choice.backend.kind in ("GPU", "CPU")
    assert choice.fallback.startswith("CSX: no cluster is configured") and "running on" in choice.fallback


def test_everything_wrong_is_said_at_once(tmp_path, monkeypatch):
    said = problems(
        job(
            tmp_path,
            batch=5,
            num_csx=2,
            mount_dirs=[str(tmp_path / "none"), "/usr"],
            python_paths=["/no/such/path"],
            credentials_path="/no/cert.pem",
            job_labels=["team", "a b=c"],
        ),
        monkeypatch,
        version="2.9.0",
    )
    for words in (
        f"mount_dirs: {tmp_path / 'none'} does not exist",
        "python_paths: /no/such/path does not exist",
        "credentials_path: /no/cert.pem does not exist",
        "job_labels: 'team' is not key=value",
        "job_labels: 'a b=c' is not key=value",
        "cerebras_pytorch 2.9.0 is installed, this trainer needs 2.10.0",
        "batch_size: 5 does not share out to 2 systems",
        "lies in none of the mounted folders",
    ):
        assert words in said, words
    assert len(said.splitlines()) == 8


def test_versions_are_not_compared_where_that_is_asked(tmp_path, monkeypatch):
    c = job(tmp_path, disable_version_check=True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert preflight.check_job(c, c.trainer.init.backend)


def test_cbfloat16_wants_a_dynamic_scale(tmp_path, monkeypatch):
    c = job(tmp_path)
    precision = c.trainer.init.precision.model_copy(update={"enabled": True, "fp16_type": "cbfloat16"})
    init = c.trainer.init.model_copy(update={"precision": precision})
    c = c.model_copy(update={"trainer": c.trainer.model_copy(update={"init": init})})
    assert "loss_scaling_factor: cbfloat16" in problems(c, monkeypatch)


def test_data_inside_a_mount_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: preflight.RELEASE)
    c = job(tmp_path, mount_dirs=[str(tmp_path)])
    assert any("data is mounted" in line for line in preflight.check_job(c, c.trainer.init.backend))


def test_a_compile_job_needs_no_data_but_says_what_training_would(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: preflight.RELEASE)
    c = job(tmp_path, mount_dirs=["/usr"])
    (refused,) = problems(c, monkeypatch).splitlines()
    said = preflight.check_job(c, c.trainer.init.backend, compile_only=True)
    assert "none of the mounted folders" in refused and f"-m train would stop: {refused}" in said
    uneven = job(tmp_path, batch=5, num_csx=2)
    with pytest.raises(UserError, match="does not share out to 2 systems"):
        preflight.check_job(uneven, uneven.trainer.init.backend, compile_only=True)


def test_site_defaults_fill_in_and_add_folders(tmp_path, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text("mgmt_address: site:9000\nnum_csx: 4\nmount_dirs: [/site, /both]\npython_paths: /site/code\n")
    monkeypatch.setenv(preflight.DEFAULTS, str(site))
    merged = preflight.add_site_defaults(Backend(num_csx=2, mount_dirs=["/mine", "/both"]))
    assert (merged.mgmt_address, merged.num_csx) == ("site:9000", 2)
    assert merged.mount_dirs == ("/mine", "/both", "/site") and merged.python_paths == ("/site/code",)


def test_site_defaults_with_a_slip_name_file_and_key(tmp_path, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text("mgmt_adress: site:9000\n")
    monkeypatch.setenv(preflight.DEFAULTS, str(site))
    with pytest.raises(UserError, match=r"site\.yaml.*mgmt_adress"):
        preflight.add_site_defaults(Backend())


def test_what_a_run_sends_is_said_and_a_compile_sends_less(tmp_path):
    c = job(tmp_path, mgmt_address="host:1", job_labels=["team=bio"], mount_dirs=["/data"])
    run, compiling = (preflight.describe_transfer(c, c.trainer.init.backend, compile_only=x) for x in (False, True))
    for words in ("host:1", "team=bio", "pip freeze", "pip config list", "all weights, masks", "/data", str(REPO)):
        assert words in run
    assert "CIRH" in compiling and "pip freeze" not in compiling and "all weights" not in compiling


@pytest.mark.parametrize("flags", [["-m", "train"], ["--compile_only"], ["-m", "eval"]])
def test_an_explicit_job_without_a_cluster_stops_before_torch_is_imported(flags):
    program = (
        "import sys; from modelzoo.cli import main; rc = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(rc)"
    )
    command = [sys.executable, "-c", program, "CSX", "-p", str(REPO / "configs/mediswift/xl_s75.yaml"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2
    assert done.stderr.startswith("error: CSX: ") and "Traceback" not in done.stderr
