"""The merge methods, one a file: every module in this folder is imported, and registers its method under the group `merge`."""

from __future__ import annotations

import importlib
import pkgutil

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
