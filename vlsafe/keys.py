"""Keys: a short hash of everything that a stage's result depends on, known before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 20  # hex digits: 80 bits


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; raises `ValueError` for NaN, infinities and anything that isn't JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:KEY_LENGTH]


def stage_key(kind: str, version: int, spec: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """`spec` holds settings and data fingerprints; `parents` maps the names that the stage uses to the parents' keys."""
    return digest({"stage": kind, "version": version, "spec": spec, "parents": dict(parents)})
