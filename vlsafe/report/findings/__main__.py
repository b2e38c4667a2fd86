"""python -m vlsafe.report.findings MAIN_SWEEP CONTROL_SWEEP [--outputs outputs] [--write docs/findings.md]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vlsafe.app import errors_in_one_line
from vlsafe.files import write_atomic
from vlsafe.report.findings import figures, page
from vlsafe.report.findings.study import judge, read
from vlsafe.report.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlsafe.report.findings", description="Judge the study's findings")
    parser.add_argument("main", metavar="MAIN_SWEEP", help="the sweep of the main world")
    parser.add_argument("control", metavar="CONTROL_SWEEP", help="the sweep of the world where adaptation can't conflict")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the sweeps are (default: outputs)")
    parser.add_argument("--store", type=Path, help="the store (default: OUTPUTS/store)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write this Markdown page, and figures/ beside it")
    options = parser.parse_args(arguments)
    store = options.store or options.outputs / "store"
    study = judge(read(options.main, options.outputs, store), read(options.control, options.outputs, store))
    console = Console(highlight=False)
    for claim in (*study.claims, *study.control_claims):
        console.print(f"{claim.verdict:14} {printable(claim.name)}: {printable(claim.reason)}", markup=False, soft_wrap=True)
    if options.write is not None:
        drawn = figures.draw(study, options.write.parent / "figures")
        write_atomic(options.write, page.render(study, drawn))
        console.print(f"\n{options.write}, and {len(drawn)} figures beside it", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
