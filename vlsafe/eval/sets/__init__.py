"""Public benchmarks and a user's own, one file each: where it comes from, under which licence and gate, and how it is read.

A new one is a file here, its name in `vlsafe.eval.benchmarks`, its stand-in in `vlsafe.stand_in.benchmarks`, and a line in
docs/evaluation.md.
"""
