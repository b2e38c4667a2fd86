"""Look after the store: python launch/store.py ls | show KEY | verify | gc --yes | export KEY FOLDER"""

import sys

from vlsafe.app import errors_in_one_line
from vlsafe.store_commands import main

if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
