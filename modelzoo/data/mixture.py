"""How a mixture of datasets shares out an epoch. No numpy: a plan counts it, too."""

import math
from collections.abc import Sequence


def share_epoch(total: int, weights: Sequence[float]) -> list[int]:
    """How many of an epoch's `total` examples are of each dataset, by weight.

    What rounding down leaves goes to those that it took most from, the first of equals.
    """
    whole = sum(weights)
    shares = [w / whole * total for w in weights]
    counts = [math.floor(share) for share in shares]
    for j in sorted(range(len(counts)), key=lambda j: counts[j] - shares[j])[: total - sum(counts)]:
        counts[j] += 1
    return counts
