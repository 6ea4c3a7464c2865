"""Takes secrets and names out of what is collected: users, hosts, addresses.

A name is replaced by the same other one wherever it stands, on every node of a job, so that what is alike stays alike.
A replacement is as long as what it replaces, so that no format breaks. Left out: what the user's own program writes
about people.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE|_KEY$|^KEY|AUTH|COOKIE|DSN|CONN_?STR"
    r"|CONNECTION|WEBHOOK|SIGNATURE|SESSION_ID|_PAT$|_SAS$",
    re.IGNORECASE,
)
"""Names of variables whose values go into no archive, wherever they stand."""
OF_NOBODY = frozenset(
    {"root", "user", "users", "admin", "nobody", "ubuntu", "debian", "centos", "runner", "worker", "node", "rank"}
    | {"torch", "python", "home", "data", "test", "host", "localhost", "master", "gpu", "cuda", "nccl", "gloo", "main"}
    | {"default", "local", "none", "tmp", "kind", "header", "event", "site", "group", "end", "enter", "exit", "state"}
    | {"index", "send", "recv", "reduce", "broadcast", "barrier", "gather", "scatter", "frames", "name", "file", "line"}
    | {"filename", "entries", "version", "process", "thread", "active", "info", "error", "warn", "warning", "watchdog"}
    | {
        "collective",
        "all_reduce",
        "work",
        "timeout",
        "exception",
        "traceback",
        "train",
        "model",
        "step",
        "stack",
        "log",
    }
)
"""Names that tell nothing of anybody, and whose replacement would damage what a log says."""
LEAST, LEAST_SECRET = 3, 6
MAX_NODES = 20_000

_SECRETS = re.compile(
    rb"""
      (?i:\b(?:authorization|bearer|token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|credentials?)\b
          ["']?\s*[:=]\s*["']?(?:bearer\s+|basic\s+)?)(?P<value>[^\s"',;&]{4,400})
    | (?i:\bbearer\s+)(?P<bearer>[A-Za-z0-9._~+/\-]{12,2000}=*)
    | (?P<known>\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|sk-[A-Za-z0-9_\-]{16,}
          |xox[abprs]-[A-Za-z0-9\-]{10,}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_\-]{30,}|glpat-[A-Za-z0-9_\-]{16,}
          |eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]*))
    | ://[^\s/:@"']{0,200}:(?P<login>[^\s/@"']{1,200})@
    """,
    re.VERBOSE,
)
_ADDRESS = re.compile(rb"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_ADDRESS6 = re.compile(rb"(?<![\w:.])(?:fe80|f[cd][0-9a-f]{2}|[23][0-9a-f]{3})(?::[0-9a-f]{0,4}){2,7}(?![\w:])")
_NCCL_HOST = re.compile(rb"(?m)(?:^|[\]\s])([A-Za-z][\w.\-]{1,200}):\d{1,10}:\d{1,10} \[\d{1,3}\] ")
_TABLE_HOST = re.compile(rb"(?m)^\s*host\s+: (\S{2,200})\s*$")
_LIST = re.compile(r"([^,\[\]]+)(?:\[([\d,\-]+)\])?([^,\[\]]*)")


class Redactor:
    """Replaces secrets and names in bytes."""

    def __init__(self, job: str, users: Iterable[str], hosts: Iterable[str], secrets: Iterable[str]) -> None:
        """`job` is what all nodes of a job share: it makes their replacements alike, and those of jobs unlike."""
        self._job = job
        names = {name: b"u" for name in users if _telling(name)}
        names |= {name: b"h" for host in hosts for name in _labels(host)}
        self._names = {name.encode(): self._other(name.encode(), kind) for name, kind in names.items()}
        self._secrets = sorted({s.encode() for s in secrets if len(s) >= LEAST_SECRET}, key=len, reverse=True)
        listed = b"|".join(re.escape(name) for name in sorted(self._names, key=len, reverse=True))
        self._listed = re.compile(rb"(?<![A-Za-z0-9])(?:" + listed + rb")(?![A-Za-z0-9])") if listed else None

    def _other(self, name: bytes, kind: bytes) -> bytes:
        digest = hashlib.sha256(self._job.encode() + b"\0" + name).hexdigest().encode()
        return (kind + digest * (len(name) // len(digest) + 1))[: len(name)]

    def name(self, text: str) -> str:
        """Return a text with its names replaced."""
        return self.text(text.encode(errors="replace")).decode(errors="replace")

    def host(self, name: str) -> str:
        """Return what a host is called in an archive, whatever it is called itself."""
        known = self.name(name)
        return known if known != name or not _telling(name) else self._other(name.encode(), b"h").decode()

    def text(self, data: bytes) -> bytes:
        """Return text without secrets and names."""
        data = self.binary(data)
        data = _SECRETS.sub(_hidden, data)
        data = _NCCL_HOST.sub(self._in_group, data)
        data = _TABLE_HOST.sub(self._in_group, data)
        data = _ADDRESS.sub(self._address, data)
        return _ADDRESS6.sub(self._address6, data)

    def binary(self, data: bytes) -> bytes:
        """Return data of any format without known secrets and names; nothing in it moves."""
        for secret in self._secrets:
            data = data.replace(secret, b"*" * len(secret))
        return self._listed.sub(lambda found: self._names[found[0]], data) if self._listed else data

    def _in_group(self, found: re.Match[bytes]) -> bytes:
        begin, end = found.start(1) - found.start(), found.end(1) - found.start()
        name, whole = found[1], found[0]
        if name in self._names.values() or not _telling(name.decode(errors="replace")):
            return whole
        return whole[:begin] + self._other(name, b"h") + whole[end:]

    def _address(self, found: re.Match[bytes]) -> bytes:
        octets = found[0].split(b".")
        if any(int(octet) > 255 for octet in octets) or octets[0] in (b"127", b"0") or found[0] == b"255.255.255.255":
            return found[0]
        digest = hashlib.sha256(self._job.encode() + b"\0" + found[0]).digest()
        # as many digits each, so that it is as long, and is still an address
        lows = {1: (0, 10), 2: (10, 90), 3: (100, 100)}
        fake = [lows[len(o)][0] + d % lows[len(o)][1] for o, d in zip(octets, digest, strict=False)]
        return ".".join(map(str, fake)).encode()

    def _address6(self, found: re.Match[bytes]) -> bytes:
        digest = hashlib.sha256(self._job.encode() + b"\0" + found[0]).hexdigest().encode()
        return b"".join(b":" if c == 58 else digest[at % 64 : at % 64 + 1] for at, c in enumerate(found[0]))


def _hidden(found: re.Match[bytes]) -> bytes:
    name = next(name for name, value in found.groupdict().items() if value is not None)
    begin, end = found.start(name) - found.start(), found.end(name) - found.start()
    return found[0][:begin] + b"*" * (end - begin) + found[0][end:]


def _telling(name: str) -> bool:
    return len(name) >= LEAST and name.lower() not in OF_NOBODY and not name.replace(".", "").isdecimal()


def _labels(host: str) -> Iterator[str]:
    """Yield the name of a host, and that of its domain."""
    first, _, domain = host.partition(".")
    if ":" not in host and not host.replace(".", "").isdecimal():
        yield from (name for name in (first, domain) if _telling(name))


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """Return the values of the variables that are named like secrets."""
    return [value for name, value in environment.items() if SECRET.search(name) and len(value) >= LEAST_SECRET]


def nodes_in(environment: Mapping[str, str]) -> list[str]:
    """Return the hosts that an environment names: the master, and a scheduler's list of nodes."""
    found = [environment.get(name, "") for name in ("MASTER_ADDR", "HOSTNAME", "SLURMD_NODENAME", "SLURM_LAUNCH_NODE")]
    for name in ("SLURM_JOB_NODELIST", "SLURM_NODELIST", "LSB_HOSTS"):
        found += _nodes(environment.get(name, "").replace(" ", ","))
    return [host for host in found if host][:MAX_NODES]


def _nodes(listed: str) -> Iterator[str]:
    """Yield the nodes of a list such as `node[01-03,07],login`."""
    for before, numbers, after in _LIST.findall(listed[:100_000]):
        if not numbers:
            yield before + after
        for part in numbers.split(",") if numbers else ():
            low, _, high = part.partition("-")
            if low.isdecimal() and (high.isdecimal() or not high):
                for number in range(int(low), min(int(high or low), int(low) + MAX_NODES) + 1):
                    yield f"{before}{number:0{len(low)}d}{after}"
