"""Ranks forked from a process that has torch loaded, so that each is there at once. They die with it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable

from genlock.impl.rank.parent_death import die_with_parent


def forked(ranks: Iterable[Callable[[], object]]) -> list[int]:
    """The exit status of each, once all have ended; 1 for one that raised, which is printed."""
    parent, children = os.getpid(), []
    for rank in ranks:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_with_parent(parent)
                rank()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
