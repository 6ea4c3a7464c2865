"""Stacks that a rank writes when its guardian asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from genlock.guardian.status_page import SIZE, SPARED, STACKS, VARIABLE


def test_stacks_asked_for_at_the_very_end_kill_nobody(tmp_path: Path) -> None:
    """As Python comes to its end it lets go of faulthandler, and the signal has the effect of before."""
    page, stacks = tmp_path / "page", tmp_path / "stacks"
    page.write_bytes(bytes(SIZE))
    stacks.touch()
    program = (
        "import faulthandler, os, signal; from genlock.impl.rank.heartbeat import Beat; Beat.open(); "
        "faulthandler.unregister(signal.SIGUSR2); os.kill(os.getpid(), signal.SIGUSR2)"
    )
    environment = {**os.environ, VARIABLE: str(page), STACKS: str(stacks)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60).returncode == 0


BUSY_THREADS = """
import threading
import time
from genlock.guardian.guardian import Guardian
from genlock.impl.rank.heartbeat import Beat
Beat.open()
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def busy():
    while True:
        fib(12), sum(n for n in range(50)), exec("[n for n in range(20)]", {})
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
print("here", flush=True)
busy()
"""


def test_a_rank_that_is_to_live_on_does_however_often_it_is_asked_for_its_stacks(tmp_path: Path) -> None:
    """faulthandler reads other threads' frames while these run: asked so, this program dies within some 300 times."""
    page, stacks = tmp_path / "page", tmp_path / "stacks"
    page.write_bytes(bytes(SIZE))
    stacks.touch()
    environment = {**os.environ, VARIABLE: str(page), STACKS: str(stacks), SPARED: "1"}
    with subprocess.Popen([sys.executable, "-c", BUSY_THREADS], env=environment, stdout=subprocess.PIPE) as rank:
        try:
            assert rank.stdout is not None
            assert rank.stdout.readline() == b"here\n"
            for _ in range(1500):
                rank.send_signal(signal.SIGUSR2)
                time.sleep(0.001)
            assert rank.poll() is None
        finally:
            rank.kill()
    told = stacks.read_text()
    assert "in busy" in told
    assert "Thread 0x" not in told, "other threads' stacks are told by name"
