"""Show how a sweep's stages stand, on Slurm or here, or cancel its jobs: python launch/status.py SWEEP [cancel]"""

import sys

from vlsafe.app import errors_in_one_line
from vlsafe.cluster.status import main

if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
