"""Loss scaling for float16: gradients are computed `scale` times larger so that small ones survive."""

from dataclasses import dataclass

from modelzoo.config.sections.device import Precision


@dataclass
class LossScale:
    """A fixed or dynamic scale. Dynamic: halved after an overflow, doubled after `patience` good steps.

    (Mixed Precision Training, arXiv 1710.03740; names and defaults as in Model Zoo's MixedPrecision.)
    """

    scale: float = 1.0
    dynamic: bool = False
    patience: int = 2000
    low: float = 2.0**-14
    high: float = 2.0**24
    good_steps: int = 0

    @classmethod
    def make(cls, precision: Precision, dtype: str) -> "LossScale":
        """The scale for the arithmetic that is used.

        bfloat16 and float32 need none: their range is float32's, so a dynamic scale stays 1 there. float16 in
        place of another format has a dynamic one, whatever was asked for that format.

        Args:
            dtype: float32, bfloat16, float16 or cbfloat16.
        """
        factor = precision.loss_scaling_factor
        if dtype in ("float32", "bfloat16"):
            return cls()
        if factor != "dynamic" and precision.fp16_type == dtype:
            return cls(scale=precision.initial_loss_scale or factor or 1.0)
        return cls(
            precision.initial_loss_scale or 2.0**16,
            True,
            precision.steps_per_increase,
            precision.min_loss_scale or cls.low,
            precision.max_loss_scale or cls.high,
        )

    def update(self, finite: bool) -> None:
        """Take note of a step. Call once a step, after the gradients were checked."""
        if not self.dynamic:
            return
        if not finite:
            self.scale, self.good_steps = max(self.scale / 2, self.low), 0
            return
        self.good_steps += 1
        if self.good_steps >= self.patience:
            self.scale, self.good_steps = min(self.scale * 2, self.high), 0

    @property
    def can_fall(self) -> bool:
        """Whether an overflow can still be avoided by a smaller scale."""
        return self.dynamic and self.scale > self.low
