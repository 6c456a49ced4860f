"""The bins of document lengths, as they are counted and as a report draws them."""

import math

# The least length of each half octave, up to 63 bits: 1, 2, 3, 4, 6, 8, 12, ... The smallest integers whose squares are
# at least the powers of two.
EDGES = sorted({math.isqrt(2**k - 1) + 1 for k in range(126)})
