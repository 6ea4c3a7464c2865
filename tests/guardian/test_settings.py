"""A guardian's settings: where they come from, and what cannot be used."""

from __future__ import annotations

import re

import pytest
from genlock.guardian.settings import GuardianSettings, Wrong

TOKEN = b"token"


AWAY = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "65535"}


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--", "x"], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not one of WORLD_SIZE=2 ranks"),
        (["--", "x"], {"RANK": "one"}, "RANK=one is not a number"),
        (["--deadline=steady=0", "--", "x"], {}, "--deadline: `steady=0` is not PHASE=SECONDS"),
        (["--", "x"], {"GENLOCK_DEADLINES": "steady"}, "GENLOCK_DEADLINES: `steady` is not PHASE=SECONDS"),
        (["--meet=here", "--", "x"], {}, "--meet: `here` is not HOST:PORT"),
        (["--interface=nosuch0", "--", "x"], {}, "--interface: `nosuch0` has no address"),
        (["--", "x"], AWAY, "guardians that meet at 10.0.0.1 need a secret: set GENLOCK_TOKEN"),
        (["x"], {}, "`x` is no flag"),
        (["--"], {}, "there is no program"),
    ],
)
def test_settings_that_cannot_be_used_are_named(arguments: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        GuardianSettings(arguments, environ)


def test_settings_come_from_flags_then_environment_then_defaults() -> None:
    found = GuardianSettings(["--deadline=steady=5", "--interface=lo", "--", "prog", "--flag"],
                     {**AWAY, "GENLOCK_TOKEN": "s", "GENLOCK_DEADLINES": "steady=9,ack=2"})  # fmt: skip
    assert (found.deadlines["steady"], found.deadlines["ack"], found.deadlines["startup"]) == (5, 2, 300)
    assert (found.host, found.program) == ("10.0.0.1", ["prog", "--flag"])
    assert str(found.bind[0]) == "127.0.0.1:1024"
    assert found.ports == list(range(1024, 1032))
    odd = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1", "X": ""}
    tokens = {
        GuardianSettings(["--", "x"], {**AWAY, "GENLOCK_TOKEN": "s", key: value}).token for key, value in odd.items()
    }
    assert len(tokens) == 3, "another run, or another start of it, has another token"
