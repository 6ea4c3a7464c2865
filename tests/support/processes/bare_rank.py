"""Stands for a rank in tests of `genlock collect`: no torch, but what can be found from outside, as its arguments say.

    loaded PATH            has mapped a file of that name, as a library
    signal NUMBER          answers the signal by its stacks, on stderr
    ras PORT               answers questions to NCCL's RAS
    served PATH            answers as torch's worker server, on a socket of that path
    piped PIPE DUMP        writes a dump when asked by a pipe, as torch does
    holds PATH             keeps a file open for writing
    child                  has a helper with the same environment
The first argument is a file that it makes once it is ready. It ends when its stdin does.
"""

from __future__ import annotations

import faulthandler
import http.server
import json
import mmap
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

KEPT: list[object] = []
COUNTS = {"nccl_version": "2.28.9", "communicators_count": 1}

TEXT = """NCCL version 2.28.9 compiled with CUDA 12.9

#0-0 (0abc) MISMATCH
  Communicator ranks have different AllReduce operation counts
  2 ranks have launched up to operation 7
  Rank 1 has launched up to operation 6 -- GPU 0 managed by process 4001 on node 10.1.2.3
"""


def comm() -> dict[str, object]:
    ranks = [
        {"rank": r, "host": "10.1.2.3", "pid": 4000 + r, "status": {}, "collective_counts": {"AllReduce": 7 - (r == 1)}}
        for r in range(3)
    ]
    return {"hash": "0xabc", "size": 3, "ranks_count": 3, "missing_ranks_count": 0, "ranks": ranks, "missing_ranks": []}


class Ras(socketserver.StreamRequestHandler):
    """Answers the commands of RAS that a client gives."""

    def handle(self) -> None:
        form = "text"
        for line in self.rfile:
            command = line.decode().strip()
            if command.startswith("CLIENT PROTOCOL"):
                self.wfile.write(b"SERVER PROTOCOL 2\n")
            elif command.startswith(("TIMEOUT", "SET FORMAT")):
                form = command.split()[-1] if command.startswith("SET") else form
                self.wfile.write(b"OK\n")
            elif command == "VERBOSE STATUS":
                whole = json.dumps({**COUNTS, "communicators": [comm()]}, indent=1)
                self.wfile.write((whole if form == "json" else TEXT).encode())
                return


class Worker(http.server.BaseHTTPRequestHandler):
    """Answers as torch's worker server."""

    def do_POST(self) -> None:
        known = self.path.startswith("/handler/fr_trace_json")
        body = json.dumps({"version": "2.10", "entries": [], "pg_config": {}}).encode() if known else b"no such handler"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


class UnixServer(socketserver.ThreadingUnixStreamServer):
    """Serves HTTP over a socket of a path."""

    def get_request(self) -> tuple[object, object]:  # type: ignore[override]
        connection, _ = super().get_request()
        return connection, ("worker", 0)


def dump_when_asked(pipe: str, dump: str) -> None:
    file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    while True:
        time.sleep(0.05)
        if os.read(file, 64):
            with open(dump, "wb") as out:
                out.write(b"\x80\x02}q\x00.")


def do(words: Iterator[str]) -> None:
    for word in words:
        if word == "loaded":
            with open(next(words), "rb") as file:
                KEPT.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        elif word == "signal":
            faulthandler.register(int(next(words)), all_threads=True)
        elif word == "ras":
            server = socketserver.ThreadingTCPServer(("127.0.0.1", int(next(words))), Ras)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        elif word == "served":
            worker = UnixServer(next(words), Worker)
            threading.Thread(target=worker.serve_forever, daemon=True).start()
        elif word == "piped":
            pipe, dump = next(words), next(words)
            os.mkfifo(pipe)
            threading.Thread(target=dump_when_asked, args=(pipe, dump), daemon=True).start()
            time.sleep(0.1)
        elif word == "holds":
            KEPT.append(os.open(next(words), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        elif word == "child":
            KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin))


def main() -> None:
    do(iter(sys.argv[2:]))
    open(sys.argv[1], "w").close()
    sys.stdin.read()


if __name__ == "__main__":
    main()
