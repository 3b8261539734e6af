"""The processes of a group: bytes to and from neighbours, and small numbers of all, in rank order.

Over gloo, which moves the memory of the host alone, tensors of a GPU are staged there. Sums are
taken in float64 in the order of ranks, so that they have the same bits on every process and in
every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from volflow.errors import PeerLost, first_line

__all__ = ["Peers"]


@dataclass(eq=False)
class Peers:
    """Some processes of a running process group, of which this is one.

    Parameters
    ----------
    ranks
        Their ranks in the whole group, ascending.
    group
        The group of these processes; None once this process has left it.
    device
        Device of what is sent and received: the GPU over NCCL, else the host.
    timeout_s
        How long any of them is waited for.
    sent_bytes
        Bytes that this process has sent to neighbours since the beginning.
    """

    ranks: tuple[int, ...]
    group: Any
    device: torch.device
    timeout_s: float
    sent_bytes: int = field(default=0, init=False)

    @classmethod
    def among(cls, groups: Sequence[Sequence[int]], timeout_s: float) -> Peers:
        """Return the group of this process, of those into which all processes are divided.

        Every process must call it with the same arguments.
        """
        me, wait = dist.get_rank(), timedelta(seconds=timeout_s)
        nccl = dist.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        handles = []
        for ranks in groups:
            with _answering("groups of processes are formed", timeout_s):
                handles.append(dist.new_group(list(ranks), timeout=wait))
        number = next(n for n, ranks in enumerate(groups) if me in ranks)
        return cls(tuple(groups[number]), handles[number], device, timeout_s)

    @property
    def rank(self) -> int:
        """Place of this process among them."""
        return self.ranks.index(dist.get_rank())

    def __len__(self) -> int:
        return len(self.ranks)

    def close(self) -> None:
        """Leave the group, by which whoever waits for this process learns that it will not come."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None

    def swap(self, sent: Mapping[int, Tensor], awaited: Mapping[int, int]) -> dict[int, Tensor]:
        """Send bytes to neighbours while receiving theirs.

        Parameters
        ----------
        sent
            Bytes for each neighbour, by rank; none of them empty.
        awaited
            How many bytes each neighbour sends.

        Returns
        -------
        dict
            The bytes received by rank, on `device`.
        """
        received = {
            peer: torch.empty(count, dtype=torch.uint8, device=self.device)
            for peer, count in awaited.items()
        }
        staged = {peer: buffer.to(self.device) for peer, buffer in sent.items()}
        if staged or received:
            with self._answered("neighbours exchange ranges"):
                for work in self._started(staged, received):
                    work.wait()
        self.sent_bytes += sum(buffer.numel() for buffer in staged.values())
        return received

    def _started(
        self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]
    ) -> Sequence[dist.Work]:
        ops = [
            dist.P2POp(kind, buffer, self.ranks[peer], self.group)
            for kind, buffers in ((dist.isend, sent), (dist.irecv, received))
            for peer, buffer in sorted(buffers.items())
        ]
        return dist.batch_isend_irecv(ops)

    def gathered(self, numbers: Tensor) -> list[Tensor]:
        """Return the float64 numbers of all processes in rank order, on the host.

        Every process gives equally many.
        """
        mine = numbers.detach().to(self.device, torch.float64).contiguous()
        rows = [torch.empty_like(mine) for _ in self.ranks]
        if mine.numel():
            with self._answered("numbers of all processes are gathered"):
                dist.all_gather(rows, mine, group=self.group)
        return [row.cpu() for row in rows]

    def summed(self, numbers: Tensor) -> Tensor:
        """Return the sum of a long vector over all processes, in float64 on the host.

        Each process sums a part of it in rank order and hands it to the others, so that little
        more is sent than by other ways of summing, whose order is not fixed.
        """
        part = -(-len(numbers) // len(self))
        if not part:
            return numbers.detach().cpu().double()
        mine = torch.zeros(part * len(self), dtype=torch.float64, device=self.device)
        mine[: len(numbers)] = numbers.detach()
        rows, whole = torch.empty_like(mine), torch.empty_like(mine)
        with self._answered("gradients of weights are summed"):
            dist.all_to_all_single(rows, mine, group=self.group)
        first, *others = rows.split(part)
        for row in others:
            first += row
        with self._answered("sums of gradients are gathered"):
            dist.all_gather([*whole.split(part)], first, group=self.group)
        return whole[: len(numbers)].cpu()

    def told(self, words: Mapping[str, str]) -> list[Mapping[str, str]]:
        """Return what all processes say, in rank order."""
        found: list[Any] = [None] * len(self)
        with self._answered("settings of all processes are compared"):
            dist.all_gather_object(found, dict(words), group=self.group)
        return found

    @contextmanager
    def _answered(self, doing: str) -> Iterator[None]:
        if self.group is None:
            raise PeerLost(
                f"this process has left its group, as it does after an error, and is missing where"
                f" {doing}; start all processes again from the last checkpoint"
            )
        try:
            with _answering(doing, self.timeout_s):
                yield
        except PeerLost:
            self.close()
            raise


@contextmanager
def _answering(doing: str, timeout_s: float) -> Iterator[None]:
    """Say in the error of a lost process what was done, and what to do."""
    try:
        yield
    except RuntimeError as error:
        # Without its frames, which hold the group and would keep its connections open.
        bare = error.with_traceback(None)
        raise PeerLost(
            f"another process of the group ended, or did not answer within {timeout_s:g} s, while"
            f" {doing} ({first_line(error)}); its own error says why. Start all processes again"
            " from the last checkpoint, or give a longer timeout"
        ) from bare
