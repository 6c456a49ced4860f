"""Whether a batch can be shared out among processes, and how their gradients are summed. No torch: `plan` asks too."""

from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend

BATCH_SIZE = "trainer.fit.train_dataloader.batch_size"


def check_shares(config: Backend) -> None:
    """Refuse exact sums of shares.

    Raises:
        UserError: the config asks for them.
    """
    if config.reduction == "exact":
        raise UserError(
            "trainer.init.backend.reduction: exact sums are for parallel: replicate; the library sums shares "
            "(reduction: fast)"
        )


def check_rows(batch_size: int, ranks: int, key: str = BATCH_SIZE) -> None:
    """Refuse a batch that does not give each of `ranks` processes as many rows.

    Args:
        key: of the config, where the batch's size is.

    Raises:
        UserError: names the numbers of processes that do.
    """
    if batch_size % ranks:
        near = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise UserError(
            f"{key} {batch_size} is not divisible by {ranks} processes; take one of "
            f"{', '.join(map(str, near[:12]))} processes"
        )


def sums_exactly(asked: str | None, kind: str, ranks: int) -> bool:
    """Whether sums are exact: as the config asks, else for several CPU processes."""
    return asked == "exact" if asked is not None else ranks > 1 and kind == "CPU"


def count_slices(batch_size: int, ranks: int, slices: int) -> int:
    """The slices of an exact sum: `slices`, or the largest smaller power of two that divides the batch.

    Raises:
        UserError: `ranks` processes cannot have as many slices each.
    """
    while batch_size % slices:
        slices //= 2
    if ranks & (ranks - 1) or slices < ranks:
        raise UserError(
            f"trainer.init.backend.reduction: exact sums of a batch of {batch_size} go over 1, 2, 4, ... {slices} "
            f"processes, not {ranks}; take one of these, another batch_size, or reduction: fast"
        )
    return slices
