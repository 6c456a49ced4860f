"""Whether batches, data and tokenizer are what was meant: what a run will do all the same is reported. No torch."""

import os
from collections import Counter

from modelzoo import host
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.mixture import share_epoch
from modelzoo.data.tokenizer_files import find_vocabulary
from modelzoo.training.runs.length import total_steps


def note_batches(config: Config) -> list[str]:
    """What a run does with its batches that its config hardly means; one line each."""
    fit, tokenizer = config.trainer.fit, config.trainer.init.tokenizer
    if fit is None:
        return []
    loader, accum = fit.train_dataloader, config.trainer.init.loop.grad_accum_steps
    found = [*_repeats(loader), *_heads(loader, total_steps(config)), *_repeated_folders(loader), *_shares(loader)]
    seen = {os.path.realpath(d) for d in manifest.list_folders(loader)}
    for val in dict.fromkeys(d for v in fit.val_dataloader for d in manifest.list_folders(v)):
        if os.path.realpath(val) in seen:
            found.append(f"{val} is trained on and validated on: its loss says nothing of other text")
    if (model := config.trainer.init.model).loss_scaling == "batch_size":
        found.append(
            "loss_scaling: batch_size: the training loss that is shown is a sum over tokens times "
            f"{model.loss_weight:g} over the batch's sequences; validation's is in nats per token"
        )
    if accum > 1 and isinstance(loader.micro_batch_size, int) and loader.micro_batch_size * accum != loader.batch_size:
        found.append(
            f"micro_batch_size {loader.micro_batch_size} has no effect next to loop.grad_accum_steps: batches of "
            f"{loader.batch_size} are cut into {accum} micro-batches of {loader.batch_size // accum}"
        )
    if tokenizer is not None and not os.path.exists(tokenizer):
        found.append(f"trainer.init.tokenizer {tokenizer} is not there: training needs none, texts and exports do")
    elif tokenizer is not None and os.path.isdir(tokenizer) and not find_vocabulary([tokenizer]):
        found.append(f"trainer.init.tokenizer {tokenizer} holds none: training needs none, texts and exports do")
    if loader.num_workers > (cores := host.available_cores()):
        found.append(f"num_workers {loader.num_workers}: there are {cores} cores here, which the model needs too")
    return found


def note_validation(config: Config) -> list[str]:
    """Validation sets that have fewer batches than are asked for; one line each."""
    asked, found = config.trainer.init.loop.eval_steps or 0, []
    for loader in manifest.list_val_loaders(config) if asked else ():
        batches = -(-(manifest.count_examples(loader) or 0) // loader.batch_size)
        if 0 < batches < asked:
            found.append(
                f"eval_steps {asked:,}: {', '.join(manifest.list_folders(loader))} has {batches:,} "
                f"batch{'es' * (batches > 1)} of {loader.batch_size}, so each validation takes the whole set"
            )
    return found


def _repeats(loader: DataLoader) -> list[str]:
    """Batches that hold an example more than once."""
    there = manifest.count_examples(loader)
    examples = loader.num_samples or there
    found = []
    if loader.num_samples and there and loader.num_samples > there:
        found.append(f"num_samples {loader.num_samples:,} repeats examples: the data has {there:,}")
    if examples is not None and loader.batch_size > examples:
        found.append(f"batches of {loader.batch_size:,} repeat examples: an epoch has {examples:,}")
    return found


def _heads(loader: DataLoader, steps: int | None) -> list[str]:
    """Of which examples the first in the files' order alone are taken: they may be of another kind than the rest."""
    there, asked = manifest.count_examples(loader), loader.num_samples
    if there and asked and asked < there and not loader.mixture:
        return [f"num_samples {asked:,}: of {there:,} examples the first ones in file order alone are ever taken"]
    if loader.shuffle:
        return []
    if loader.mixture and len(loader.mixture) > 1:
        return ["shuffle: false: an epoch takes the sets of the mixture one after another, in file order"]
    if there and steps and (taken := steps * loader.batch_size) < there:
        return [f"shuffle: false: of {there:,} examples the run takes the first {taken:,} in file order"]
    return []


def _shares(loader: DataLoader) -> list[str]:
    """Parts of a mixture of which an epoch has not each example once."""
    parts = loader.mixture or ()
    alone = [loader.model_copy(update={"mixture": None, "data_dir": p.data_dir}) for p in parts]
    sizes = [manifest.count_examples(part) for part in alone]
    known = [n for n in sizes if n]
    if len(known) < len(parts) or not parts:
        return []
    taken, found = share_epoch(loader.num_samples or sum(known), [p.weight for p in parts]), []
    for part, size, n in zip(parts, known, taken, strict=True):
        name = ", ".join(part.data_dir)
        if n < size:
            found.append(
                f"mixture: an epoch takes {n:,} of the {size:,} examples of {name}; the next one goes on from there"
            )
        elif n > size:
            again = "all of them" if n % size == 0 else "some of them"
            found.append(f"mixture: an epoch takes {n:,} of the {size:,} examples of {name}, {again} again")
    return found


def _repeated_folders(loader: DataLoader) -> list[str]:
    """Folders that are named more than once, whose examples come so many times an epoch."""
    parts = [part.data_dir for part in loader.mixture] if loader.mixture else [loader.data_dir or ()]
    counts = [(d, n) for part in parts for d, n in Counter(part).items() if n > 1]
    return [f"{d} is named {n} times in data_dir: its examples come {n} times an epoch" for d, n in counts]
