"""W&B's view of a sweep, or sending its records again: python launch/dashboard.py SWEEP [sync]"""

import sys

from vlsafe.app import errors_in_one_line
from vlsafe.tracking.dashboard import main

if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
