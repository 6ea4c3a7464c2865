"""Reads errors of connections: gloo's, the store's, and NCCL's network layers.

Whoever writes such a line is alive and was left; the peer that it names, or the way to it, is the one that failed.

Left out: torch's watchdog (`torch_watchdog`), and exceptions as such (`tracebacks`).
"""

from __future__ import annotations

import re

from ...evidence import Joined, KeyWait, PeerLost, PeerSilent
from .lines import Family, Line, Sink

_CLOSED = re.compile(
    r"[Cc]onnection (?:closed|reset) by (?:remote )?peer"
    r"(?: \[?([0-9a-zA-Z_.:\-%]{1,100}?)\]?(?::\d{1,5}|<\d{1,5}>))?(?=[\s.,;)]|$)"
)
_SILENT = re.compile(r"Timed out waiting (\d{1,12}) ?ms for (recv|send) operation to complete")
_UNREACHED = re.compile(
    r"client socket has timed out after \S{1,20} while trying to connect to \((?P<host>[^,()\s]{1,200}), ?\d{1,5}\)"
    r"|Gloo connectFullMesh failed|Error: Socket Timeout"
)
_CLIENTS = re.compile(r"(\d{1,7})/(\d{1,7}) clients joined")
_KEYS = re.compile(r"wait timeout after (\d{1,12}) ?ms, keys: (\S{1,300})")
_UNIQUE = re.compile(r"retrieving ncclUniqueId from \[(\d{1,7})\] via c10d key-value store by key '([^']{1,200})'")
_COMPLETION = re.compile(
    r"NET/IB ?: ?(?:\S{1,40} )?Got completion from peer ([0-9a-zA-Z_.:\-%]{1,100})<\d{1,5}> with status=(\d{1,3})"
)
_REFUSED = re.compile(r"socket\w{1,40}: Connect to ([0-9a-zA-Z_.:\-%]{1,100})<\d{1,5}> failed")
FLUSHED = 5
"""The status of what was under way when another request had failed: it says nothing of its own."""


def _closed(line: Line, sink: Sink) -> None:
    for match in _CLOSED.finditer(line.text):
        _lost(line, sink, match[1] or "", "connection closed")


def _lost(line: Line, sink: Sink, address: str, what: str) -> None:
    sink.add(PeerLost(line.source, line.writer, address, what))


def _completion(line: Line, sink: Sink) -> None:
    for match in _COMPLETION.finditer(line.text):
        if int(match[2]) != FLUSHED:
            _lost(line, sink, match[1], f"InfiniBand status {match[2]}")


def _refused(line: Line, sink: Sink) -> None:
    for match in _REFUSED.finditer(line.text):
        _lost(line, sink, match[1], "no connection")


def _silent(line: Line, sink: Sink) -> None:
    for match in _SILENT.finditer(line.text):
        sink.add(PeerSilent(line.source, line.writer, f"{match[2]} of gloo, {match[1]} ms"))


def _unreached(line: Line, sink: Sink) -> None:
    for match in _UNREACHED.finditer(line.text):
        what = f"the store at {match['host']}" if match["host"] else "a connection of gloo, or of the store"
        sink.add(PeerSilent(line.source, line.writer, what))


def _store(line: Line, sink: Sink) -> None:
    for match in _CLIENTS.finditer(line.text):
        sink.add(Joined(line.source, line.writer, int(match[1]), int(match[2])))
    for match in _KEYS.finditer(line.text):
        sink.add(KeyWait(line.source, line.writer, match[2]))
    for match in _UNIQUE.finditer(line.text):
        sink.add(KeyWait(line.source, line.writer, match[2]))


FAMILIES = (
    Family((b"losed by peer", b"losed by remote peer", b"eset by peer"), _closed, b" peer"),
    Family((b"Got completion from peer ",), _completion, b" peer"),
    Family((b": Connect to ",), _refused),
    Family((b"ms for recv operation", b"ms for send operation"), _silent, b"Timed out waiting"),
    Family((b"client socket has timed out", b"connectFullMesh failed", b"Error: Socket Timeout"), _unreached),
    Family((b" clients joined", b"wait timeout after ", b"retrieving ncclUniqueId from ["), _store),
)
