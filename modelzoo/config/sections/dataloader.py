"""Which shards are read, in which batches."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelzoo.config.sections.base import (
    Bool,
    Many,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Str,
    Width,
    Workers,
    listed,
)

Folders = Annotated[tuple[Str, ...], Field(min_length=1)]


class Dataset(Section):
    """One part of a mixture."""

    data_dir: Annotated[Folders, BeforeValidator(listed)]
    weight: PositiveFloat  # share of the batches, relative to the others


class DataLoader(Section):
    """HDF5 shards as Model Zoo's GptHDF5MapDataProcessor describes them. `batch_size` is the global batch."""

    # no effect: both names read the same shards in the same order
    data_processor: Literal["GptHDF5MapDataProcessor", "GptHDF5DataProcessor"] = "GptHDF5MapDataProcessor"
    data_dir: Annotated[Folders | None, BeforeValidator(listed)] = None  # folders of shards
    mixture: Annotated[tuple[Dataset, ...], Field(min_length=1)] | None = None  # or several sets, by weight
    batch_size: Width  # sequences of a step, over all micro-batches and devices
    micro_batch_size: Width | Literal["auto"] | None = None  # sequences at a time; must divide batch_size
    shuffle: Bool = False  # over all shards, anew each epoch
    shuffle_seed: NonNegativeInt | None = 0
    max_sequence_length: Width | None = None  # must be the data's
    num_samples: PositiveInt | None = None  # examples of an epoch: the first in file order; of a mixture, by weight
    drop_last: Bool | None = None  # no effect: what an epoch leaves over opens the next batch
    num_workers: Workers = 0  # reading processes; 0 reads in the training process
    prefetch_factor: Many | None = 10  # batches that each worker keeps ready
    persistent_workers: Bool = True
    use_worker_cache: Bool = False  # no effect
    use_vsl: Bool = False  # shards of five rows: documents do not see each other
    sort_files: Literal[True] = True
    pad_last: Literal[False] = False

    @model_validator(mode="after")
    def _one_source(self):
        if (self.data_dir is None) == (self.mixture is None):
            raise ValueError("give either data_dir or mixture")
        return self
