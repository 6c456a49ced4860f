"""An epoch of a mixture is shared out by weight, exactly as numpy's arithmetic shares it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.data.mixture import share_epoch

PARTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=1, max_size=6)


@given(PARTS)
def test_shares_are_numpys_and_make_up_an_epoch(parts):
    sizes, weights = zip(*parts, strict=True)
    total, found = sum(sizes), share_epoch(sum(sizes), weights)
    share = np.array(weights) / sum(weights) * total
    counts = np.floor(share).astype(int)
    counts[np.argsort(counts - share, kind="stable")[: total - counts.sum()]] += 1
    assert found == counts.tolist() and sum(found) == total
    assert all(abs(n - s) < 1 + 1e-6 for n, s in zip(found, share, strict=True))
