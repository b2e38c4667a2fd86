"""Make a sweep's report again from its record and the store: python launch/report.py SWEEP [--outputs FOLDER]"""

import sys

from vlsafe.app import errors_in_one_line
from vlsafe.report.command import main

if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
