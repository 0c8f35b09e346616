"""``python -m signalbus.cli``: the same as ``signalbus``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
