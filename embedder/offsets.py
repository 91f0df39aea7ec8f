"""Which offsets may be committed: the highest without a gap below, per partition. Pure.

Batches of a partition finish in any order, each once for every generation; a commit must never pass one that is still
in work (rule commit-after-output). Next: `worker` commits what `done` returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Span:
    next_offset: int
    holders: int = 1


@dataclass(slots=True, eq=False)
class Ticket:
    """A batch in work: the span it covers in each partition, held by each generation that is not done with it."""

    spans: dict[int, _Span] = field(default_factory=dict)

    def share(self, holders: int) -> None:
        """So many more must be done with it."""
        for span in self.spans.values():
            span.holders += holders

    def of(self, partition: int) -> Ticket:
        """One partition's part of it."""
        return Ticket({partition: self.spans[partition]})


class Offsets:
    """Tickets are begun in log order and done in any order."""

    def __init__(self) -> None:
        self._open: dict[int, deque[_Span]] = {}

    def begin(self, next_offsets: Mapping[int, int]) -> Ticket:
        """A batch was read up to these offsets (exclusive)."""
        ticket = Ticket()
        for partition, next_offset in next_offsets.items():
            span = _Span(next_offset)
            ticket.spans[partition] = span
            self._open.setdefault(partition, deque()).append(span)
        return ticket

    def done(self, ticket: Ticket) -> dict[int, int]:
        """All outputs of the batch are durable for one holder; the offsets that may be committed because of it."""
        out: dict[int, int] = {}
        for partition, span in ticket.spans.items():
            span.holders -= 1
            line = self._open.get(partition)
            if line is None:
                continue
            while line and line[0].holders <= 0:
                out[partition] = line.popleft().next_offset
        return out

    def forget(self, partitions: Iterable[int]) -> None:
        """The partitions are somebody else's now: their tickets commit nothing any more."""
        for partition in partitions:
            self._open.pop(partition, None)

    @property
    def idle(self) -> bool:
        return not any(self._open.values())
