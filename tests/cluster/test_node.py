"""One node's share of a job: a stop signal reaches its processes, whenever it comes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# In torchrun's place: an agent whose process is there late, and listens later still.
AGENT = """
import subprocess, sys, time
time.sleep(1.0)
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""
LATE = """
import signal, sys, time
time.sleep(1.0)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
time.sleep(20)
"""
NODE = f"""
import sys
from vlsafe.cluster import node
node.torchrun = lambda arguments, rank: ["-c", {AGENT!r}, {LATE!r}]
print("here", flush=True)
sys.exit(node.main())
"""


def test_a_stop_signal_that_comes_before_its_processes_is_not_lost(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    time.sleep(0.4)
    run.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    assert run.wait(timeout=15) == 75
    assert time.monotonic() - began > 1.0  # of its process, which was told


BUSY = """
import sys
from vlsafe.cluster import node
node.PORT_SECONDS = 0.0
node.torchrun = lambda arguments, rank: ["-c", "print('torchrun')"]
sys.exit(node.main())
"""


def at_port(port: int, node_rank: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUSY, "--nnodes=2", "--master-addr=n1", f"--master-port={port}", "--", "module"]
    return subprocess.run(command, env={**os.environ, "SLURM_NODEID": node_rank}, capture_output=True, text=True, check=False)


def test_a_port_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = at_port(port, "0")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: hydra.launcher.port: {port} is in use on {socket.gethostname()}: set another")
        assert "torchrun" not in done.stdout
        assert at_port(port, "1").stdout == "torchrun\n"  # nobody is to meet there
    assert at_port(port, "0").stdout == "torchrun\n"
