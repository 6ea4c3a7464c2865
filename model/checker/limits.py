"""Ends a search early where a user set a limit: so many states, or so much time.

Left out: memory, which an engine asks for itself, and what was covered, which its report says.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Limit = Callable[[int], None]
"""Called with the states found; raises Ended where the search is to end."""


class Ended(Exception):
    """Ends the search here; its text says why."""


def limit(max_states: int | None, timeout: float | None) -> Limit | None:
    """Return what ends a search at so many states or after so many seconds from now; None where nothing does."""
    if max_states is None and timeout is None:
        return None
    until = None if timeout is None else time.monotonic() + timeout

    def asked(states: int) -> None:
        if max_states is not None and states >= max_states:
            raise Ended(f"ended at {states:,} states (--max-states {max_states})")
        if until is not None and time.monotonic() >= until:
            raise Ended(f"ended after {timeout:g} s (--timeout)")

    return asked
