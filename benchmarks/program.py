"""End a benchmark as every command ends: one line, an exit code, no traceback."""

import sys
from collections.abc import Callable

from modelzoo import entry


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit (`modelzoo.entry.run_command`)."""
    sys.exit(entry.run_command(main, sys.argv[1:], "nothing was measured to the end"))
