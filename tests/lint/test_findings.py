"""Public hangs in words of our own, each before its fix and after it; and legal programs that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.lint.rules import Level
from genlock.lint.settings import Settings
from linted import linted, rules, shown

HANGS = {
    "a path on one host decides": (
        "GL108",
        """
        def load(self, path):
            if path.exists():
                box = [torch.load(path)]
                dist.broadcast_object_list(box, src=0)
        """,
        """
        def load(self, path):
            there = [path.exists() if self.rank == 0 else False]
            dist.broadcast_object_list(there, src=0)
            if there[0]:
                box = [torch.load(path)]
                dist.broadcast_object_list(box, src=0)
        """,
    ),
    "an exception before a barrier": (
        "GL106",
        """
        def write(self, folder):
            for turn in range(self.world_size):
                if turn == self.rank:
                    try:
                        self.ensure(folder)
                    except:
                        return False
                dist.barrier()

        def ensure(folder):
            os.makedirs(folder)

        class Engine:
            def write(self, folder):
                for turn in range(self.world_size):
                    if turn == self.rank:
                        try:
                            self.ensure(folder)
                        except:
                            return False
                    dist.barrier()

            def ensure(self, folder):
                os.makedirs(folder)
        """,
        """
        class Engine:
            def write(self, folder):
                fine = True
                for turn in range(self.world_size):
                    if turn == self.rank:
                        fine = self.ensure(folder)
                    dist.barrier()
                return fine

            def ensure(self, folder):
                try:
                    os.makedirs(folder)
                except OSError:
                    return False
                return True
        """,
    ),
    "a barrier on the wrong group": (
        "GL101",
        """
        class Engine:
            def __init__(self, optimizer):
                self.optimizer = optimizer
                inner = dist.get_rank(group=self.optimizer.dp_process_group)
                self.saves = inner == dist.get_rank()

            def save(self):
                if self.saves:
                    self.files()

            def files(self):
                dist.barrier()
        """,
        """
        class Engine:
            def __init__(self, optimizer):
                self.optimizer = optimizer
                inner = dist.get_rank(group=self.optimizer.dp_process_group)
                self.saves = inner == dist.get_rank()

            def save(self):
                if self.saves:
                    self.files()

            def files(self):
                dist.barrier(group=self.optimizer.dp_process_group)
        """,
    ),
    "no data, no reduction": (
        "GL101",
        """
        def whiten(values):
            total = values.sum()
            dist.all_reduce(total)
            return values - total

        def advantages(values):
            if values.numel() > 0:
                return whiten(values)
        """,
        """
        def whiten(values):
            total = values.sum()
            dist.all_reduce(total)
            return values - total

        def advantages(values):
            return whiten(values)
        """,
    ),
    "a property that reduces, read by the rank that shows it": (
        "GL102",
        """
        class ProgressBar:
            def metrics(self, trainer):
                return trainer.progress_bar_metrics

            def update(self, trainer):
                if not self.is_enabled:
                    return
                self.show(self.metrics(trainer))
        """,
        """
        class ProgressBar:
            def metrics(self, trainer):
                return trainer.progress_bar_metrics

            def update(self, trainer):
                metrics = self.metrics(trainer)
                if not self.is_enabled:
                    return
                self.show(metrics)
        """,
    ),
    "a sharded module on rank 0": (
        "GL109",
        """
        from torch.distributed.fsdp import fully_shard

        def setup(model):
            fully_shard(model)

        def evaluate(model, batch):
            setup(model)
            if dist.get_rank() == 0:
                return model(batch)
        """,
        """
        from torch.distributed.fsdp import fully_shard

        def setup(model):
            fully_shard(model)

        def evaluate(model, batch):
            setup(model)
            out = model(batch)
            return out if dist.get_rank() == 0 else None
        """,
    ),
    "a loop left by a rank of its own": (
        "GL103",
        """
        def train(loss):
            while True:
                dist.all_reduce(loss)
                if torch.isnan(loss.grad):
                    break
        """,
        """
        def train(loss):
            while True:
                dist.all_reduce(loss)
                bad = torch.isnan(loss.grad)
                dist.all_reduce(bad)
                if bad.item():
                    break
        """,
    ),
}


@pytest.mark.parametrize("hang", HANGS)
def test_a_hang_is_found(tmp_path: Path, hang: str) -> None:
    rule, bad, _ = HANGS[hang]
    assert rule in shown(tmp_path, bad)


@pytest.mark.parametrize("hang", HANGS)
def test_its_fix_is_silent(tmp_path: Path, hang: str) -> None:
    assert rules(tmp_path, HANGS[hang][2]) == []


LEGAL = {
    "configuration": """
        def f(args):
            if args.sync and args.backend == "nccl":
                dist.barrier()
        """,
    "nobody else": """
        def f(world_size):
            if world_size > 1:
                dist.barrier()
            if not dist.is_initialized() or dist.get_world_size() == 1:
                return
            dist.barrier()
        """,
    "started alone": """
        def f(args):
            if args.local_rank != -1:
                dist.barrier()
            if int(os.environ.get("RANK", -1)) == -1:
                return
            dist.barrier()
        """,
    "main process first": """
        def f(args):
            if args.local_rank not in (-1, 0):
                dist.barrier()
            download()
            if args.local_rank in (-1, 0):
                dist.barrier()
        """,
    "members of a group": """
        def f(ranks):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                dist.barrier(group=group)
        """,
    "a group that is there for members": """
        class Layer:
            def __init__(self, ranks):
                self.group = None
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks:
                    self.group = group

            def run(self, x):
                if self.group is not None:
                    dist.all_reduce(x, group=self.group)
        """,
    "another dimension": """
        def f(mpu, x):
            if mpu.get_tensor_model_parallel_rank() == 0:
                dist.all_reduce(x, group=mpu.get_data_parallel_group())
        """,
    "size and data": """
        def send(rank, src, data, group):
            if rank == src:
                size = torch.tensor([len(data)])
                dist.broadcast(size, src=src)
                if len(data) > 0:
                    dist.broadcast(data, src=src)
            else:
                size = torch.tensor([0])
                dist.broadcast(size, src=src)
                if size.item() == 0:
                    return
                dist.broadcast(torch.empty(size.item()), src=src)
        """,
    "a progress bar": """
        from tqdm import tqdm

        def f(steps, x):
            rounds = range(steps)
            if dist.get_rank() == 0:
                rounds = tqdm(rounds)
            for _ in rounds:
                dist.all_reduce(x)
            for _ in tqdm(range(steps), disable=dist.get_rank() != 0):
                dist.all_reduce(x)
        """,
    "the first of a host first": """
        def first(local_rank):
            if local_rank not in [-1, 0]:
                dist.barrier()
            download()
            if local_rank == 0:
                dist.barrier()
        """,
    "one test, asked twice": """
        def log(in_order, rank):
            if not in_order and rank == 0:
                print("x")
            elif in_order:
                dist.barrier()
        """,
    "a rank's own place in a dictionary": """
        def f(states, x):
            if states.get(os.getpid()) is not None:
                dist.all_reduce(x)
        """,
    "sent, or received": """
        def f(rank, items, x):
            if rank == 0:
                sizes = [len(item) for item in items]
                broadcast_list(sizes)
            else:
                sizes = broadcast_list(None)
            for size in sizes:
                dist.all_reduce(x)
        """,
    "set by the launcher": """
        def f():
            if os.environ.get("RANK"):
                dist.barrier()
        """,
    "a bar or none": """
        from tqdm import tqdm

        def f(steps, x):
            rounds = list(range(steps))
            for _ in tqdm(rounds) if dist.get_rank() == 0 else rounds:
                dist.all_reduce(x)
        """,
    "agreed, so looked at alike": """
        def f(loss):
            while True:
                dist.all_reduce(loss)
                if torch.isnan(loss):
                    break
        """,
    "only a process without peers asks for itself": """
        def f(path, args):
            if dist.is_initialized():
                box = [path.exists()]
                dist.broadcast_object_list(box, src=0)
                there = box[0]
            else:
                there = path.exists()
            if there:
                dist.barrier()

        def g(path, args):
            if args.local_rank == -1:
                there = path.exists()
            else:
                there = args.there
            if there:
                dist.barrier()
        """,
    "agreed by a helper": """
        def same(flag):
            told = torch.tensor([flag])
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            return bool(told.item())

        def f(path):
            if same(path.exists()):
                dist.barrier()
        """,
    "agreed in place by a helper": """
        def spread(box):
            dist.broadcast_object_list(box, src=0)

        def f(path):
            box = [path.exists()]
            spread(box)
            if box[0]:
                dist.barrier()
        """,
    "somebody else's rank": """
        def f(src_rank, peer_rank, config):
            if src_rank == 0 or config.lora_rank > 8:
                dist.barrier()
        """,
    "turns": """
        def f():
            for rank in range(dist.get_world_size()):
                if rank == dist.get_rank():
                    print(rank)
                dist.barrier()
                groups = dist.new_group([rank])
        """,
    "abstract": """
        class Base:
            def save(self):
                raise NotImplementedError
        """,
}


@pytest.mark.parametrize("case", LEGAL)
def test_a_legal_program_is_silent(tmp_path: Path, case: str) -> None:
    assert rules(tmp_path, LEGAL[case]) == []


def test_a_call_is_followed_into_another_file(tmp_path: Path) -> None:
    report = linted(
        tmp_path,
        helpers="""
        def checkpoint(barrier=True):
            if barrier:
                dist.barrier()
        """,
        program="""
        from helpers import checkpoint

        def f(rank):
            if rank == 0:
                checkpoint()

        def g(rank):
            if rank == 0:
                checkpoint(barrier=False)
        """,
    )
    assert [(Path(f.path).name, f.line, f.rule, f.level) for f in report.findings] == [
        ("program.py", 9, "GL101", Level.error)
    ]
    assert "through checkpoint()" in report.findings[0].message


def test_what_differs_is_followed_into_a_call(tmp_path: Path) -> None:
    source = """
    def stop(now):
        if now:
            dist.barrier()

    def f(rank):
        stop(rank == 0)
    """
    assert rules(tmp_path, source) == ["GL101"]
    assert rules(tmp_path, source.replace("rank == 0", "True")) == []


def test_each_condition_on_the_way_makes_the_verdict_weaker(tmp_path: Path) -> None:
    source = """
    def store(kind):
        if kind == "a":
            dist.barrier()

    def fetch(kind):
        if kind:
            store(kind)

    def f(rank, kind):
        if rank == 0:
            fetch(kind)
    """
    report = linted(tmp_path, program=source)
    assert [finding.level for finding in report.findings] == [Level.note]


def test_both_confidences_are_told_apart(tmp_path: Path) -> None:
    report = linted(
        tmp_path,
        program="""
        def f(rank, my_group):
            if rank == 0:
                dist.barrier(group=my_group.special)
        """,
    )
    (finding,) = report.findings
    assert (finding.source.name, finding.verdict.name, finding.level) == ("CERTAIN", "POSSIBLE", Level.note)


def test_a_collective_under_a_test_is_not_the_same(tmp_path: Path) -> None:
    assert rules(tmp_path, "def f(rank, flag):\n    if rank == 0 or flag:\n        dist.barrier()\n") == ["GL101"]


def test_a_bar_hides_no_count(tmp_path: Path) -> None:
    source = "from tqdm import tqdm\ndef f(rank, x):\n    for _ in tqdm(range(rank)):\n        dist.all_reduce(x)\n"
    assert rules(tmp_path, source) == ["GL103"]


def levels(folder: Path, source: str) -> list[Level]:
    return [finding.level for finding in linted(folder, program=source).findings]


def test_a_rank_that_raises_is_seen(tmp_path: Path) -> None:
    source = "def f(rank):\n    if rank == 9:\n        {}\n    dist.barrier()\n"
    assert levels(tmp_path, source.format("raise ValueError")) == [Level.note]
    assert levels(tmp_path, source.format("return")) == [Level.error]


def test_after_a_barrier_files_are_there_for_all(tmp_path: Path) -> None:
    source = "def f(path, x):\n    {}\n    if path.exists():\n        dist.all_reduce(x)\n"
    assert levels(tmp_path, source.format("pass")) == [Level.warning]
    assert levels(tmp_path, source.format("dist.barrier()")) == [Level.note]


def test_who_waits_for_whom_is_said(tmp_path: Path) -> None:
    report = linted(
        tmp_path,
        program="""
        def f(rank, x):
            if rank == 0:
                dist.barrier()
            dist.all_reduce(x)
        """,
    )
    assert report.findings[0].message == (
        "ranks where `rank == 0` is true wait in barrier; the others go on to all_reduce at line 8 (rank decides: rank)"
    )


def test_an_optional_rule_is_silent_until_it_is_selected(tmp_path: Path) -> None:
    source = "def f(timers, x):\n    for key in timers.items():\n        dist.all_reduce(x)\n"
    assert linted(tmp_path, Settings(), program=source).findings == ()
    assert [f.rule for f in linted(tmp_path, Settings(select=("GL104",)), program=source).findings] == ["GL104"]
