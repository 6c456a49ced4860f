"""The HDF5 contract between preprocessing and training: names, shapes, dtypes, side files. No imports.

A shard holds one dataset `data` of shape [n, rows, msl], int32, chunked (1, rows, msl), with the file attribute
`n_examples` = n: the layout that Cerebras Model Zoo writes and reads. A folder of shards is one split; next to
the shards are `data_params.json` (Model Zoo's side file) and `manifest.json` (ours: SHA-256 per shard, counts).
"""

FORMAT_VERSION = 1

DATASET = "data"
N_EXAMPLES = "n_examples"

# Row r of an example, by name. `attention_mask` is Model Zoo's name for what is really the loss mask: 1 = counts.
ROWS = ("input_ids", "attention_mask", "labels")
# Variable-sequence-length shards keep documents apart: attention_span[i] = tokens that follow i in its document,
# position_ids[i] = i's offset from its document's start.
VSL_ROWS = ROWS + ("attention_span", "position_ids")

DTYPE = "int32"
MAX_ID = 2**24 - 1  # of a token: many times the largest vocabularies; tables are made of so many rows
MAX_MSL = 2**20  # tokens of an example
SHARD_NAME = "output_chunk_{process}_{chunk}.h5"

DATA_PARAMS = "data_params.json"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
