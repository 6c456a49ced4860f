#!/usr/bin/env python3
"""python run.py [CSX|GPU|CPU|auto] -p CONFIG -m MODE: see modelzoo/cli.py, or --help."""

import sys

from modelzoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
