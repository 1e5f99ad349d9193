"""``cdrd``, and ``python -m cdrd``."""

import sys

from cdrd.cli import main

if __name__ == "__main__":
    sys.exit(main())
