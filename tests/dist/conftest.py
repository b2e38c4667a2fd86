"""The tiny models and cases that these tests share."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parent.parent / "train"):
    sys.path.insert(0, str(_folder))
