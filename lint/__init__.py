"""Finds collectives that not every rank of a group will reach alike, by reading a program without running it.

The way of a program through this package: `package` reads and indexes its files; `functions` and `expressions` walk
each function and write down its schedule (`schedule`), with what may differ between ranks (`divergence`); `findings`
compares the schedules of ranks that decide differently; `silence` takes out what a reader has settled; `report` and
`sarif` write the rest. `vocabulary` and `groups` say which names mean what.

Left out: running the program, and all that is decided by values (shapes, dtypes, payloads).
"""
