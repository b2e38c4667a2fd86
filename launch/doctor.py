"""Say what is missing here to run a command, and what mends it: python launch/doctor.py +experiment=paper_llama2"""

from pathlib import Path

from vlsafe.app import main

if __name__ == "__main__":
    main("doctor", Path(__file__).parent.parent / "conf")
