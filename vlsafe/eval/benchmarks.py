"""Registers every benchmark, by importing the modules that hold them."""

from __future__ import annotations

import vlsafe.eval.sets.advbench
import vlsafe.eval.sets.figstep
import vlsafe.eval.sets.jsonl
import vlsafe.eval.sets.mme
import vlsafe.eval.sets.vlguard
import vlsafe.eval.sets.xstest
import vlsafe.microworld.benchmarks  # noqa: F401
