"""Gives a rank its guardian from inside, where nobody has put it under `genlock guard`: under mp.spawn, Ray, an engine.

The ranks of a job tell each other by its store where their guardians meet, and by which secret. So it begins once the
job is joined, and ends when that is left. Left out: what a guardian does (`guardian`), and beats (`operation_beats`).
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ...errors import GenlockError, UsageError
from ...guardian import command
from ...guardian.child import ATTACH
from ...guardian.settings import DEADLINES, LIMITS, MEET, OBSERVE, TOKEN, TRACES
from ..recording.c10d_intercept import store_of
from .heartbeat import Beat

STARTS = DEADLINES["meet"] + 10.0
"""Seconds that guardians may take to start, and to meet."""
KEY = "genlock/guard"


def start(phase: str, given: Mapping[str, str], traces: str) -> Beat:
    """Start a guardian for this process, a rank of the default group; returns the page that it reads.

    `given` are variables for it, beside what the environment says; `traces` the folder of this rank's trace.
    All ranks must call it. Raises GenlockError where a rank does not, or no guardian can be started.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    first, here = _agree(store_of(None), rank, world)
    environ = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world if here else 1),
        "MASTER_ADDR": str(first["host"]),
        "MASTER_PORT": str(first["port"]),
        "TORCHELASTIC_RUN_ID": str(first["name"]),
        TOKEN: str(first["token"]),
        TRACES: traces,
    }
    environ |= given
    environ[LIMITS] = ",".join(filter(None, [os.environ.get(LIMITS), given.get(LIMITS)]))
    if not here:
        environ.setdefault(MEET, f"{first['host']}:{first['port']}")
    environ.pop("GENLOCK_LAUNCHER", None)
    return Beat.open_for(phase, {**environ, **_start(environ)})


def _agree(store: Any, rank: int, world: int) -> tuple[Mapping[str, Any], bool]:
    """Return what rank0 says of where guardians meet, and whether all ranks are on one host."""
    turn = (int(store.add(f"{KEY}/joined", 1)) - 1) // world  # a store may serve several jobs, one after the other
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    name = os.environ.get("TORCHELASTIC_RUN_ID", "") or f"job-{secrets.token_hex(4)}"
    token = os.environ.get(TOKEN) or secrets.token_hex(16)
    own = {"at": _host(), "host": socket.gethostname(), "port": port, "name": name, "token": token}
    keys = [f"{KEY}/{turn}/{each}" for each in range(world)]
    store.set(keys[rank], json.dumps(own))
    try:
        store.wait(keys, timedelta(seconds=DEADLINES["meet"]))
    except RuntimeError:  # whose kind depends on the store
        absent = [each for each, key in enumerate(keys) if not store.check([key])]
        who = ", ".join(f"rank{each}" for each in absent)
        raise UsageError(f"{who} asked for no guardian", where="genlock.guard", do="call it in every rank") from None
    said = [json.loads(store.get(key)) for key in keys]
    return said[0], len({each["at"] for each in said}) == 1


def _host() -> str:
    """Return what two processes have in common that can meet at an abstract socket."""
    parts = [socket.gethostname(), str(os.getuid())]
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        parts.append(os.readlink("/proc/self/ns/net"))
    return " ".join(parts)


def _start(environ: Mapping[str, str]) -> dict[str, str]:
    """Start the guardian of this process; returns the variables by which it is reached."""
    process = subprocess.Popen(
        [*command(), f"{ATTACH}={os.getpid()}"],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = b""
    while not said.endswith(b"\n\n") and select.select([process.stdout], [], [], STARTS)[0]:
        more = os.read(process.stdout.fileno(), 1 << 16)
        if not more:
            break
        said += more
    process.stdout.close()
    whole = said.endswith(b"\n\n")
    if not whole:
        process.kill()
    process.wait()  # the first of its processes, which hands over to the one that stays
    if not whole:
        raise GenlockError("this rank has no guardian", where="genlock.guard", do="see on stderr what that has said")
    return dict(line.split("=", 1) for line in said.decode().split())


def variables(deadlines: Mapping[str, float] | None, observe: bool) -> dict[str, str]:
    """Return the variables for guardians with these settings. Raises UsageError for seconds that are none."""
    found: dict[str, str] = {}
    for name, seconds in (deadlines or {}).items():
        if not 0 < seconds < 1e9 or "=" in name or "," in name:
            do = "give seconds by phase, such as {'steady': 30}"
            raise UsageError(f"deadline {name!r}: {seconds!r}", where="genlock.guard", do=do)
    if deadlines:
        found[LIMITS] = ",".join(f"{name}={seconds:g}" for name, seconds in deadlines.items())
    if observe:
        found[OBSERVE] = "1"
    return found
