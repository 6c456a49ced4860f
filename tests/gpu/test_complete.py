"""What the tests of this folder cover; needs no GPU."""

from modelzoo.sparsity.algorithms import ALGORITHMS
from tests.backends import test_stand_in
from tests.gpu.test_steps import CASES


def test_every_algorithm_takes_steps_there():
    assert {rule for rule, _ in CASES} == ALGORITHMS.keys()
    groups = [kind["sparsity"] for kind in test_stand_in.KINDS.values() if "sparsity" in kind]
    assert {group.get("algorithm", "static") for group in groups} == ALGORITHMS.keys()
