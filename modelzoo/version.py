"""Which code this is: its version, and in a checkout what git calls the commit. Imports nothing of ours.

setup.py reads VERSION from here.
"""

import argparse
import functools
import os
import subprocess

VERSION = "0.1.0"


@functools.cache  # once a process: what a run writes first and last is the same, whatever is edited meanwhile
def describe() -> str:
    """`0.1.0` of an installed package; of a checkout `0.1.0 (git a597845-dirty)`, or that git does not describe it."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.exists(os.path.join(root, ".git")):  # the repository around an environment is not ours
        return VERSION
    return f"{VERSION} (git {_git(root) or 'does not describe it'})"


def _git(root: str) -> str | None:
    """`git describe` of the checkout at `root`; None where git is missing, refuses (a foreign folder) or hangs."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # a hook's would name its repository
    command = ["git", "-C", root, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command,
            env={**variables, "GIT_OPTIONAL_LOCKS": "0"},  # reads alone: the checkout may be another's, or read-only
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() or None


class ShowVersion(argparse.Action):
    """`--version`: runs git only when it is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_) -> None:
        print(f"mediswift-trainer {describe()}")
        parser.exit()


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Give a command line `--version`."""
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and the commit, and exit")
