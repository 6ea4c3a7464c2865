"""The command line: its flags, what it says to a user's mistake, and that it starts without heavy modules.

What the commands do is tested beside the modules that do it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from genlock import __version__
from genlock.cli.app import Commands, app
from genlock.errors import ContractViolation, Exit, UnreadableInput
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

MODEL = "--ranks --chunks --steps --faults --fault --transport --detection --param --mutant --out"
FLAGS = {
    "demo": "",
    "check": f"{MODEL} --mutants --any-world-size --property --engine --symmetry --reduction --max-states --timeout "
    "--allow-unreached --format",
    "export promela": MODEL,
    "run": "--ranks --backend --chunks --inject --deadline --observe --agent-per-rank --oversubscribe --out",
    "guard": "--deadline --observe --meet --interface --out",
    "record": "--out --stall --precheck --keep",
    "collect": "--pid --out --apart --timeout --stack-signal",
    "replay": "--format --out",
    "explain": "",
    "lint": "--select --ignore --exclude --fail-on --show --baseline --write-baseline --explain --format",
    "render": "--diff --format --out",
    "docs": "--evidence --out",
    "audit": f"{MODEL} --full --run --require --format",
}
CHOICES = {
    "check --transport": "rendezvous stream",
    "check --detection": "on off",
    "check --engine": "auto reference numpy numba",
    "check --symmetry": "auto on off",
    "check --reduction": "auto on off",
    "check --format": "text json junit",
    "run --backend": "gloo nccl",
    "audit --transport": "rendezvous stream",
    "audit --require": "nccl",
    "audit --format": "text json junit",
    "render": "states sequence counterexample trace waits",
    "render states --format": "svg png dot mermaid html",
}
HEAVY = {"torch", "numpy", "networkx", "transitions", "numba"}
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


def genlock(line: str) -> Result:
    """Run a command line in this process."""
    return CliRunner(env=WIDE).invoke(app, line, prog_name="genlock")


def parse(line: str) -> None:
    """Parse a command line and do nothing; raises what is wrong with it."""
    words = shlex.split(line)
    command = get_command(app)
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    command.make_context("genlock", words)


def python(code: str) -> str:
    """Run code in a fresh interpreter; what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_line(result: Result) -> str:
    """The one line on stderr that a user's mistake ends with."""
    assert result.stdout == ""
    assert re.fullmatch(r"genlock: [^\n]+\n", result.stderr), result.output
    return result.stderr


@pytest.mark.parametrize("command", FLAGS)
def test_help_names_each_flag_and_shows_an_example_that_parses(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = genlock(f"{command} --help")
    assert result.exit_code == Exit.OK
    declared, _, rest = result.output.partition("Example: ")
    assert set(re.findall(r"--[a-z-]+", declared)) == {*FLAGS[command].split(), "--help"}
    example = re.match(rf"(?:torchrun .*)?genlock ({command}.*)", rest)
    assert example is not None
    (tmp_path / "traces").mkdir()
    monkeypatch.chdir(tmp_path)
    parse(example[1])


def test_help_lists_every_command() -> None:
    result = genlock("--help")
    assert result.exit_code == Exit.OK
    assert "--version" in result.output
    assert set(re.findall(r"^│ ([a-z]+) ", result.output, re.M)) == {name.split()[0] for name in FLAGS}


@pytest.mark.parametrize("command", CHOICES)
def test_choices(command: str) -> None:
    refusal = genlock(f"{command} no-such-choice")
    assert refusal.exit_code == Exit.USAGE
    listed = re.search(r"is not one of (.*?);", refusal.stderr)
    assert listed is not None
    assert re.findall(r"'([a-z]+)'", listed[1]) == CHOICES[command].split()


@pytest.mark.parametrize(
    "line", ["no-such-command", "check --no-such-flag", "check --ranks 1", "check --ranks many", "guard", "replay"]
)
def test_wrong_usage_exits_2(line: str) -> None:
    result = genlock(line)
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert re.fullmatch(r"genlock: .+; see `genlock[a-z ]* --help`\n", result.stderr)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("check --fault @READY", "--fault: `@READY` is not KIND or KIND@POINT"),
        ("check --fault crash@", "--fault: `crash@` is not KIND or KIND@POINT"),
        ("check --param K", "--param: `K` is not NAME=VALUE"),
        ("check --param K=", "--param: `K=` is not NAME=VALUE"),
        ("check --param K=1 --param K=2", "--param: `K` is given twice"),
        ("check --mutants --mutant FM-04", "--mutant and --mutants exclude each other"),
        ("check --mutants --any-world-size", "--mutants and --any-world-size exclude each other"),
        ("export promela --fault Crash", "--fault: `Crash` is not KIND or KIND@POINT"),
        ("export promela --param =3", "--param: `=3` is not NAME=VALUE"),
        ("run --deadline steady", "--deadline: `steady` is not NAME=VALUE"),
        ("run --deadline steady=0", "--deadline steady: `0` is not a number of seconds above 0"),
        ("run --deadline steady=inf", "--deadline steady: `inf` is not a number of seconds above 0"),
        ("run --deadline steady=soon", "--deadline steady: `soon` is not a number of seconds above 0"),
        ("run --inject OM1", "--inject: `OM1` is no id of the break-it matrix"),
        ("run --inject OM-01,rank", "--inject: `rank` is not NAME=VALUE"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_in_one_line(line: str, message: str) -> None:
    result = genlock(line)
    assert result.exit_code == Exit.USAGE
    assert message in one_line(result)


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (UnreadableInput("no\nheader", where="rank0.jsonl"), "rank0.jsonl: no header", Exit.USAGE),
        (ContractViolation("meta differs"), "meta differs", Exit.CONTRACT),
        (PermissionError(13, "Permission denied", "out/report"), "out/report: Permission denied", Exit.USAGE),
        (KeyboardInterrupt(), "interrupted", Exit.UNKNOWN),
        (MemoryError(), "no memory is left", Exit.UNKNOWN),
    ],
)
def test_what_a_user_can_meet_ends_in_one_line(error: BaseException, line: str, status: int) -> None:
    result = CliRunner().invoke(failing(error), "fail")
    assert one_line(result) == f"genlock: {line}\n"
    assert result.exit_code == status


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), OSError(5, "not about a file")])
def test_a_bug_keeps_its_traceback_and_is_no_verdict(bug: Exception) -> None:
    result = CliRunner().invoke(failing(bug), "fail")
    assert result.exit_code == Exit.BUG
    assert result.stderr.startswith("Traceback")
    assert str(bug) in result.stderr
    assert f"genlock: this is a bug of Genlock {__version__}, and no verdict; please report it" in result.stderr


@pytest.mark.parametrize("line", ["--help", "check --help", "render states --format mermaid --out /dev/stdout"])
def test_a_pipe_that_is_closed_is_no_verdict(line: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "genlock", *line.split()], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("check --any-world-size --ranks 4", "--ranks: it plays no part in every world size"),
        ("check --any-world-size --engine numpy", "--engine: it plays no part in every world size"),
        ("check --any-world-size --symmetry off", "--symmetry: it plays no part in every world size"),
        ("check --any-world-size --reduction on", "--reduction: it plays no part in every world size"),
        ("check --any-world-size --allow-unreached A.b", "--allow-unreached: no row `A.b` in tp_v1.1"),
        ("check tp_v0 --mutants", "--mutants: tp_v0 has no known mutants: they break tp_v1.1"),
        ("check --mutants --chunks 3", "--mutants --chunks: each mutant has its own"),
        ("check --mutants --fault crash", "--mutants --fault: each mutant has its own"),
        ("check tp_v0 --mutant FM-04", "--mutant FM-04: tp_v0 has no known mutants"),
        ("check --ranks 99999999999999999999", "--ranks: 99999999999999999999 ranks are too many to search"),
        ("check --ranks 33", "--ranks: 33 ranks are too many to search; take at most 32"),
        ("check --fault crash@rank9.IDLE", "--fault crash: `rank9.IDLE` cannot strike: there are 3 ranks"),
        ("check --allow-unreached NO.row --ranks 2 --chunks 1", "--allow-unreached: no row `NO.row` in tp_v1.1"),
    ],
)
def test_what_cannot_be_asked_of_check_is_one_line(line: str, message: str) -> None:
    result = genlock(line)
    assert result.exit_code == Exit.USAGE
    assert message in one_line(result)


def failing(error: BaseException) -> typer.Typer:
    """An application whose only command raises `error`."""
    broken = typer.Typer(cls=Commands)

    @broken.callback()
    def group() -> None: ...

    @broken.command()
    def fail() -> None:
        raise error

    return broken


def test_importing_genlock_loads_nothing_heavy() -> None:
    loaded = python("import sys, genlock; print(*sys.modules)").split()
    assert not (HEAVY | {"typer", "rich"}) & set(loaded)
    assert [name for name in loaded if name.startswith("genlock.")] == []


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_answered_before_anything_slow_is_imported(flag: str) -> None:
    printed, loaded = python(
        f"import sys; sys.argv = ['genlock', '{flag}']\nfrom genlock.__main__ import main; main(); print(*sys.modules)"
    ).splitlines()
    assert printed == f"genlock {__version__}"
    assert not (HEAVY | {"typer", "rich", "genlock.cli.app"}) & set(loaded.split())


def test_help_works_without_torch_and_loads_nothing_heavy() -> None:
    lines = [f"{command} --help" for command in FLAGS]
    loaded = python(
        "import sys; sys.modules['torch'] = None\n"
        "from typer.testing import CliRunner; from genlock.cli.app import app\n"
        f"assert not any(CliRunner().invoke(app, line).exit_code for line in {lines})\n"
        "print(*(name for name in sys.modules if name != 'torch'))"
    )
    assert not HEAVY & set(loaded.split())


def test_the_installed_command_and_the_module_are_the_same() -> None:
    (script,) = entry_points(group="console_scripts", name="genlock")
    assert script.value == "genlock.__main__:main"
    run = [sys.executable, "-m", "genlock"]
    assert subprocess.run([*run, "--version"], capture_output=True, text=True).stdout == f"genlock {__version__}\n"
    refused = subprocess.run([*run, "run", "--inject", "OM1"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (Exit.USAGE, "", 1)
