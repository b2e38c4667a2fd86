"""Run one cell, or with commas a grid of them: python launch/train.py -m safety_tune=sft,dpo merge=ties"""

from pathlib import Path

from vlsafe.app import main

if __name__ == "__main__":
    main("train", Path(__file__).parent.parent / "conf")
