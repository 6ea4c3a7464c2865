"""Words for evidence that is missing: what to fetch, of which ranks, and by which command.

Left out: the text of `genlock explain evidence` (`cli`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .finding import Missing, Want, ranks_text


def advice(missing: Sequence[Missing]) -> Iterator[str]:
    """One line for each kind of evidence, of all ranks that it is missing of."""
    wanted: dict[Want, set[int]] = {}
    for entry in missing:
        wanted.setdefault(entry.want, set()).update(entry.ranks)
    for want, ranks in sorted(wanted.items(), key=lambda item: list(Want).index(item[0])):
        if ranks or want not in OF_RANKS:
            yield "to decide: " + _TEXTS[want].format(of=f" of {ranks_text(ranks)}" if ranks else "")


OF_RANKS = (Want.LOG, Want.STACK, Want.DUMP, Want.DEVICE)
"""Kinds that are of certain ranks."""
_TEXTS = {
    Want.LOG: "fetch the log{of}, of every node, and replay it together with these",
    Want.STACK: "take the stack{of}: `py-spy dump --pid PID`, twice, while it hangs",
    Want.DUMP: "fetch the Flight Recorder dump{of} (`genlock explain evidence` says how)",
    Want.SECOND: "ask again half a minute later (`ncclras -v`), and replay both answers in one file",
    Want.NUMBERS: "name the rank of each process: a file a rank, named `rank3.txt`, or NCCL's init lines",
    Want.WORLD: "say how many ranks there were: the logs of all nodes, or torch's INFO lines, have it",
    Want.DETAIL: "run once with TORCH_DISTRIBUTED_DEBUG=DETAIL",
    Want.DEVICE: "look at the devices and the network{of}: `dmesg -T | grep -iE 'xid|nvrm'`, `ibstat`",
}
