"""``python -m tomosec`` is the command ``tomosec``."""

import sys

from tomosec.cli import main

if __name__ == "__main__":
    sys.exit(main())
