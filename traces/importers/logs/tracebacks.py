"""Reads Python tracebacks behind any prefix: which process raised what, at which line of the program.

torch puts `[rank3]:` in front of a traceback that nobody caught (2.4 and later), so that such a one ended the process.
An exception that tells of another process's failure (of the process group, the store, a signal) is marked as such.

Left out: stacks of processes that did not raise (`stacks`).
"""

from __future__ import annotations

import re

import msgspec

from ...evidence import Frame, Place, Raised, Stack, Writer
from ..places import place_of
from .lines import Family, Line, Sink, short

BEGIN = "Traceback (most recent call last):"
MAX_FRAMES = 2000

_FRAME = re.compile(r'\s*File "(?P<file>[^"]{1,1000})", line (?P<line>\d{1,9})(?:, in (?P<function>.{1,200}))?')
_ERROR = re.compile(r"(?P<type>[A-Za-z_][\w.]{0,200})(?:: ?(?P<message>.*))?$")
_NAMED = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w{0,80}\.){0,8}[A-Za-z_]\w{0,80}(?:Error|Exception|Interrupt|Exit))(?:: ?(?P<message>.*))?$"
)
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_SPAWNED = re.compile(r"-- Process (\d{1,6}) terminated with the following error:")
_ENDS = re.compile(r"\b(?:Scheduler|TpModelWorker\w*|DataParallelController) hit an exception: ")
"""SGLang writes it before the traceback of a process that then ends, and all others with it."""
_NOT_TYPES = ("Traceback", "File", "During", "The")

_FOLLOWING_TYPES = re.compile(
    r"(?:^|\.)(?:DistBackendError|DistNetworkError|DistStoreError|DistError|DistQueueEmptyError|Rendezvous\w*"
    r"|ChildFailedError|SignalException|ProcessExitedException|ProcessRaisedException|EngineDeadError"
    r"|KeyboardInterrupt|SystemExit|ActorDiedError|RayActorError|WorkerCrashedError|CancelledError|BrokenPipeError"
    r"|ConnectionResetError|ConnectionRefusedError|ConnectionAbortedError|BrokenProcessPool|EOFError)$"
)
_FOLLOWING_TEXTS = re.compile(
    r"NCCL error|ncclRemoteError|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|gloo/|\[Gloo\]|Gloo connect"
    r"|[Cc]onnection closed by peer|[Cc]onnection reset by peer|[Ss]ocket [Tt]imeout|[Tt]imed out waiting"
    r"|Watchdog caught|watchdog thread terminated|Broken pipe|TCPStore|[Ww]ait timeout|Timeout waiting|monitoredBarrier"
    r"|Detected mismatch between collectives|client socket has timed out|RPC call to \w+ timed out|store->get"
    r"|Engine core (?:initialization )?(?:failed|proc)|timed out in blocking wait|Stop_waiting response is expected"
    r"|[Tt]ransport retry counter exceeded|Monitored Barrier|NCCL communicator was aborted|Aborted by"
)
"""Messages of a failed process group, store or link: whoever raises them was left by another."""

_WAITED_TYPES = re.compile(r"(?:^|\.)(?:RuntimeError|DistBackendError|DistNetworkError|DistStoreError)$")
"""Types by which a call to the process group tells of such a failure: whoever raises one of them was waiting in it."""


def follows(type_name: str, message: str) -> bool:
    """Tell whether such an exception tells of another process's failure."""
    return bool(_FOLLOWING_TYPES.search(type_name) or _FOLLOWING_TEXTS.search(message))


class _Traceback:
    """Holds the lines of one traceback, and of those that it is chained to."""

    def __init__(self, line: Line, writer: Writer, fatal: bool) -> None:
        self.first, self.writer, self.fatal = line, writer, fatal
        self.frames: list[tuple[str, int, str]] = []
        self.raised: Raised | None = None
        self.waited = False
        self.inside = True
        self.quiet = 0
        self.last = line
        self._chained = False

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the traceback, of its message, or of the one that is chained to it."""
        text = line.rest
        if BEGIN in text:
            if self.raised is not None and not self._chained:
                return False
            self._chained, self.inside, self.last = False, True, line
            self.frames = []
            return True
        if self.inside:
            return self._inside(text)
        if text.startswith(_CHAIN):
            self._chained = True
            return True
        self.quiet += 1  # a message may go on over some lines
        return self.quiet <= MAX_MESSAGE and not _begins_anew(text)

    def _inside(self, text: str) -> bool:
        frame = _FRAME.match(text)
        if frame is not None:
            if len(self.frames) < MAX_FRAMES:
                self.frames.append((frame["file"], int(frame["line"]), frame["function"] or ""))
            return True
        if text[:1] in (" ", "\t", "|") or not text.strip():
            return True
        error = _ERROR.match(text)
        if error is None or error["type"] in _NOT_TYPES:
            return False
        self.inside, self.quiet = False, 0
        place, library = place_of(self.frames[::-1])
        message = short(error["message"] or "")
        told = follows(error["type"], message)
        self.raised = Raised(self.first.source, self.writer, error["type"], message, place, library, self.fatal, told)
        self.waited = bool(_WAITED_TYPES.search(error["type"]) and _FOLLOWING_TEXTS.search(message))
        return True

    def close(self, sink: Sink) -> None:
        """Keep the exception that ended the traceback: of a chain, the last."""
        if self.raised is not None:
            fact = self.raised
            new = sink.add(fact, (fact.writer, fact.type, fact.message, fact.place))
            if new and self.waited and self.frames:
                frames = tuple(Frame(name, file, line) for file, line, name in self.frames[::-1])
                sink.add(Stack(fact.source, fact.writer, frames, False, crashed=True, measured=False, waited=True))


MAX_MESSAGE = 60
"""Lines that a message may go over; a Flight of C++ frames is about 30."""


def _begins_anew(text: str) -> bool:
    return text.startswith(("Traceback", "Process ", "Thread ", "===")) or " NCCL " in text


def _traceback(line: Line, sink: Sink) -> None:
    writer = line.writer
    open_one = sink.blocks.get((line.source.path, writer))
    if isinstance(open_one, _Traceback) and open_one.last is line:
        return  # it is chained to the one before
    spawned = sink.spawned.pop((line.source.path, writer), None)
    if spawned is not None and writer.rank is None:
        writer = writer._replace(local=spawned)
    # the hook that writes the rank is the one for exceptions that nobody caught
    fatal = (writer.rank is not None and line.text.lstrip().startswith("[rank")) or spawned is not None
    fatal = fatal or f"[rank{writer.rank}]:" in line.text or _ENDS.search(line.text) is not None
    sink.open(line, _Traceback(line, writer, fatal))


class _Extra(msgspec.Struct):
    py_callstack: str = ""


class _Told(msgspec.Struct):
    message: str = ""
    extraInfo: _Extra = msgspec.field(default_factory=_Extra)


class _Reply(msgspec.Struct):
    message: _Told


_decoder = msgspec.json.Decoder(_Reply)


def _reply(line: Line, sink: Sink) -> None:
    """Add what a process raised, of the file that torchrun has it write (`error.json`) before it ends."""
    at = line.text.find('{"message"')
    try:
        told = _decoder.decode(line.text[max(at, 0) :].encode()).message
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return
    frames = [
        (found["file"], int(found["line"]), found["function"] or "")
        for text in told.extraInfo.py_callstack.splitlines()[-MAX_FRAMES:]
        if (found := _FRAME.match(text)) is not None
    ]
    error = _ERROR.match(told.message.partition("\n")[0])
    if error is None:
        return
    place, library = place_of(frames[::-1])
    message = short(error["message"] or "")
    after = follows(error["type"], message)
    fact = Raised(line.source, line.writer, error["type"], message, place, library, True, after)
    sink.add(fact, (fact.writer, fact.type, fact.message, fact.place))


def _spawned(line: Line, sink: Sink) -> None:
    found = _SPAWNED.search(line.text)
    if found is not None:
        sink.spawned[line.source.path, line.writer] = int(found[1])


def _bare(line: Line, sink: Sink) -> None:
    """Add an error that a logger wrote without a traceback, by a process that its prefix names."""
    if line.level != "ERROR" or line.writer == Writer():
        return
    found = _NAMED.match(line.rest)
    if found is None:
        return
    message = short(found["message"] or "")
    place: Place | None = None
    told = follows(found["type"], message)
    fact = Raised(line.source, line.writer, found["type"], message, place, None, False, told)
    sink.add(fact, (fact.writer, fact.type, fact.message, None))


FAMILIES = (
    Family((b"Traceback (most recent call last)",), _traceback),
    Family((b"terminated with the following error",), _spawned),
    Family((b'"py_callstack"',), _reply),
    Family((b"] torch.OutOfMemoryError", b"Error: ", b"Exception: "), _bare),
)
