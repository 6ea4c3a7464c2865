"""A guardian without processes and without peers: what it makes of what it sees."""

from __future__ import annotations

import os
import socket
from typing import Any

from genlock.guardian.child import Watched
from genlock.guardian.guardian import Guardian
from genlock.guardian.settings import GuardianSettings
from genlock.guardian.status_page import SIZE, Page


class Gone:
    """A rank's process that has ended, and of which its guardian has not heard."""

    def __init__(self, status: int) -> None:
        self.status: int | None = status
        self.how = ""

    def reap(self) -> bool:
        return True

    def send(self, number: int) -> None:
        pass


class Living(Gone):
    """A rank's process that is there."""

    def __init__(self) -> None:
        self.status, self.how = None, ""
        self.pid, self.stopped = os.getpid(), False

    def reap(self) -> bool:
        return False

    def dying(self) -> int:
        return 0


class Wires:
    """Links to nobody."""

    def send_all(self, *_: object, **__: object) -> None:
        pass

    send = send_all


def watching(rank: int, status: int) -> tuple[Any, socket.socket]:
    """A guardian of one of two ranks, whose process has ended; and by what signals come to it."""
    settings = GuardianSettings(["--", "x"], {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    guardian: Any = Guardian(settings, {})
    guardian.child, guardian.memory, guardian.page = Gone(status), bytearray(SIZE), Page()
    guardian.links, guardian.met = Wires(), {1 - rank}
    guardian.hub = guardian.links if rank == 0 else None
    guardian._gather = lambda found, then: None
    guardian.launcher = guardian.supervisor = Watched(0)
    guardian._wake = socket.socketpair()
    guardian._wake[0].setblocking(False)
    return guardian, guardian._wake[1]
