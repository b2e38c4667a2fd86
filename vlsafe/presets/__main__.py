"""python -m vlsafe.presets [--write docs/presets.md]: where each setting of each preset comes from, as a page"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vlsafe.app import errors_in_one_line
from vlsafe.files import write_atomic
from vlsafe.presets.page import render

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlsafe.presets", description="Where the settings of presets come from")
    parser.add_argument("--conf", type=Path, default=CONF, help="the folder of configs (default: that of this tree)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write this Markdown page in place of printing it")
    options = parser.parse_args(arguments)
    page = render(options.conf)
    if options.write is None:
        print(page, end="")
    else:
        write_atomic(options.write, page)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
