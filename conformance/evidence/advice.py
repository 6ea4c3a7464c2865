"""Tells what evidence is missing: what to fetch, of which ranks, and by which command.

Left out: the text of `genlock explain evidence` (`cli`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..diagnosis import MissingEvidence, Wanted
from .finding import Missing, ranks_text


def advice(missing: Sequence[Missing]) -> Iterator[MissingEvidence]:
    """Yield what to fetch, one for each kind of evidence, of all ranks that it is missing of."""
    wanted: dict[Wanted, set[int]] = {}
    for entry in missing:
        wanted.setdefault(entry.want, set()).update(entry.ranks)
    for want, ranks in sorted(wanted.items(), key=lambda item: list(Wanted).index(item[0])):
        if ranks or want not in OF_RANKS:
            text = _TEXTS[want].format(of=f" of {ranks_text(ranks)}" if ranks else "")
            yield MissingEvidence(want, tuple(sorted(ranks)), text)


OF_RANKS = (Wanted.LOG, Wanted.STACK, Wanted.RECORDING, Wanted.DEVICE_HEALTH)
"""Kinds that are of certain ranks."""
_TEXTS = {
    Wanted.LOG: "fetch the log{of}, of every node, and replay it together with these",
    Wanted.STACK: "take the stack{of} while it hangs: `genlock collect` on its node, or `py-spy dump --pid PID` twice",
    Wanted.RECORDING: (
        "fetch the Flight Recorder dump{of}: `genlock collect` while it hangs (else: `genlock explain evidence`)"
    ),
    Wanted.SECOND_ANSWER: (
        "ask RAS twice: by `genlock collect`, or `ncclras -v` again half a minute later, both answers in one file"
    ),
    Wanted.RANK_NUMBERS: (
        "name the rank of each process: `genlock collect --pid PID=RANK`, a file a rank (`rank3.txt`), or NCCL's init"
        " lines"
    ),
    Wanted.WORLD_SIZE: "say how many ranks there were: the logs of all nodes, or torch's INFO lines, have it",
    Wanted.DETAIL_RUN: "run once with TORCH_DISTRIBUTED_DEBUG=DETAIL",
    Wanted.DEVICE_HEALTH: "look at the devices and the network{of}: `dmesg -T | grep -iE 'xid|nvrm'`, `ibstat`",
}
