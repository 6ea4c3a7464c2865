"""Secrets and names leave no trace in an archive, and what is alike stays alike."""

from __future__ import annotations

import json

import pytest
from genlock.collect.redact import Redactor, nodes_in, secrets_in

NCCL = b"gpu-a17:4711:4720 [0] NCCL INFO AllReduce: opCount 3a"


def redactor(job: str = "job") -> Redactor:
    return Redactor(job, ["alice", "root"], ["gpu-a17.cluster.example", "gpu-a18"], ["s3cr3t-value", "12"])


@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN=hf_abcdefghijklmnopqrst",
        "Authorization: Bearer abcdef0123456789",
        "password = 'hunter22'",
        "cloning https://alice:pa55word@example.com/x",
        "key AKIAABCDEFGHIJKLMNOP in use",
        'header {"api_key": "abcd-efgh-ijkl"}',
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "the value is s3cr3t-value, no doubt",
    ],
)
def test_secrets_are_hidden_and_nothing_moves(line: str) -> None:
    hidden = redactor().text(line.encode()).decode()
    assert len(hidden) == len(line)
    assert "*" in hidden
    for secret in ("hf_abc", "abcdef0123", "hunter22", "pa55word", "AKIAABC", "abcd-efgh", "eyJzdWI", "s3cr3t"):
        assert secret not in hidden


def test_names_are_replaced_alike_wherever_they_stand() -> None:
    text = b"/home/alice/train.py on gpu-a17 (gpu-a17.cluster.example), not on gpu-a18; owner alice_x, malice, root 0"
    hidden = redactor().text(text).decode()
    assert "alice/" not in hidden
    assert "gpu-a1" not in hidden
    assert "example" not in hidden
    assert "malice" in hidden, "a part of a word is no name"
    assert "root 0" in hidden, "a name of nobody's is left, as it means other things in logs"
    user = hidden.split("/")[2]
    assert f"owner {user}_x" in hidden
    one = hidden.split(" on ")[1].split(" ")[0]
    assert f"({one}." in hidden
    assert redactor().text(text) == redactor().text(text)
    assert redactor("another job").text(text) != redactor().text(text)


def test_a_host_that_only_a_log_names_is_found_by_its_form() -> None:
    hidden = redactor().text(b"n07:1:2 [3] NCCL WARN x\n  host      : n07\n" + NCCL)
    assert b"n07" not in hidden
    assert hidden.splitlines()[0][:3] == hidden.splitlines()[1][-3:]
    assert b":4711:4720 [0] NCCL INFO AllReduce: opCount 3a" in hidden


def test_addresses_are_replaced_by_addresses() -> None:
    hidden = (
        redactor().text(b"[::ffff:10.20.3.104]:5000 and 127.0.0.1, torch 2.13.0.1.5, fe80::1ff:fe23:4567:890a").decode()
    )
    assert "10.20.3.104" not in hidden
    assert "890a" not in hidden
    assert "127.0.0.1" in hidden
    assert "2.13.0.1.5" in hidden
    octets = hidden[len("[::ffff:") : hidden.index("]")].split(".")
    assert [len(o) for o in octets] == [2, 2, 1, 3]
    assert all(0 <= int(o) <= 255 for o in octets)
    assert "torch::jit c10d::barrier" in redactor().text(b"torch::jit c10d::barrier").decode()


def test_json_stays_json() -> None:
    text = json.dumps([{"filename": "/home/alice/x.py", "token": "abcdefgh", "n": 1}]).encode()
    assert json.loads(redactor().text(text))[0]["n"] == 1


def test_variables_that_are_named_like_secrets() -> None:
    found = secrets_in(
        {"WANDB_API_KEY": "abcdef", "MY_TOKEN": "xyzxyz", "DB_PASSWORD": "short", "NCCL_DEBUG": "INFO12"}
    )
    assert sorted(found) == ["abcdef", "xyzxyz"]


def test_nodes_of_a_schedulers_list() -> None:
    found = nodes_in({"SLURM_JOB_NODELIST": "node[08-10,12],login1,gpu[1-2]x", "MASTER_ADDR": "node08"})
    assert set(found) == {"node08", "node09", "node10", "node12", "login1", "gpu1x", "gpu2x"}
    assert len(nodes_in({"SLURM_JOB_NODELIST": "n[1-999999999]"})) <= 20_001
