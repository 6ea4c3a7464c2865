"""Short stacks: from the innermost call to the program, and a key that tells them apart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from genlock.impl.recording import stacks as stacks_module
from genlock.impl.recording.stacks import MAX_FRAMES, short_stack, stack_key

stacks: Any = stacks_module
PACKAGES = "/venv/lib/python3.11/site-packages"


def code_at(file: str, body: str) -> Callable[..., Any]:
    """A function `call(inner)` whose code lies in that file."""
    space: dict[str, Any] = {}
    exec(compile(f"def call(inner):\n    {body}", file, "exec"), space)
    call: Callable[..., Any] = space["call"]
    return call


def through(*files: str) -> FrameType:
    """The frame of a function that was called through code in those files, outermost first."""

    def innermost() -> FrameType:
        return sys._getframe(1)

    inner: Callable[[], Any] = innermost
    for file in reversed(files):
        call, within = code_at(file, "return inner()"), inner
        inner = lambda call=call, within=within: call(within)  # type: ignore[misc]  # noqa: E731
    frame: FrameType = inner()
    return frame


@pytest.mark.parametrize("library", ["accelerate", "transformers", "lightning", "megatron", "deepspeed", "torch"])
@pytest.mark.parametrize("program", ["/home/me/train.py", "/home/me/pytorch/torch/train.py", "/home/torch/main.py"])
def test_the_program_ends_it_whatever_library_is_between(library: str, program: str) -> None:
    inner = f"{PACKAGES}/{library}/deep/inside.py"
    frames = short_stack(through(program, f"{PACKAGES}/{library}/api.py", inner))
    assert next(place.rpartition(":")[0] for place, _ in frames if "test_stacks" not in place) == inner
    assert frames[-1][0].rpartition(":")[0] == program


@pytest.fixture(autouse=True)
def these_tests_are_a_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The helpers of this file stand between the made-up files."""
    layer = stacks.layer
    monkeypatch.setattr(stacks, "layer", lambda file: stacks.PROGRAM + 2 if file == __file__ else layer(file))
    stacks.programs.clear()
    stacks._codes.clear()
    yield
    stacks.programs.clear()
    stacks._codes.clear()


def test_it_is_bounded_and_keeps_the_program() -> None:
    deep = [f"{PACKAGES}/torch/distributed/part{n}.py" for n in range(12)]
    frames = short_stack(through("/home/me/train.py", *deep))
    assert len(frames) == MAX_FRAMES
    assert frames[-1][0].startswith("/home/me/train.py:")
    assert frames[0][0].startswith(deep[-1])


def test_where_no_program_is_there_the_innermost_calls_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "layer", lambda file: 2)
    frames = short_stack(sys._getframe())
    assert len(frames) == MAX_FRAMES
    assert frames[0][1].startswith("test_where_no_program")


@pytest.mark.parametrize("key", [stacks._key_in_python, stacks._key_in_c], ids=["python", "c"])
def test_the_key_tells_stacks_apart(key: Callable[[FrameType], bytes | None]) -> None:
    if stacks.fast_stack_key is None and key is stacks._key_in_c:
        pytest.skip("traces/_fast_recorder.c was not built: it takes a C compiler and Python's headers")

    def one() -> bytes | None:
        return key(sys._getframe())

    same = [one() for _ in range(2)]
    assert same[0] == same[1] != one()
    frame = through("/home/me/train.py", f"{PACKAGES}/torch/distributed/api.py")
    assert key(frame) == key(frame) != key(through("/home/me/train.py", f"{PACKAGES}/torch/distributed/api.py"))


@pytest.mark.skipif(stacks.fast_stack_key is None, reason="traces/_fast_recorder.c was not built")
def test_both_make_the_same_key() -> None:
    frame = through("/home/me/train.py", f"{PACKAGES}/torch/distributed/api.py")
    assert stacks._key_in_c(frame) == stacks._key_in_python(frame)


def test_codes_beyond_the_limit_have_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses could be those of others later."""
    monkeypatch.setattr(stacks, "MAX_CODES", 0)
    assert stack_key(sys._getframe()) is None
