"""Jobs against the stand-in: `--compile_only` end to end, `-m train` until it asks for systems, and refusals."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import NOT_RUN, Cluster
from test_lowering import TINY

from tests.support import examples, write_shard

REPO = Path(__file__).resolve().parents[2]
CALLS = [
    "GetServerConfig", "IsMessageBrokerAvailable", "GetServerVersions", "Get", "InitCompileJob",
    "PollIngressV2", "GetJobEvents", "GetJobMeta", "UnaryStart", "UnaryCompile",
]  # fmt: skip
REFUSALS = {  # fault: what the message must say
    "version": ["runs another release", "2.4.0 but client has 2.10.0", "--disable_version_check"],
    "capacity": ["cannot place the job", "0 of 2 are healthy", "--num_csx"],
    "mount": ["refuses the job", "/data/pubmed is not a cluster volume", "mount_dirs"],
    "drop": ["the connection was lost", "csctl cancel job"],
    "heartbeat": ["ended the job", "no heartbeat of the client", "keep it running"],
}


class Job:
    """`run.py CSX` with `how` (flags) against a stand-in, in a process of its own."""

    def __init__(self, fault: str | None, folder: Path, *how: str):
        self.cluster = Cluster(fault)
        self.cluster.__enter__()
        config, self.data = folder / "tiny.yaml", folder / "data"
        write_shard(self.data / "a.h5", examples(16, msl=32, vocab=96))
        config.write_text(TINY.replace("/nowhere", str(self.data)))
        self.folder, command = folder / "run", [sys.executable, str(REPO / "run.py"), "CSX", "-p", str(config)]
        command += [*(how or ["--compile_only"]), "--mgmt_address", self.cluster.address, "-o", str(self.folder)]
        command += ["--job_labels", "team=bio", "--num_csx", "2", "--job_priority", "p3"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )  # fmt: skip

    def finish(self) -> "Job":
        self.out, self.err = self.process.communicate(timeout=400)
        self.cluster.__exit__()
        return self


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict[str | None, Job]:
    # The client tries a lost connection again for two minutes: that one starts first and waits beside the others.
    waiting = Job("drop", tmp_path_factory.mktemp("drop"))
    folder = tmp_path_factory.mktemp("train")
    training = Job(None, folder, "-m", "train", "--mount_dirs", str(folder / "data"))
    done = {}
    for fault in (None, *(f for f in REFUSALS if f != "drop")):
        done[fault] = Job(fault, tmp_path_factory.mktemp(str(fault))).finish()
    return done | {"drop": waiting.finish(), "train": training.finish()}


def test_a_job_is_compiled_end_to_end(jobs):
    job = jobs[None]
    assert job.process.returncode == 0, job.err[-2000:]
    assert "compiled   by the cluster" in job.out
    # Clock syncs, heartbeats and messages come from threads of their own, now and then.
    calls = [c for c in job.cluster.calls if c not in ("UnaryClockSync", "HeartbeatV2", "UnaryMsgQueue")]
    assert calls[: len(CALLS)] == CALLS and "HeartbeatV2" in job.cluster.calls
    assert {"FinalizeCompileJob", "UnaryDone"} <= set(job.cluster.calls)


def test_it_sends_the_program_and_no_weights(jobs):
    job = jobs[None]
    sent = job.cluster.requests["UnaryCompile"]
    (cirh,) = job.folder.glob("cerebras_logs/executors/000001/cirh.mlir")
    assert sent.cirh_content == cirh.read_text()
    assert (sent.batch_size, sent.num_csx) == (4, 2)
    assert sent.ByteSize() < len(sent.cirh_content) + 2000  # the text, and a few numbers and names
    started = job.cluster.requests["InitCompileJob"]
    assert started.debug_args.debug_mgr.labels["team"] == "bio"
    assert "P3" in started.debug_args_json


def test_what_goes_is_said_before_it_goes(jobs):
    for job in jobs.values():
        assert job.err.index("preflight") < job.err.index("sends      to localhost:") < job.err.index("device  ")


@pytest.mark.parametrize("fault", list(REFUSALS))
def test_a_refusal_is_one_clear_line_and_a_clean_exit(jobs, fault):
    job = jobs[fault]
    errors = [x for x in job.err.splitlines() if x.startswith("error: ")]
    assert job.process.returncode == 2, job.err[-2000:]
    assert "Traceback" not in job.err
    assert len(errors) == 1 and errors[0].startswith("error: CSX localhost:"), errors
    for words in REFUSALS[fault]:
        assert words in errors[0], errors[0]
    assert job.out == ""  # no claim of a result


def test_a_refused_job_is_taken_back(jobs):
    """Where the cluster still listens, a job that was given an id is cancelled."""
    for fault in ("capacity", "heartbeat"):
        assert "CancelJobV2" in jobs[fault].cluster.calls


def test_a_training_job_goes_as_far_as_asking_for_systems(jobs):
    """Image of the environment, compilation, the request for systems; execution would need losses, so it ends there."""
    job = jobs["train"]
    asked = ["InitImageBuildJob", "InitCompileJob", "UnaryCompile", "GetImageBuildJob", "InitExecuteJob"]
    assert [c for c in dict.fromkeys(job.cluster.calls) if c in asked] == asked
    wanted = job.cluster.requests["InitExecuteJob"]
    assert wanted.compile_artifact_dir == "/cached/standin"
    assert [m.path for m in wanted.mount_dirs] == [str(job.data)] and list(wanted.python_paths) == [str(REPO)]
    (error,) = [x for x in job.err.splitlines() if x.startswith("error: ")]
    assert job.process.returncode == 2 and "Traceback" not in job.err
    assert "cannot place the job" in error and NOT_RUN in error and "--num_csx" in error
    assert not list(job.folder.glob("checkpoints/*")) and "loss" not in (job.folder / "metrics.jsonl").read_text()


def test_the_image_of_the_environment_holds_no_package_that_no_index_has(jobs):
    """What is said to go (`pip freeze`) goes, but for this trainer, which a clone that was installed lists too."""
    sent = list(jobs["train"].cluster.requests["InitImageBuildJob"].frozen_dependencies)
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    listed = subprocess.run(freeze, capture_output=True, text=True, check=True, cwd=REPO).stdout.split()
    assert sorted(x for x in sent if x) == sorted(x for x in listed if "mediswift" not in x.lower())


def test_no_address_listens_after_all():
    """A job for an address where nothing listens ends at once, before the library is loaded."""
    with Cluster() as cluster:
        address = cluster.address
    begin = time.monotonic()
    command = [sys.executable, str(REPO / "run.py"), "CSX", "-p", str(REPO / "configs/mediswift/med_s75.yaml")]
    done = subprocess.run(
        [*command, "-m", "train", "--mgmt_address", address], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 2 and "does not answer" in done.stderr
    assert time.monotonic() - begin < 30
