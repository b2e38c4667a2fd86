"""Show what a command would run, without running it: python launch/plan.py safety_tune=sft,dpo merge=ties"""

from pathlib import Path

from vlsafe.app import main

if __name__ == "__main__":
    main("plan", Path(__file__).parent.parent / "conf")
