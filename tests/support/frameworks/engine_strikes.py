"""Has a worker of vLLM do wrong, from inside; in a module that workers import, so that its lines have places."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

BAD, AT = 1, 5
"""Worker, and the step in which it strikes."""


def arm(worker: Any, way: str) -> None:
    """Have one worker strike in a step to come."""
    if worker.rank != BAD:
        return
    runner, steps = worker.model_runner, [0]
    run = runner.execute_model

    def execute_model(*given: Any, **named: Any) -> Any:
        steps[0] += 1
        if steps[0] == AT:
            print(f"STRIKE {time.time()}", flush=True)
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if way == "raise":
                raise ValueError("bad block")  # LINE raise
        return run(*given, **named)

    runner.execute_model = execute_model
