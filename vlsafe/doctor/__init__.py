"""`launch/doctor.py`: what is missing here to run a command, each with what mends it. It needs no GPU and no network."""
