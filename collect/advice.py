"""Tells what to switch on before the next run, for what could not be had of this one.

Left out: the whole of it, by version of torch (`genlock explain evidence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

NEXT_TIME = {
    "py-spy": "stacks: `pip install 'genlock[collect]'` brings py-spy",
    "ptrace": (
        "stacks: run `genlock collect` as the job's user or as root; in a container with CAP_SYS_PTRACE"
        " (docker run --cap-add SYS_PTRACE), elsewhere with /proc/sys/kernel/yama/ptrace_scope at 0"
    ),
    "faulthandler": (
        "stacks without py-spy: `faulthandler.register(signal.SIGUSR1)` in the program, its stderr in a file, and"
        " `genlock collect --stack-signal SIGUSR1`"
    ),
    "log": "logs: a file a rank (`torchrun --redirects 3 --log-dir logs`); or replay yours beside the archive",
    "ras": "NCCL: RAS is there from 2.24 on, unless NCCL_RAS_ENABLE=0",
    "rank": "ranks: name each process, `--pid PID=RANK`",
}
EITHER = {"faulthandler": "py-spy"}
"""Maps a piece of advice to the one that makes it needless."""


def flight_recorder(version: tuple[int, int]) -> str:
    """Return what makes Flight Recorder answer, in a version of torch; (0, 0) where that is not known."""
    if (0, 0) < version < (2, 2):
        return f"dumps: torch {version[0]}.{version[1]} has no Flight Recorder; `genlock record` does without it"
    size = "TORCH_NCCL_TRACE_BUFFER_SIZE=2000 " if (0, 0) < version < (2, 11) else ""
    pipe = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE=/tmp/fr_"
    if (0, 0) < version < (2, 3):
        return f"dumps: {size}TORCH_NCCL_DUMP_ON_TIMEOUT=1; in torch 2.2 none can be asked for before the time-out"
    return f"dumps: {size}{pipe} (NCCL); on any backend `genlock record` needs neither"


def next_time(keys: Iterable[str], version: tuple[int, int]) -> Iterator[str]:
    """Yield what would have helped, once each."""
    wanted = dict.fromkeys(keys)
    for key in wanted:
        if key == "flight_recorder":
            yield flight_recorder(version)
        elif EITHER.get(key) not in wanted or key not in EITHER:
            yield NEXT_TIME[key]
