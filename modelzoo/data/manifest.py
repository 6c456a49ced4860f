"""The data folders that a config reads, and the examples and lengths that their manifests record. No torch.

Of shards without a manifest (Model Zoo writes none) the shapes are read, of a few.
"""

from modelzoo.config.errors import UserError
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data import files
from modelzoo.data.files import SOME, find_shards, list_recorded
from modelzoo.data.folder import open_shard, read_manifest


def list_folders(loader: DataLoader) -> list[str]:
    """The data folders of one dataloader section."""
    return (
        [d for part in loader.mixture or () for d in part.data_dir] if loader.mixture else list(loader.data_dir or ())
    )


def list_loaders(config: Config) -> list[tuple[str, DataLoader]]:
    """All dataloader sections of a config, each with what it is for: train, or val."""
    t = config.trainer
    found = [("train", t.fit.train_dataloader)] if t.fit is not None else []
    vals = [*(t.fit.val_dataloader if t.fit else ()), *(t.validate_all.val_dataloaders if t.validate_all else ())]
    vals += [t.validate_.val_dataloader] if t.validate_ else []
    return found + [("val", loader) for loader in vals]


def list_val_loaders(config: Config) -> list[DataLoader]:
    """The validation sets, wherever the config names them."""
    trainer = config.trainer
    if trainer.validate_all is not None:
        return list(trainer.validate_all.val_dataloaders)
    if trainer.validate_ is not None:
        return [trainer.validate_.val_dataloader]
    return list(trainer.fit.val_dataloader) if trainer.fit is not None else []


def count_examples(loader: DataLoader) -> int | None:
    """Examples of an epoch as the manifests count them, or the shards that have none; None where that is not known."""
    counts = [_count_in(d, loader.max_sequence_length) for d in list_folders(loader)]
    known = [n for n in counts if isinstance(n, int)]
    return sum(known) if known and len(known) == len(counts) else None


def is_padded(loader: DataLoader, msl: int) -> bool:
    """Whether manifests record that over a hundredth of the places do not count: batches may be cut shorter."""
    known = [read_manifest(d) for d in list_folders(loader)]
    counted = [(m.get("loss_tokens"), m.get("n_examples")) for m in known]
    return any(isinstance(t, int) and isinstance(n, int) and t < 0.99 * n * msl for t, n in counted)


def find_context(config: Config) -> int:
    """Tokens of an example: the dataloader's max_sequence_length, else the data's, else the model's."""
    fit = config.trainer.fit
    if fit is not None:
        folders = list_folders(fit.train_dataloader)
        if asked := fit.train_dataloader.max_sequence_length:
            return asked
        if folders and (known := _find_length(folders[0])) is not None:
            return known
    return config.trainer.init.model.max_position_embeddings


def _count_in(path: str, msl: int | None) -> int | None:
    """Examples of a data folder, or of a single shard; None where that is not known, or takes opening many shards."""
    known = read_manifest(path).get("n_examples")
    if isinstance(known, int):
        return known
    try:
        found = list_recorded(find_shards([path]))
    except (UserError, OSError):
        return None  # whoever opens the data reports what is wrong with it
    counts = [r.n_examples for _, r in found]
    if None in counts and len(found) <= SOME:
        shapes = [_read_shape(name) for name, _ in found]
        counts = [None if shape is None else files.count_examples(shape, msl) for shape in shapes]
    return None if None in counts else sum(n for n in counts if n is not None)


def _find_length(path: str) -> int | None:
    """Tokens of an example in a data folder, or in a single shard; None where that is not known."""
    known = read_manifest(path).get("msl")
    if isinstance(known, int):
        return known
    try:
        shape = _read_shape(find_shards([path])[0])
    except (UserError, OSError):
        return None
    return shape[2] if shape is not None and len(shape) == 3 else None


def _read_shape(path: str) -> tuple[int, ...] | None:
    """The shape of a shard; None where it cannot be read."""
    try:
        file, data = open_shard(path, whole=False)
    except (UserError, OSError):
        return None
    with file:
        return data.shape


def require_vocabulary(folder: str, vocab_size: int) -> None:
    """Refuse data of a larger vocabulary than the model's, by the folder's manifest.

    Raises:
        UserError: names both sizes.
    """
    known = read_manifest(folder).get("vocab_size")
    if isinstance(known, int) and known > vocab_size:
        raise UserError(f"{folder}: tokens of a vocabulary of {known}, but model.vocab_size is {vocab_size}")


def count_positions(m: GPTConfig) -> int | None:
    """The longest sequence that the model has positions for; None: rotary, ALiBi and none have no table."""
    return m.max_position_embeddings if m.position_embedding_type in ("learned", "fixed") else None


def require_positions(path: str, length: int, positions: int | None) -> None:
    """Refuse sequences of `length` tokens in `path` that are longer than the model's table of positions.

    Raises:
        UserError: names both lengths.
    """
    if positions is not None and length > positions:
        raise UserError(
            f"{path}: sequences of {length} tokens, but model.max_position_embeddings is {positions}; raise it, or "
            f"pack with --msl {positions}"
        )
