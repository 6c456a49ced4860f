"""`--engine ray` on a cluster of two nodes of this machine: the same bytes, and faults in one line."""

import os
import time
from pathlib import Path

import pytest

from data_preprocessing.config import Job
from data_preprocessing.jobs import engine
from data_preprocessing.jobs.plan import make_plan
from data_preprocessing.jobs.run import How, run_job
from modelzoo.config.errors import UserError

ray = pytest.importorskip("ray", reason="the ray extra is not installed (make test-ray)")
REPO = str(Path(__file__).resolve().parents[3])


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; a task runs in a process of its own on either."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", REPO)  # of the nodes' workers, which have nothing installed
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def name_node(seconds: float, number: int) -> str:
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


def refuse(number: int) -> None:
    raise UserError(f"file {number}: is damaged")


def die_once(marker: str) -> int:
    if not os.path.exists(marker):
        Path(marker).touch()
        os._exit(9)
    return 7


def die(number: int) -> None:
    os._exit(number)


def test_both_nodes_make_calls_and_each_answer_comes_once(cluster):
    calls = [(0.3, k) for k in range(8)]
    answers = list(engine.run(name_node, calls, 2, "ray"))
    assert sorted(call for call, _ in answers) == calls and len({node for _, node in answers}) == 2


def test_a_fault_of_a_call_is_the_line_that_it_raised(cluster):
    with pytest.raises(UserError, match=r"^file 3: is damaged$"):
        list(engine.run(refuse, [(3,)], 2, "ray"))


def test_a_call_whose_worker_died_is_made_again_and_one_that_always_dies_is_named(cluster, tmp_path):
    assert [answer for _, answer in engine.run(die_once, [(str(tmp_path / "once"),)], 2, "ray")] == [7]
    with pytest.raises(UserError, match="a Ray worker died") as error:
        list(engine.run(die, [(3,)], 2, "ray"))
    assert "\n" not in str(error.value)


def test_a_job_gives_the_same_bytes(cluster, tmp_path, corpus, tokenizer, hash_tree):
    trees = []
    for how in ({}, {"engine": "ray", "workers": 2, "memory": 0}):
        job = Job(
            source="pubmed", input=(str(corpus),), output=str(tmp_path / str(len(trees))), msl=64, val_fraction=0.2,
            tokenizer={"path": str(tokenizer)}, unit_megabytes=0.01, buckets=3, filters={"near_duplicates": 0.8},
        )  # fmt: skip
        run_job(make_plan(job), How(**how))
        trees.append(hash_tree(tmp_path / str(len(trees))))
    assert trees[0] == trees[1] and len(trees[0]) > 10
