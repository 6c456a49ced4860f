"""How a mixture of datasets shares out an epoch. No numpy: a plan counts it, too."""

import math
from collections.abc import Sequence


def share_epoch(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many examples of each dataset an epoch has: as many in all as there are, by weight.

    What rounding down leaves goes to those that it took most from, the first of equals.
    """
    total, whole = sum(sizes), sum(weights)
    shares = [w / whole * total for w in weights]
    counts = [math.floor(share) for share in shares]
    for j in sorted(range(len(counts)), key=lambda j: counts[j] - shares[j])[: total - sum(counts)]:
        counts[j] += 1
    return counts
