"""Which links a layer's topology predicts: its mask as a bipartite graph of outputs and inputs. No gradients.

An output u and an input v that are not linked are three links apart where there is a path u - a - z - v. CH2-L3n and
CH3-L3n (arXiv 2501.19107, eq. 3) score the pair by the z of both sides:

    sum over outputs z linked to v of m(u, z), plus sum over inputs z linked to u of m(v, z)
    m(u, z) = (i + 1) / (e + 1) for CH2, 1 / (e + 1) for CH3, if u and z have common neighbours, else 0
    i: the common neighbours of u and z; e: the links of z to other nodes than these and v
"""

import torch
from torch import Tensor

PARTS = 2.0**20  # terms are rounded to such parts of one: sums of whole numbers are exact in any order


def predict_links(mask: Tensor, predictor: str) -> Tensor:
    """The score of each place, float64 of the mask's shape; those of live places mean nothing.

    The same bits on any device and any number of threads.

    Args:
        mask: [out, in] bool.
        predictor: ch2_l3n or ch3_l3n.
    """
    links = mask.float()
    by_outputs = _weigh_neighbours(links, predictor) @ links.double()
    by_inputs = _weigh_neighbours(links.t(), predictor) @ links.t().double()
    return (by_outputs + by_inputs.t()) / PARTS


def _weigh_neighbours(links: Tensor, predictor: str) -> Tensor:
    """m(u, z) of all pairs of one side, [nodes, nodes] float64, in whole numbers of parts."""
    common = (links @ links.t()).double()  # counts below 2^24: exact in float32
    outside = (links.sum(1).double() - common).clamp(min=1.0)  # e + 1: less the link to v, plus one
    inside = common + 1.0 if predictor == "ch2_l3n" else torch.ones_like(common)
    return torch.where(common > 0, (inside / outside * PARTS).round(), 0.0)


def relative_importance(weight: Tensor) -> Tensor:
    """|w| over the sum of its row's, plus |w| over the sum of its column's (arXiv 2501.19107, eq. 1)."""
    size = weight.double().abs()
    return sum((size / size.sum(side, keepdim=True).clamp(min=1e-30) for side in (0, 1)), torch.zeros_like(size))
