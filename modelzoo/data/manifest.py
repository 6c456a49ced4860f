"""The data folders that a config reads, and the examples and lengths that their manifests record. No torch."""

from modelzoo.config.trainer import Config, DataLoader
from modelzoo.data.folder import read_manifest


def list_folders(loader: DataLoader) -> list[str]:
    """The data folders of one dataloader section."""
    return (
        [d for part in loader.mixture or () for d in part.data_dir] if loader.mixture else list(loader.data_dir or ())
    )


def count_examples(loader: DataLoader) -> int | None:
    """Examples of an epoch as the manifests count them; None where one does not."""
    counts = [read_manifest(d).get("n_examples") for d in list_folders(loader)]
    known = [n for n in counts if isinstance(n, int)]
    return sum(known) if known and len(known) == len(counts) else None


def find_context(config: Config) -> int:
    """Tokens of an example: the dataloader's max_sequence_length, else the data's, else the model's."""
    fit = config.trainer.fit
    if fit is not None:
        known = [read_manifest(d).get("msl") for d in list_folders(fit.train_dataloader)]
        if asked := fit.train_dataloader.max_sequence_length:
            return asked
        if known and isinstance(known[0], int):
            return known[0]
    return config.trainer.init.model.max_position_embeddings
