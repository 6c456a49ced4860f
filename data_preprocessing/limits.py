"""The most that a size may be: above it a number is a slip of the finger, and would fill the memory first."""

MSL = 2**20
VOCABULARY = 2**24
SHARD_TOKENS = 2**28  # a shard is held in memory until it is full
WORKERS = 1024
BUCKETS = 4096
TRANSFERS = 16  # NLM's FTP site asks for few
CONNECTIONS = 256  # to PMC's cloud service
REQUESTS = 100_000  # per second
RETRIES = 100
MEGABYTES = 100_000
CHARACTERS = 10**9
DOCUMENTS, FILES = 10_000_000, 10_000  # of a made-up corpus
