"""Texts that are wanted and not answered yet: who waits for each, and which go with the next request. Pure.

One text is wanted once, even when several batches hold it (single flight). Texts that serve nobody yet (`later`) have
requests of their own, behind those of all others but for one in `_LATER_TURN`. Next: `dispatch` sends the packs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from embedder import packing
from embedder.usage import Usage

_LATER_TURN = 8


class Answer(NamedTuple):
    """`vector`: little-endian float32, or None with the provider's reason. `text`: what was sent."""

    hash: str
    text: str
    vector: bytes | None
    reason: str = ""


class Inbox(Protocol):
    """A batch that waits for vectors."""

    @property
    def usage(self) -> Usage: ...

    def put(self, answers: Sequence[Answer]) -> None: ...


@dataclass(slots=True, eq=False)
class Want:
    """`size`: UTF-8 bytes of the text. No inbox: the batches that wanted it were given up."""

    hash: str
    text: str
    size: int
    inboxes: list[Inbox]

    def cut(self, tokens: int) -> None:
        self.text = packing.cut(self.text, tokens)
        self.size = len(self.text.encode("utf-8", "surrogatepass"))
        for inbox in self.inboxes[:1]:
            inbox.usage.texts_cut += 1


@dataclass(slots=True, eq=False)
class Pack:
    """A request: `mark` is the number of successes elsewhere when it first failed."""

    wants: list[Want]
    tries: int = 0
    mark: int = -1


class Wanted:
    """Its length: texts that are not answered yet, those of packs that are out included."""

    def __init__(self) -> None:
        self._wanted: dict[str, Want] = {}
        self._queue: OrderedDict[str, Want] = OrderedDict()
        self._later: OrderedDict[str, Want] = OrderedDict()
        self._again: deque[Pack] = deque()
        self._turns = 0

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def waiting(self) -> bool:
        """There may be something to send."""
        return bool(self._again or self._queue or self._later)

    def join(self, content_hash: str, inbox: Inbox, *, later: bool) -> bool:
        """False: nobody wants it yet."""
        wanted = self._wanted.get(content_hash)
        if wanted is None:
            return False
        wanted.inboxes.append(inbox)
        if not later and self._later.pop(content_hash, None) is not None:
            self._queue[content_hash] = wanted
        return True

    def add(self, content_hash: str, text: str, inbox: Inbox, *, later: bool) -> None:
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        want = self._wanted[content_hash] = Want(content_hash, text, size, [inbox])
        (self._later if later else self._queue)[content_hash] = want

    def withdraw(self, inbox: Inbox) -> None:
        """The batch was given up; what nobody else waits for is not sent any more."""
        for want in self._wanted.values():
            if inbox in want.inboxes:
                want.inboxes = [i for i in want.inboxes if i is not inbox]

    def next(self, limits: packing.Limits) -> Pack | None:
        """The caller answers it, or gives it back: `again`, `halve`, `first`."""
        while self._again:
            pack = self._again.popleft()
            pack.wants = self._alive(pack.wants)
            if pack.wants:
                return pack
        while self._queue or self._later:
            self._turns += 1
            late = not self._queue or (bool(self._later) and self._turns % _LATER_TURN == 0)
            queue = self._later if late else self._queue
            # a cheap cut of what is given up; `head` looks no further than one request
            count = packing.head(list(islice(queue.values(), limits.max_items)), limits)
            wants = self._alive([queue.popitem(last=False)[1] for _ in range(count)])
            if wants:
                return Pack(wants)
        return None

    def _alive(self, wants: list[Want]) -> list[Want]:
        if all(w.inboxes for w in wants):
            return wants
        for want in wants:
            if not want.inboxes:
                self._wanted.pop(want.hash, None)
        return [w for w in wants if w.inboxes]

    def again(self, *packs: Pack, last: bool = False) -> None:
        """As they are: at once, or behind what waits to be sent again."""
        if last:
            self._again.extend(packs)
        else:
            self._again.extendleft(reversed(packs))

    def halve(self, pack: Pack, successes: int) -> None:
        half = len(pack.wants) // 2
        for wants in (pack.wants[half:], pack.wants[:half]):
            tries = 0 if pack.tries == 0 else (2 if len(wants) > 1 else 1)
            self._again.appendleft(Pack(wants, tries, successes))

    def first(self, wants: Sequence[Want]) -> None:
        """To be packed anew, before all others."""
        for want in reversed(wants):
            self._queue[want.hash] = want
            self._queue.move_to_end(want.hash, last=False)

    def deliver(self, wants: Sequence[Want], answers: Sequence[Answer]) -> None:
        """One call for each inbox."""
        by_inbox: dict[int, tuple[Inbox, list[Answer]]] = {}
        for want, answer in zip(wants, answers, strict=True):
            self._wanted.pop(want.hash, None)
            for inbox in want.inboxes:
                found = by_inbox.get(id(inbox))
                if found is None:
                    by_inbox[id(inbox)] = (inbox, [answer])
                else:
                    found[1].append(answer)
        for inbox, mine in by_inbox.values():
            inbox.put(mine)
