"""Brings Flight Recorder dumps of all versions and makers to the fields of the newest one.

- torch 2.2 wrote a list of entries, with times in µs; 2.3 (version 1.4) a dictionary, still with one number for
  collectives, sends and receives, and with `pg_id` alone for the group: a number of the rank's own, so that only 0, the
  default group, is the same on all ranks. Where the configured groups are as many as the numbers, their order tells.
- JSON has no `entries` at all where there are none.
- TorchComms numbers the operations of a rank over all of its groups, from 0. Their place in a group is counted, which
  needs the beginning: where the ring has lost it, it counts from where the ring begins, and the dump says so.

Left out: what the fields mean (`flight_recorder`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UnreadableInput

Dump = dict[str, Any]
LARGEST = 1 << 62
ALWAYS = {"collective_seq_id": 0, "p2p_seq_id": 0, "input_dtypes": [], "output_dtypes": [], "is_p2p": False}
"""Names what older versions leave out."""


def looks_like(dump: object) -> bool:
    """Tell whether a decoded value is a Flight Recorder dump."""
    if isinstance(dump, list):
        return bool(dump) and all(isinstance(e, dict) and "profiling_name" in e and "seq_id" in e for e in dump[:16])
    return isinstance(dump, dict) and "version" in dump and ("entries" in dump or "pg_config" in dump)


def unified(path: Path, dump: object, rank: int) -> Dump:
    """Return the dump with the fields of version 2. Raises UnreadableInput."""
    if isinstance(dump, list):
        dump = {"version": "1.0", "entries": dump}
    if not looks_like(dump) or not isinstance(dump, dict):
        raise _bad(path, "not a Flight Recorder dump: it has no list of entries")
    if not isinstance(dump.get("entries", []), list):
        raise _bad(path, "not a Flight Recorder dump: it has no list of entries")
    version = dump["version"]
    if not isinstance(version, str) or not re.fullmatch(r"[12]\.\d{1,3}", version):
        raise UnreadableInput(
            f"Flight Recorder version {str(version)[:20]!r} is not one of 1.* and 2.*",
            where=str(path),
            do="replay it with a version of genlock that knows it",
        )
    entries = dump.get("entries", [])
    if version.startswith("1."):
        entries = _first_versions(path, entries, dump.get("pg_config"), rank)
    elif _counts_over_groups(entries, torch="pg_status" in dump):
        lost = entries[0]["record_id"] != 0
        return {**dump, "entries": _counted(entries), UNANCHORED: lost}
    return {**{key: value for key, value in dump.items() if key != UNANCHORED}, "entries": entries}


UNANCHORED = "numbers count from where the ring begins"


def is_number(name: object) -> bool:
    """Tell whether a group's name is a number."""
    return isinstance(name, str) and name.isascii() and name.isdecimal() and len(name) < 19


def _first_versions(path: Path, entries: Sequence[Any], config: object, rank: int) -> list[Any]:
    """Return the entries of torch 2.2 and 2.3."""
    names = _names(entries, config)
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _bad(path, "malformed (TypeError)", number)
        one = dict(entry)
        one.setdefault("record_id", number)
        if "time_created_us" in one:
            one["time_created_ns"] = _thousand(path, one["time_created_us"], number)
        pg_id = one.get("pg_id", 0)
        if type(pg_id) is not int or not 0 <= pg_id < LARGEST:
            raise _bad(path, "`pg_id` is no number of a group", number)
        p2p = " " in str(one.get("profiling_name", ""))
        if "process_group" not in one:
            one["process_group"] = names.get(pg_id) or (f"{pg_id} of rank{rank}", "undefined")
        one["p2p_seq_id" if p2p else "collective_seq_id"] = one.get("seq_id")
        one["is_p2p"] = p2p
        found.append({**ALWAYS, **one})
    return found


def _names(entries: Sequence[Any], config: object) -> dict[object, tuple[str, str]]:
    """Map `pg_id` to the group's name and description, as far as it is the same on all ranks."""
    found: dict[object, tuple[str, str]] = {0: ("0", "default_pg")}
    if isinstance(config, dict) and all(isinstance(about, dict) for about in config.values()):
        names = sorted((name for name in config if is_number(name)), key=int)
        ids = sorted({e["pg_id"] for e in entries if isinstance(e, dict) and type(e.get("pg_id")) is int})
        if len(names) == len(config) and (len(ids) == len(names) or ids == list(range(len(ids)))):
            pairs = zip(ids, names, strict=False)
            found |= {pg_id: (name, str(config[name].get("desc", "undefined"))) for pg_id, name in pairs}
    return found


def _thousand(path: Path, value: object, number: int) -> int:
    if type(value) is not int:
        raise _bad(path, "an entry has a number that is none", number)
    return value * 1000


def _counts_over_groups(entries: Sequence[Any], *, torch: bool) -> bool:
    """Tell whether numbers run over all groups of the rank: torch's own begin at 1, and go on within a group.

    Of one group alone only `torch` tells: whether the dump has what torch adds of its groups.
    """
    try:
        numbers = [entry["collective_seq_id"] for entry in entries]
        records = [entry["record_id"] for entry in entries]
        groups = [tuple(map(str, entry["process_group"])) for entry in entries]
        if not entries or any(entry["p2p_seq_id"] != 0 or entry["is_p2p"] for entry in entries):
            return False
        if not all("profiling_name" in entry for entry in entries):
            return False
        if any(n - r != numbers[0] - records[0] for n, r in zip(numbers, records, strict=True)):
            return False
    except (KeyError, TypeError):
        return False
    last: dict[tuple[Any, ...], int] = {}
    skips = False
    for group, number in zip(groups, numbers, strict=True):
        skips |= group in last and number > last[group] + 1
        last[group] = number
    # two groups of which one begins where the other stopped may be torch's; a number left out within a group is not
    return numbers[0] == 0 or (skips and len(last) > 1) or (not torch and numbers[0] == records[0])


def _counted(entries: Sequence[Mapping[str, Any]]) -> list[Dump]:
    """Return the entries with the number that each has among those of its kind in its group, from 1."""
    counts: dict[tuple[Any, ...], int] = {}
    found = []
    for entry in entries:
        name = str(entry["profiling_name"]).partition(":")[2]
        p2p = name.split(" ")[0] in ("send", "recv")
        key = (*map(str, entry["process_group"]), name if p2p else "")
        counts[key] = counts.get(key, 0) + 1
        found.append({**entry, "p2p_seq_id" if p2p else "collective_seq_id": counts[key], "is_p2p": p2p})
    return found


def _bad(path: Path, what: str, at: int | None = None) -> UnreadableInput:
    where = str(path) if at is None else f"{path}, entry {at}"
    return UnreadableInput(what, where=where, do="is it a dump that torch wrote?")
