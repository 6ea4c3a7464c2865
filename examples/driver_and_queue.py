"""A driver puts jobs into one queue, workers take them and answer: does everybody come to an end?

    genlock check examples/driver_and_queue.py --faults 0                        # exit 1: one `stop` for two workers
    genlock check examples/driver_and_queue.py --faults 0 --param stops=2        # each has its own
    genlock check examples/driver_and_queue.py --param stops=2                   # exit 1: a worker dies with its job
    genlock check examples/driver_and_queue.py --param stops=2 --param watched=yes

docs/guides/driver-and-queue.md goes through it.

Left out: retries, answers that come twice, a queue that loses what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genlock import By, Fifo, LeadsTo, Protocol, Put, Role, Row, Scope, State, Take, Whole

JOBS, ANSWERS = Fifo("jobs", capacity=2), Fifo("answers", capacity=2)
JOB, STOP = "job", "stop"
END, DEAD = State("END", "end", terminal=True), State("DEAD", "end", terminal=True, failed=True)


@dataclass(frozen=True)
class V:
    """Of the driver: how many jobs were put, were answered, and how many have been told to stop."""

    put: int = 0
    answered: int = 0
    stopped: int = 0


def is_job(v: V, data: str) -> bool:
    """it is a job"""
    return data == JOB


def is_stop(v: V, data: str) -> bool:
    """it says stop"""
    return data == STOP


def job(v: V) -> str:
    return JOB


def stop(v: V) -> str:
    return STOP


def put(v: V, data: object) -> V:
    return replace(v, put=v.put + 1)


def answered(v: V, data: object) -> V:
    return replace(v, answered=v.answered + 1)


def stopped(v: V, data: object) -> V:
    return replace(v, stopped=v.stopped + 1)


def first(scope: Scope) -> range:
    return range(1)


def others(scope: Scope) -> range:
    return range(1, scope.ranks)


def start(rank: int, scope: Scope) -> V:
    return V()


def all_put(whole: Whole) -> bool:
    return whole.state(0) == "COLLECT"


def over(whole: Whole) -> bool:
    return whole.ended(0)


def protocol(jobs: int = 2, stops: int = 1, watched: bool = False) -> Protocol:
    """`stops`: how often the driver says stop. `watched`: who waits is told that a peer has died."""

    def more(v: V, data: object) -> bool:
        """there is a job to put"""
        return v.put < jobs

    def no_more(v: V, data: object) -> bool:
        """all jobs are put"""
        return v.put == jobs

    def some_open(v: V, data: object) -> bool:
        """a job is not answered"""
        return v.answered < jobs

    def all_answered(v: V, data: object) -> bool:
        """all jobs are answered"""
        return v.answered == jobs

    def not_told(v: V, data: object) -> bool:
        """somebody is to be told to stop"""
        return v.stopped < stops

    def all_told(v: V, data: object) -> bool:
        """as many have been told as are to be"""
        return v.stopped == stops

    driver = (
        Row("PUT", "put", "PUT", gate=Put(JOBS), send=job, guards=(more,), effect=put),
        Row("PUT", "all_put", "COLLECT", guards=(no_more,)),
        Row("COLLECT", "answer", "COLLECT", gate=Take(ANSWERS), guards=(some_open,), effect=answered),
        Row("COLLECT", "all_answered", "STOP", guards=(all_answered,)),
        Row("STOP", "stop", "STOP", gate=Put(JOBS), send=stop, guards=(not_told,), effect=stopped),
        Row("STOP", "done", "END", guards=(all_told,)),
    )
    worker = (
        Row("TAKE", "job", "WORK", gate=Take(JOBS), guards=(is_job,)),
        Row("TAKE", "stop", "END", gate=Take(JOBS), guards=(is_stop,)),
        Row("WORK", "answer", "TAKE", gate=Put(ANSWERS), send=job),
    )
    lost = {
        name: tuple(Row(state, "peer_lost", "DEAD", By.DETECTION) for state in found) if watched else ()
        for name, found in (("driver", ("PUT", "COLLECT", "STOP")), ("worker", ("TAKE", "WORK")))
    }

    def states(*names: str) -> tuple[State, ...]:
        return (*(State(name, name.lower()) for name in names), END, *((DEAD,) if watched else ()))

    return Protocol(
        "driver_and_queue",
        "1",
        cast=(
            Role(
                "driver",
                "PUT",
                states("PUT", "COLLECT", "STOP"),
                (*driver, *lost["driver"]),
                ranks=first,
                start_at=start,
            ),
            Role("worker", "TAKE", states("TAKE", "WORK"), (*worker, *lost["worker"]), ranks=others),
        ),
        shared=(JOBS, ANSWERS),
        claims=(LeadsTo("answered", "once all jobs are put, the driver comes to its end", all_put, over),),
    )
