"""Notices SIGTERM and Ctrl-C, which ask for a drain (finish the chunk, SHUTDOWN, exit 0), and ends nothing.

The launcher signals every rank at once, so a worker holds the signal and waits for rank0's SHUTDOWN. The main
thread may be blocked inside a collective, where no Python handler runs: the signal number comes through a wake-up
descriptor to a thread. Left out: how long a rank may hold it (`deadline`), and acting on it (`roles`, `serve`).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Drain:
    """Holds SIGTERM and SIGINT from its making on. Make it in the main thread; `close` gives the signals back."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.signal = ""
        """Names the first signal that came."""
        self.since: float | None = None
        """Time at which it came, by the monotonic clock."""
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="genlock-drain", daemon=True)
        self._thread.start()
        # a handler must exist for the wake-up to be written; it may not touch the event, whose lock it could hold
        self._before = {number: signal.signal(number, _nothing) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Give the signals back to whoever had them, and end the thread."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            self._outbox.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._inbox.close()
        self._outbox.close()

    def deafen(self) -> None:
        """Ignore both signals from here to the end of the process, which has stopped and only has to go.

        An interpreter that shuts down gives handlers back a good while before the process is gone.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _listen(self) -> None:
        while data := self._inbox.recv(64):
            for number in data:
                if number in SIGNALS and not self.requested.is_set():
                    self.signal, self.since = signal.Signals(number).name, time.monotonic()
                    self.requested.set()


def _nothing(*_: object) -> None:
    pass
