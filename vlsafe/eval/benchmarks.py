"""Registers every benchmark, by importing the modules that hold them."""

from __future__ import annotations

import vlsafe.microworld.benchmarks  # noqa: F401
