"""Random numbers keyed by what they are for: a draw depends on no other draw, on no order, device or process."""

import hashlib

import torch


def make_seed(*key: int | str, bits: int = 63) -> int:
    """The first `bits` of the SHA-256 of a key such as (seed, parameter name, step), as an integer."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


def make_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of `make_seed(*key)`."""
    return torch.Generator().manual_seed(make_seed(*key))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed what torch draws on the CPU and on `device`, dropout among it."""
    if device.type == "cpu":  # torch.manual_seed writes down its callers each time, for a CUDA that has not begun
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
