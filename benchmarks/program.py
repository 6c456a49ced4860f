"""End a benchmark that cannot run with one line and exit code 2."""

import sys
from collections.abc import Callable

from modelzoo.config.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Call `main`; what the user can change becomes a line on stderr."""
    try:
        code = main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        code = e.exit_code
    sys.exit(code)
