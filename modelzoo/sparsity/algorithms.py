"""The sparsity algorithms: which weights are live at the start, and which change places at an update step.

Static keeps its mask. GMP keeps the largest weights along a rising schedule. SET drops the smallest and grows at
random; RigL is SET with one thing changed: it grows where the dense gradient is largest. The others differ in one
thing each: SMET in which places it counts as free, MEST in what it drops, GraNet (a RigL) in that it prunes first, CHTs
in that topology and draws decide instead of magnitudes and chance, CHTss (a CHTs) in that it prunes first.

Where weights live in blocks, all of this happens to blocks: a block's "weight" is the sum of its weights' magnitudes,
its "gradient" that of their gradients' (kernels/blocks/tiling.py), and k counts blocks.
"""

import torch
from torch import Tensor

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity import masks, order, schedules, topology
from modelzoo.sparsity.select import live_count


class Static:
    """A mask fixed at the start (arXiv 2303.10464 pre-trains with `random`; MediSwift does too)."""

    changes = False  # whether masks ever change
    draws = False  # whether an update draws, by the seed
    needs_gradient = False  # whether an update wants the dense gradient
    needs_live_gradient = False  # whether it wants that of live weights alone, which every step makes

    def __init__(self, group: SparsityGroup, seed: int):
        self.group = group
        self.seed = seed if group.seed is None else group.seed

    @property
    def ages(self) -> bool:
        """Whether weights regrow during training and Adam corrects their bias by their own age."""
        return self.changes and self.group.compat is None

    @property
    def warmup(self) -> int:
        """Own steps over which Adam's updates of a regrown weight rise to their full size; 0: from the first on."""
        return (self.group.regrow_warmup or 0) if self.ages else 0

    def target(self, step: int) -> float:
        """The overall sparsity that the masks should have at `step`: the schedule's, as of the last update."""
        return schedules.held(self.group, step)

    def is_update(self, step: int) -> bool:
        """Whether masks change after optimizer step number `step` (counted from 1)."""
        return self.changes and schedules.is_update(self.group.update, step)

    def init_mask(self, name: str, weight: Tensor, k: int) -> Tensor:
        """The first mask of a parameter, bool of its shape, with k live weights (`from_zeros`: its non-zeros)."""
        method = self.group.init_method
        if method == "from_zeros":
            return weight != 0
        if method == "checkerboard":
            return masks.checkerboard(weight.shape, k, weight.device)
        scores = weight.abs() if method == "topk" else masks.random_scores(weight, self.seed, name, 0)
        return self.choose(scores, k)

    def first_order(self, weight: Tensor, block: tuple[int, int], k: int) -> Tensor | None:
        """The order of a weight's inputs in which its first blocks are, k of which will live; None: as they are.

        Args:
            weight: [out, in], or scores of that shape by which weights stay.
        """
        if self.group.permute_inputs is None:
            return None
        if self.group.init_method == "from_zeros":
            return order.derive_order(weight != 0, block).to(weight.device)
        if self.group.init_method != "topk":  # updates find one
            return torch.arange(weight.shape[1], device=weight.device)
        return self.find_order(weight, block, lambda scores: self.choose(scores, k))

    def find_order(self, scores: Tensor, block: tuple[int, int], choose: order.Choose) -> Tensor:
        """The order in which the blocks that `choose` takes hold most of `scores` [out, in]."""
        return order.find_order(order.score_columns(scores, block[0]), block[1], choose).to(scores.device)

    def next_order(self, weight: Tensor, mask: Tensor, before: Tensor, block: tuple[int, int], k: int) -> Tensor:
        """The order of the blocks of which an update keeps k: by the magnitudes of live weights.

        Args:
            weight: [out, in], zero where `mask` is False. before: the order of the blocks of `mask`.
        """
        choose = lambda scores: self.choose(scores, k)
        if bool(mask.all()):  # nothing was pruned in any order yet
            return self.find_order(weight, block, choose)
        sums = order.score_columns(weight, block[0])
        return order.improve_order(sums, block[1], choose, before).to(weight.device)

    def update_mask(self, name: str, weight: Tensor, mask: Tensor, grad: Tensor | None, step: int, k: int) -> Tensor:
        """The mask after update step `step`, with k live weights.

        Args:
            weight: float32 weights, exactly zero where `mask` is False.
            grad: the dense gradient of this step's batch if `needs_gradient`, that of live weights as the optimizer
                took it if `needs_live_gradient`, else None.
        """
        return mask

    def rows(self, scores: Tensor) -> Tensor:
        """`scores` as rows that compete among themselves: one, or one per balanced group, input set, or M of N:M."""
        g = self.group
        if g.nm:
            return scores.reshape(-1, g.nm[1])
        return masks.as_rows(scores, g.balance_in_groups, g.balance_out_groups or g.shared_inputs)

    def choose(self, scores: Tensor, k: int) -> Tensor:
        """The k best of `scores`, as many in each of `rows`."""
        rows = self.rows(scores)
        return masks.from_rows(masks.top_k(rows, k // rows.shape[0]), scores.shape, self.group.balance_in_groups)


class GMP(Static):
    """Gradual magnitude pruning (arXiv 1710.01878)."""

    changes = True

    def update_mask(self, name, weight, mask, grad, step, k):
        """Keep the k largest of the live weights."""
        return self.choose(torch.where(mask, weight.abs(), masks.DEAD), k)


class SRSTE(Static):
    """Sparse-refined straight-through training of N:M patterns (arXiv 2102.04010).

    All weights train: those that are off by the gradient that the live ones' places would have, and lambda_w times
    themselves. The N largest of every M are the model; the others are kept apart (`parameter.RefinedParameter`).
    """

    changes = True
    needs_gradient = True

    @property
    def ages(self):
        """None: a weight that comes on has trained all along."""
        return False

    @property
    def decay(self) -> float:
        """lambda_w."""
        return 2e-4 if self.group.lambda_w is None else self.group.lambda_w

    def update_mask(self, name, weight, mask, grad, step, k):
        """The N largest of every M."""
        return self.choose(weight.abs(), k)


class SET(Static):
    """Sparse evolutionary training (arXiv 1707.04780)."""

    changes = True
    draws = True
    drops = 0.3  # the share of live weights that is dropped, where the config names none

    def drop_fraction(self, step: int) -> float:
        """The share of live weights that is dropped at `step`."""
        if self.group.drop_fraction is None:
            return self.drops
        return schedules.value(self.group.drop_fraction, step, self.group.update)

    def drop_score(self, name: str, weight: Tensor, grad: Tensor | None, step: int) -> Tensor:
        """Scores of weight's shape by which live weights stay: their magnitudes."""
        return weight.abs()

    def grow_score(self, name: str, weight: Tensor, kept: Tensor, grad: Tensor | None, step: int) -> Tensor:
        """Scores of weight's shape by which dead weights are grown, next to those that are `kept`: random."""
        return masks.random_scores(weight, self.seed, name, step)

    def update_mask(self, name, weight, mask, grad, step, k):
        """Keep the live weights with the highest `drop_score`, grow the dead ones with the highest `grow_score`.

        As many in each row.
        """
        groups = self.rows(mask).shape[0]
        per_group = live_count(int(mask.sum()) // groups, self.drop_fraction(step))
        keep = min(per_group * groups, k)  # a rising sparsity drops more than drop_fraction asks
        kept = self.choose(torch.where(mask, self.drop_score(name, weight, grad, step), masks.DEAD), keep)
        # A weight dropped here may be grown again at once; then it never left, and keeps its value and its moments.
        score = torch.where(kept, masks.DEAD, self.grow_score(name, weight, kept, grad, step))
        return kept | self.choose(score, k - keep)


class RigL(SET):
    """Rigging the lottery (arXiv 1911.11134)."""

    draws = False
    needs_gradient = True

    def grow_score(self, name, weight, kept, grad, step):
        """The dense gradient's magnitudes. What is not finite (an overflow of a dead weight) is below them all."""
        assert grad is not None  # needs_gradient
        return torch.where(grad.isfinite(), grad.abs(), -1.0)


class SMET(SET):
    """Sparse memory-efficient training (arXiv 2606.00888): SET by its recipe, which the config section fills in."""

    drops = 0.2

    def grow_score(self, name, weight, kept, grad, step):
        """Random; a weight that was dropped just now comes back only where there are no others."""
        return super().grow_score(name, weight, kept, grad, step) - (weight != 0).float()


class MEST(SET):
    """Memory-economic sparse training (arXiv 2110.14032): what is small but moving stays."""

    needs_live_gradient = True

    def drop_score(self, name, weight, grad, step):
        """|w| + gamma |gradient|."""
        assert grad is not None  # needs_live_gradient
        return weight.abs() + (0.01 if self.group.gamma is None else self.group.gamma) * grad.abs()


class PrunesFirst(SET):
    """Gradual pruning before each exchange: first down to the schedule's level, then `drop_fraction` of what is left.

    SET itself prunes within its exchange, so that a step that prunes much moves little.
    """

    def prune_score(self, weight: Tensor) -> Tensor:
        """Scores of weight's shape by which live weights outlast the pruning: their magnitudes."""
        return weight.abs()

    def update_mask(self, name, weight, mask, grad, step, k):
        """Prune to k live weights, then drop and grow as the algorithm does."""
        scores = torch.where(mask, self.prune_score(weight), masks.DEAD)
        left = self.choose(scores, min(k, int(mask.sum())))
        return super().update_mask(name, weight.masked_fill(~left, 0.0), left, grad, step, k)


class GraNet(PrunesFirst, RigL):
    """Gradual pruning with zero-cost neuroregeneration (arXiv 2106.10404)."""

    drops = 0.5


class CHTs(SET):
    """Cannistraci-Hebb training with the soft rule (arXiv 2501.19107): topology predicts where weights grow.

    No gradient is asked for. What stays and what grows is drawn, so that the topology does not settle too early.
    """

    def drop_score(self, name, weight, grad, step):
        """Draws with odds |w| ** temperature."""
        power = 1.0 if self.group.temperature is None else schedules.value(self.group.temperature, step)
        draw = masks.random_scores(weight, self.seed, f"{name}/drop", step)
        return masks.soften(weight.double().abs().log() * power, draw)

    def grow_score(self, name, weight, kept, grad, step):
        """Draws with odds of the predicted links' scores."""
        scores = topology.predict_links(kept, self.group.link_predictor or "ch2_l3n")
        return masks.soften(scores.log(), super().grow_score(name, weight, kept, grad, step))


class CHTss(PrunesFirst, CHTs):
    """CHTs with gradual pruning (sigmoid there), by relative importance."""

    def prune_score(self, weight):
        """A weight's share of its row's magnitudes plus that of its column's."""
        return topology.relative_importance(weight)


ALGORITHMS = {
    "static": Static,
    "gmp": GMP,
    "set": SET,
    "rigl": RigL,
    "smet": SMET,
    "granet": GraNet,
    "mest": MEST,
    "chts": CHTs,
    "chtss": CHTss,
    "sr_ste": SRSTE,
}
