"""Converts Genlock's own traces of former formats to format 3: `python -m genlock.traces.convert PATH… --out DIR`.

Each trace goes to the same place below DIR as it has below its PATH. What format 1 holds as text alone stays text, with
the code `untyped`: replay then names no failure mode and no culprit by it. Format 2 needs a new header alone; a trace
of format 3 is copied. A last line that is cut stays cut.
Left out: traces of others, which `genlock replay` reads as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from ..errors import Exit, GenlockError, UsageError
from .format import FORMAT_VERSION, Event, LineReader, encode, find, lines_of, opening
from .outcome import Code


class Converted(NamedTuple):
    """Tells what became of one trace."""

    path: Path
    copied: bool
    """It was of format 3 already."""
    untyped: int
    """Events whose outcome is text alone."""


def convert(paths: Sequence[Path], out: Path) -> list[Converted]:
    """Write the traces that `paths` stand for to `out`. Raises UnreadableInput; UsageError where one is there already.

    Every trace is read to its end before the first is written.
    """
    found = [
        (file, out / (file.relative_to(path) if path.is_dir() else file.name)) for path in paths for file in find(path)
    ]
    targets = [target for _, target in found]
    for file, target in found:
        if target.exists():
            raise UsageError("there is a file already", where=str(target), do="choose another --out")
        if targets.count(target) > 1:
            raise UsageError("two traces would go to one place", where=str(target), do=f"convert {file} by itself")
    written = [(file, target, b"".join(converted(file))) for file, target in found]
    told = []
    for file, target, data in written:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        told.append(Converted(target, _format_of(file) == FORMAT_VERSION, data.count(_UNTYPED)))
    return told


def converted(path: Path) -> Iterator[bytes]:
    """Yield the lines of a trace as format 3 has them. Raises UnreadableInput with the line that makes no sense."""
    lines = lines_of(path)
    header = opening(path, lines)
    reader, announced = LineReader(path, header), set[int]()
    yield encode(replace(header, format=FORMAT_VERSION))
    for number, raw in lines:
        if not raw.endswith(b"\n"):
            yield raw
            return
        line = reader.take(number, raw)
        if header.format != 1:
            yield raw
            continue
        if isinstance(line, Event) and line.site is not None and line.site not in announced:
            announced.add(line.site)
            yield encode(reader.sites[line.site])
        yield encode(line)


_UNTYPED = b'"outcome":{"code":"%s"' % Code.UNTYPED.value.encode()


def _format_of(path: Path) -> int:
    return opening(path, lines_of(path)).format


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m genlock.traces.convert", description=(__doc__ or "").splitlines()[0].partition(": `")[0]
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a trace, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the converted traces go")
    given = parser.parse_args(arguments)
    try:
        told = convert(given.paths, given.out)
    except (GenlockError, OSError) as error:
        print(f"genlock: {error}", file=sys.stderr)
        return error.exit if isinstance(error, GenlockError) else Exit.USAGE
    copied, untyped = sum(one.copied for one in told), sum(one.untyped for one in told)
    print(f"{len(told) - copied} traces converted to format {FORMAT_VERSION}, {copied} copied, in {given.out}")
    if untyped:
        print(f"{untyped} outcomes are text alone: record the run anew where replay has to decide by them")
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
