"""What comes from strangers and peers, as bytes: nothing unsigned is taken in."""

from __future__ import annotations

import contextlib

import pytest
from genlock.guardian import wire
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN, BOND = b"token", b"10.0.0.1 40000 10.0.0.2 29501"


def session() -> tuple[wire.Frames, wire.Frames, bytes, bytes]:
    """Both ends after a handshake, and what was answered to which greeting."""
    listening = wire.Listening(TOKEN, 3, BOND)
    calling = wire.Calling(TOKEN, 2, listening.greeting, BOND)
    rank, proved, down = listening.answered(calling.answer)
    assert rank == 2
    return calling.accepted(proved), down, listening.greeting, calling.answer


def test_frames_arrive_whole_in_any_pieces() -> None:
    up, down, *_ = session()
    status = {
        "quiet": True,
        "paused": False,
        "stopped": False,
        "waiting": -2,
        "position": 1 << 60,
        "counter": 3,
        "deadline": 0.5,
    }
    sent = up.pack("status", {**status, "phase": "stea\ndy", "commit": "é" * 999}) + up.pack("done", {})
    got = [frame for n in range(0, len(sent), 7) for frame in down.feed(sent[n : n + 7])]
    assert got == [{"kind": "status", **status, "phase": "stea dy", "commit": "é" * 800}, {"kind": "done"}]


@given(st.binary(max_size=200))
def test_no_random_answer_is_accepted(raw: bytes) -> None:
    raw = raw.ljust(wire.ANSWER.size, b"\0")[: wire.ANSWER.size]
    with pytest.raises(wire.Malformed):
        wire.Listening(TOKEN, 3, BOND).answered(raw)
    with pytest.raises(wire.Malformed):
        wire.Listening(TOKEN, 3, BOND).answered(wire.VERSION + raw[4:])


def test_a_replayed_a_wrong_and_a_foreign_answer_are_refused_by_name() -> None:
    *_, answer = session()
    with pytest.raises(wire.Malformed, match="does not know the token"):
        wire.Listening(TOKEN, 3, BOND).answered(answer)
    for token, rank, why in ((b"other", 2, "does not know the token"), (TOKEN, 3, "no rank3"), (TOKEN, 0, "no rank0")):
        listening = wire.Listening(TOKEN, 3, BOND)
        with pytest.raises(wire.Malformed, match=why):
            listening.answered(wire.Calling(token, rank, listening.greeting, BOND).answer)
    with pytest.raises(wire.Malformed, match="does not speak GLK3"):
        wire.Calling(TOKEN, 1, b"HTTP/1.1 400 Bad Req", BOND)
    calling = wire.Calling(TOKEN, 1, wire.Listening(TOKEN, 3, BOND).greeting, BOND)
    with pytest.raises(wire.Malformed, match="does not know the token"):
        calling.accepted(bytes(wire.PROOF))


@given(st.binary(max_size=300), st.booleans())
def test_no_random_byte_is_taken_for_a_frame(raw: bytes, after: bool) -> None:
    up, down, *_ = session()
    good = up.pack("ping", {}) if after else b""
    taken = []
    with contextlib.suppress(wire.Malformed):
        taken = list(down.feed(good + raw))
    assert taken in ([], [{"kind": "ping"}])


def test_damaged_replayed_reordered_and_oversized_frames_are_refused_by_name() -> None:
    up, down, *_ = session()
    first, second = up.pack("ping", {}), up.pack("done", {})
    assert list(down.feed(first)) == [{"kind": "ping"}]
    for raw in (first, second[:-1] + b"x", up.pack("gone", {})):
        with pytest.raises(wire.Malformed, match="wrong signature"):
            list(session()[1].feed(raw))
    with pytest.raises(wire.Malformed, match="a frame of 65535 bytes, where 4096 are allowed"):
        list(down.feed(b"\xff" * 18))
    up, down, *_ = session()
    ping = up.pack("ping", {})
    assert len(list(down.feed(ping))) == 1
    with pytest.raises(wire.Malformed, match="wrong signature"):
        list(down.feed(ping))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_even_a_signed_frame_has_known_fields_only(raw: bytes) -> None:
    for body in (raw, b"status\n" + raw, b"abort\n" + raw, b"hello\n" + raw):
        try:
            found = wire.checked(body)
        except wire.Malformed:
            continue
        kind = str(found.pop("kind"))
        assert {name: type(value) for name, value in found.items()} == wire.FIELDS[kind]
