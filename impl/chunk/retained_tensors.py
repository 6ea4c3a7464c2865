"""What a rank holds of a chunk's tensors beyond the moment in which it received them: two things, each with a rule.

The override lives for one reader. The conditioning lives until the next one of a newer epoch. Whatever else a
generator needs is handed to it as a direct argument, call by call, so that nothing stale can be found anywhere.
"""

from __future__ import annotations

import torch

from ...errors import ContractViolation
from . import digest

PARTS = 8
"""Of the conditioning that is held, one part in so many is looked at in each chunk that relies on it."""


class Override:
    """The slot for `context_frames_override`: reading it empties it, on every path, whatever becomes of the chunk."""

    def __init__(self) -> None:
        self._tensor: torch.Tensor | None = None

    @property
    def full(self) -> bool:
        return self._tensor is not None

    def put(self, tensor: torch.Tensor | None) -> None:
        """Fill the slot, or leave it empty. Raises ContractViolation where nobody has read the last one."""
        if self.full:
            raise ContractViolation(
                "the override of an earlier chunk is still there",
                where="context_frames_override",
                do="clear it when it is read",
            )
        self._tensor = tensor

    def take(self, recompute: bool) -> torch.Tensor | None:
        """The override, which is gone from here. Raises ContractViolation unless it is there iff `recompute`."""
        tensor, self._tensor = self._tensor, None
        if (tensor is not None) != recompute:
            text = "there is none, and there is no fallback" if recompute else "it is there, and nobody asked for it"
            raise ContractViolation(f"tp_do_kv_recompute is {recompute}: {text}", where="context_frames_override")
        return tensor


class Conditioning:
    """The conditioning of the current epoch, for the chunks of optimize mode that carry none."""

    def __init__(self) -> None:
        self.epoch = 0
        self._tensor: torch.Tensor | None = None
        self._parts: list[tuple[torch.Tensor, int]] = []
        """Views of it, and the digest that each had."""

    def adopt(self, epoch: int | None, tensor: torch.Tensor | None) -> None:
        """Keep a copy of what a committed chunk brought. In bring-up mode (`epoch` None) nothing is kept."""
        if epoch is None or tensor is None:
            return
        # of its own: the tensor is a view of a payload that is let go
        self.epoch, self._tensor = epoch, tensor.clone(memory_format=torch.contiguous_format)
        self._parts = [(part, digest.of_tensor(part)) for part in self._tensor.view(-1).chunk(PARTS)]

    def of(self, epoch: int) -> torch.Tensor:
        """The conditioning of `epoch`. Raises ContractViolation where another one is held: there is no fallback."""
        if self._tensor is None or epoch != self.epoch:
            raise ContractViolation(
                f"the chunk goes by conditioning_epoch {epoch}, and {self.epoch} is held here",
                where="conditioning_embeds",
                do="send it with a new epoch",
            )
        return self._tensor

    def damage(self, turn: int) -> str | None:
        """What is wrong with what is held, if it is no longer what was received.

        One part of it is looked at in each turn, so that all of it is in PARTS turns in a row.
        """
        if self._tensor is None:
            return None
        at = turn % len(self._parts)
        part, was = self._parts[at]
        found = digest.of_tensor(part)
        if found == was:
            return None
        return (
            f"`conditioning_embeds`, held since conditioning_epoch {self.epoch}, has digest {digest.to_hex(found)} "
            f"in part {at + 1} of {len(self._parts)}, but {digest.to_hex(was)} was received: something wrote into it"
        )
