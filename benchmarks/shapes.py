"""What is trained: the shapes that all contestants of a benchmark share."""

import argparse

import torch

DTYPES = ["auto", "float32", "bfloat16", "float16"]


def positive(text: str) -> int:
    """A whole number above 0, for argparse (a peer's environment has no modelzoo)."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


def add_shapes(p: argparse.ArgumentParser) -> None:
    """The flags that set what is trained."""
    p.add_argument("--hidden", type=positive, default=384)
    p.add_argument("--layers", type=positive, default=6)
    p.add_argument("--heads", type=positive, default=6)
    p.add_argument("--length", type=positive, default=256)
    p.add_argument("--vocab", type=positive, default=16384)
    p.add_argument("--batch", type=positive, default=8)
    p.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: what a run asking for bfloat16 gets here")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def resolve_dtype(args) -> None:
    """Put the arithmetic of this machine in place of `--dtype auto`, for all contestants alike."""
    if args.dtype == "auto":
        from modelzoo.backends.local import Local  # not to be had in every peer's environment
        from modelzoo.config.sections.device import Backend, Precision

        device = torch.device(getattr(args, "device", "cpu"))
        args.dtype = Local(device, Backend(), Precision()).arithmetic.dtype


def shapes(args) -> list[str]:
    """Those flags again, for another process."""
    names = ("hidden", "layers", "heads", "length", "vocab", "batch", "dtype", "device")
    return [word for name in names for word in (f"--{name}", str(getattr(args, name)))]


def random_batch(args) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask [batch, length], int32."""
    ids = torch.randint(0, args.vocab, (args.batch, args.length + 1), dtype=torch.int32)
    ones = torch.ones(args.batch, args.length, dtype=torch.int32)
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous(), "attention_mask": ones}
