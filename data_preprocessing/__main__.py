"""`python -m data_preprocessing VERB ...`"""

import sys

from data_preprocessing.cli import main

if __name__ == "__main__":
    sys.exit(main())
