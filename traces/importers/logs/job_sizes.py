"""Reads how many ranks a job has, where launchers and frameworks say so: torchrun, Lightning, Megatron, vLLM.

Without it, nobody knows whether a log is of all ranks: the highest rank that is seen need not be the last.

Left out: sizes of groups (`torch_watchdog`), of communicators (`nccl`, `ras`), and the store's clients (`connections`).
"""

from __future__ import annotations

import re

from ...evidence import JobSize
from .lines import Family, Line, Sink

_SIZE = re.compile(
    r"global_world_sizes=\[(\d{1,7})[,\]]"
    r"|MEMBER: \d{1,7}/(\d{1,7})\b"
    r"|distributed processes registered\. Starting with (\d{1,7}) processes"
    r"|using world size: (\d{1,7}), data-parallel size"
    r"|\bworld_size=(\d{1,7}) rank=\d{1,7} local_rank=\d"
    r"|\brank \d{1,7} in world size (\d{1,7}) is assigned"
    r"|\bWORLD_SIZE=(\d{1,7})\b"
)


def _size(line: Line, sink: Sink) -> None:
    for match in _SIZE.finditer(line.text):
        size = next(int(number) for number in match.groups() if number)
        if size:
            sink.add(JobSize(line.source, size), size)


FAMILIES = (
    Family((b"global_world_sizes=[", b"MEMBER: ", b"Starting with ", b"using world size: "), _size),
    Family((b"world_size=", b" in world size ", b"WORLD_SIZE="), _size),
)
