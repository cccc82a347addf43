"""``python -m bwds`` is the command ``bwds``."""

import sys

from bwds.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
