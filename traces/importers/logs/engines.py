"""Reads what inference engines say of workers that do not answer: vLLM, SGLang, TensorRT-LLM, NVRx's monitor.

Their watchdogs tell that somebody does not answer, never who: the one that writes it is the one that waits.

Left out: what a worker raised (`tracebacks`), and stacks that an engine prints (`stacks`).
"""

from __future__ import annotations

import re

from ...evidence import Hang, WorkerDied
from .lines import Family, Line, Sink

_DIED = re.compile(r"Worker proc (?:VllmWorker-)?(\d{1,7}) died unexpectedly(?: \(exit code: (-?\d{1,4})\))?")
_HUNG = re.compile(
    r"(?P<vllm>No available shared memory broadcast block found in \d{1,6} seconds)"
    r"|(?P<rpc>RPC call to \w{1,60} timed out)"
    r"|(?P<sglang>[Ww]atchdog timeout \(self\.watchdog_timeout=)"
    r"|(?P<trt>Hang detected (?:after \d{1,7} seconds|on rank (?P<rank>\d{1,7})))"
    r"|(?P<nvrx>Did not get (?:initial|subsequent) heartbeat\. Waited [\d.]{1,12} seconds"
    r"|Section '[^']{1,100}' has been open for)"
)
_NAMES = {
    "vllm": "vLLM: a worker does not read its queue",
    "rpc": "vLLM: a call to the workers timed out",
    "sglang": "SGLang: a scheduler does not move",
    "trt": "TensorRT-LLM: a rank saw no progress",
    "nvrx": "NVRx: a rank's monitor had no heartbeat",
}


def _hung(line: Line, sink: Sink) -> None:
    for match in _HUNG.finditer(line.text):
        name = next(name for name in _NAMES if match[name] is not None)
        writer = line.writer
        if match["rank"] is not None and writer.rank is None:
            writer = writer._replace(rank=int(match["rank"]))
        sink.add(Hang(line.source, writer, _NAMES[name]))


def _died(line: Line, sink: Sink) -> None:
    for match in _DIED.finditer(line.text):
        code = f"exit code {match[2]}" if match[2] else "unexpectedly"
        sink.add(WorkerDied(line.source, int(match[1]), code), int(match[1]))


FAMILIES = (
    Family(
        (b"No available shared memory broadcast", b"RPC call to ", b"atchdog timeout (self.", b"Hang detected "), _hung
    ),
    Family((b"sequent heartbeat. Waited", b"initial heartbeat. Waited"), _hung, b"heartbeat. Waited"),
    Family((b"has been open for ",), _hung, b"Section '"),
    Family((b"died unexpectedly",), _died),
)
