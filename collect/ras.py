"""Puts a question to NCCL's RAS, which answers for the whole job, in text and as JSON (NCCL 2.24 and later).

Only a port on which a rank of the job listens itself is spoken to. Left out: reading the answers (`traces`).
"""

from __future__ import annotations

import contextlib
import os
import socket

from ..errors import UnreadableInput
from .bounded import Outcome
from .ranks import Rank
from .staging import Staging

PORT = 28028
SECONDS = 12.0
ANSWER_SECONDS = 5
"""Time that RAS gives other processes to answer."""
MAX_ANSWER = 64 << 20
LISTENS = "0A"


def ask(ranks: list[Rank], look: int, staging: Staging) -> Outcome:
    """Ask once, and keep the answers in both forms; JSON is known from NCCL 2.28.7 on.

    Beside JSON the text is for people, and quoted: read as well, it would pass for the answer to another question.
    """
    if not any(rank.seen.nccl for rank in ranks):
        return Outcome()
    address = _address(ranks)
    if address is None:
        return Outcome(missing="no RAS: no rank here listens on its port", advice=["ras"])
    answers: dict[str, bytes] = {}
    whys: list[str] = []
    for form in ("json", "text"):
        try:
            answers[form] = _answer(address, form)
        except (OSError, UnreadableInput) as error:
            whys.append(f"{form}: {error.what if isinstance(error, UnreadableInput) else error.strerror or error}")
    if "json" in answers and "text" in answers:
        answers["text"] = b"".join(b"| " + line for line in answers["text"].splitlines(keepends=True))
    suffixes = {"json": "json", "text": "txt"}
    files = [staging.write(f"ras{look}.{suffixes[form]}", answer) for form, answer in answers.items()]
    return Outcome(files, missing="" if files else f"no RAS: {'; '.join(whys)}")


def _address(ranks: list[Rank]) -> tuple[str, int] | None:
    """Return where a rank listens for questions to RAS."""
    for rank in ranks:
        given = rank.seen.environment.get("NCCL_RAS_ADDR", f"localhost:{PORT}")
        host, _, port = given.rpartition(":")
        if rank.seen.environment.get("NCCL_RAS_ENABLE") == "0" or not port.isdecimal():
            continue
        own = {target[8:-1] for _, target in rank.process.open_files() if target.startswith("socket:[")}
        for table in ("net/tcp", "net/tcp6"):
            with contextlib.suppress(OSError):
                for line in rank.process.read(table, 8 << 20).decode(errors="replace").splitlines()[1:]:
                    fields = line.split()
                    listening = fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == int(port)
                    if listening and fields[9] in own and _same_network(rank):
                        return host.strip("[]") or "localhost", int(port)
    return None


def _same_network(rank: Rank) -> bool:
    return rank.process.link("ns/net") == os.readlink("/proc/self/ns/net")


def _answer(address: tuple[str, int], form: str) -> bytes:
    with socket.create_connection(address, timeout=ANSWER_SECONDS / 2) as connection:
        connection.settimeout(ANSWER_SECONDS + 3)
        with connection.makefile("rwb", buffering=0) as stream:
            _command(stream, "CLIENT PROTOCOL 2", "SERVER PROTOCOL ")
            _command(stream, f"TIMEOUT {ANSWER_SECONDS}", "OK")
            if form == "json":
                _command(stream, "SET FORMAT json", "OK")
            stream.write(b"VERBOSE STATUS\n")
            parts: list[bytes] = []
            left = MAX_ANSWER
            while left > 0 and (part := stream.read(min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
    return b"".join(parts)


def _command(stream: socket.SocketIO, command: str, expected: str) -> None:
    stream.write(f"{command}\n".encode())
    answer = stream.readline(4096).decode(errors="replace")
    if not answer.upper().startswith(expected):
        raise UnreadableInput(f"to `{command}` it answered {answer.strip()[:80]!r}")
