"""Whether schedules and the run's length agree: what the run does not reach is reported. No torch.

Reported, not refused: the same config is tried with `--max_steps 20` before it runs in full, and then every schedule is
cut short on purpose. Only what no length of the run could satisfy is refused (`sparsity.schedules.check_schedule`).
"""

from pydantic import ValidationError

from modelzoo.config.loading.yaml12 import Document, Mark
from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Init
from modelzoo.config.values import shares
from modelzoo.data import manifest
from modelzoo.optim.lr import DEFAULT_LR, declines, length, rate_at
from modelzoo.sparsity.schedules import held, last_update, next_update, target

HIGH = 0.1  # a rate that no Adam trains with
NEAR = 0.01  # a density, or a length, that is off by less than this share is as good as the one that was written


def count_epoch(doc: Document) -> None:
    """Write down `steps_per_epoch`, by the data's manifest, in a config whose shares of a run hang on its epochs."""
    trainer = doc.data.get("trainer")
    if not isinstance(trainer, dict) or shares.find(trainer) is None or shares.length_of(trainer) is not None:
        return
    init, fit = trainer.get("init"), trainer.get("fit")
    loop = init.get("loop") if isinstance(init, dict) else None
    try:
        loader = DataLoader.model_validate(fit.get("train_dataloader") if isinstance(fit, dict) else None)
    except ValidationError:
        return  # the validation of the whole config reports what is wrong with it
    examples = loader.num_samples or manifest.count_examples(loader)
    if isinstance(loop, dict) and loop.get("num_epochs") and examples and examples >= loader.batch_size:
        loop["steps_per_epoch"] = examples // loader.batch_size
        doc.marks["trainer", "init", "loop", "steps_per_epoch"] = Mark(
            f"{manifest.list_folders(loader)[0]}: its manifest"
        )


def note_lengths(init: Init, steps: int) -> list[str]:
    """What a run of `steps` steps will not do although its config says so; one line each."""
    found = [note for note in (_default_rate(init), _rate(init, steps), _high_rate(init, steps)) if note]
    for i, group in enumerate(init.sparsity):
        if group.algorithm != "static":
            where = f"sparsity ({group.algorithm}{f', group {i}' if len(init.sparsity) > 1 else ''}): "
            found += [where + text for text in _masks(group, steps, init.base_frozen)]
    return found


def _default_rate(init: Init) -> str | None:
    """Whether nothing names a learning rate."""
    if init.schedulers or init.optimizer is None or init.optimizer.value.lr is not None:
        return None
    return f"learning rate: neither optimizer.lr nor schedulers give one; it is {DEFAULT_LR:g} throughout"


def _rate(init: Init, steps: int) -> str | None:
    """Whether the learning-rate schedule was written for another length than the run's."""
    if not init.schedulers or (whole := length(init.schedulers[0].value)) is None:
        return None
    close = max(1, round(NEAR * steps))
    text = f"learning rate: its schedule is {whole:,} steps long, the run {steps:,}"
    last, end = rate_at(init, steps - 1), rate_at(init, whole)
    if whole > steps + close:
        return f"{text}: the rate is {last:.3g} at the last step, and never gets to {end:.3g}"
    if whole < steps - close and declines(init.schedulers[0].value):
        then = "and stays so" if last == end else f"and goes on to {last:.3g} at the last step"
        return f"{text}: the rate is {end:.3g} at step {whole:,} {then}"
    return None


def _high_rate(init: Init, steps: int) -> str | None:
    """Whether Adam's rate gets far above any that trains: it moves each weight by about the rate in each step."""
    if init.optimizer is None or init.optimizer.name not in ("Adam", "AdamW"):
        return None
    highest = max(rate_at(init, step * (steps - 1) // 100) for step in range(101))
    if highest <= HIGH:
        return None
    return (
        f"learning rate: {highest:.3g} at its highest; Adam moves each weight by about the rate in each step, and "
        f"weights begin at about {init.model.initializer_range:g}; 1e-4 to 5e-3 is usual"
    )


def _masks(group: SparsityGroup, steps: int, frozen: bool) -> list[str]:
    if frozen:
        return ["masks never change in this run: the model is frozen"]
    first = next_update(group.update, 0)
    if first is not None and first > steps:
        return [f"masks never change in this run: the first update is after step {first:,}, of {steps:,} steps"]
    return [*_missed(group, steps), *_turns(group, steps)]


def _missed(group: SparsityGroup, steps: int) -> list[str]:
    """Whether the masks end elsewhere than where the schedule leads."""
    goal, end = target(group.sparsity), held(group, steps)
    if goal is None or abs(end - goal) <= NEAR * (1 - goal):
        return []
    last = last_update(group.update, steps)
    later = next_update(group.update, last)
    why = f"of {steps:,} steps" if later is not None else "after which masks change no more (`update`)"
    return [f"masks end at sparsity {end:.4g} and not at {goal:.4g}: their last update is after step {last:,}, {why}"]


def _turns(group: SparsityGroup, steps: int) -> list[str]:
    """Cosines that turn back before the last update."""
    last = last_update(group.update, steps)
    return [
        f"{key} is at its minimum at step {s.half_period:g} (half_period) and goes back until the last update, {last:,}"
        for key, s in (("sparsity", group.sparsity), ("drop_fraction", group.drop_fraction))
        if isinstance(s, c.Cosine) and s.half_period < (1 - NEAR) * last
    ]
