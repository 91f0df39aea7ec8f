"""Texts that must be paid for become requests to one model of one provider, for all tables that use it.

What was sent is remembered until the store has it. No row loses an attempt to *wait* or *stop*; *this input* halves
the request down to the culprit. Answers go to the batches' inboxes, one call per request.
Which texts go next: `wanted`; what may be sent when: `pace`; what fits: `packing`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from embedder import packing
from embedder.memory import Memory
from embedder.pace import Backoff, Pace
from embedder.providers.port import Provider, ProviderSuspect
from embedder.wanted import Answer, Inbox, Pack, Want, Wanted
from walvec.contracts.errors import ProviderRejectedInput, ProviderStop, ProviderWait
from walvec.contracts.histograms import NUMBERS, Histogram

_log = logging.getLogger(__name__)
_CANARY = "walvec"
_SPLIT_AFTER = {"answer": 3, "dimensions": 3, "timeout": 3, "server": 6}
_CUT_FLOOR = 256  # tokens: a shorter text is not cut further, it is refused


Outcome = Literal["ok", "wait", "stop", "input", "answer"]


def _suspected(error: ProviderSuspect) -> Outcome:
    return "wait" if error.what == "server" else "answer"


class Dispatcher:
    """`run` must be running. `want` and `withdraw` never wait."""

    def __init__(
        self,
        provider: Provider,
        *,
        backoff: Backoff | None = None,
        memory: Memory | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._provider = provider
        self._limits = provider.limits
        self._pace = Pace(backoff or Backoff(), self._limits.max_in_flight)
        self.memory = Memory() if memory is None else memory
        self._jitter = jitter
        self._wanted = Wanted()
        self._leaving: list[Pack] = []
        self._sending: dict[int, int] = {}
        self._in_flight = 0
        self._successes = 0
        self._served = False
        self._owes_since: float | None = None
        self._last_failure = ""
        self._wake = asyncio.Event()
        self._listeners: set[Callable[[], None]] = set()
        self.requests: dict[Outcome, Histogram] = {}
        """Seconds of each request, by how it ended."""
        self.request_texts = Histogram(NUMBERS)
        self._told = 0  # tokens, by providers that were replaced

    @property
    def stopped(self) -> str | None:
        """Why the provider says stop, or None."""
        return self._pace.stopped

    @property
    def served(self) -> bool:
        """It has answered at least once."""
        return self._served

    @property
    def limits(self) -> packing.Limits:
        return self._limits

    @property
    def tokens(self) -> int | None:
        """As the provider's answers count them; None where they do not."""
        told = self._provider.tokens
        return None if told is None else self._told + told

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Texts that are wanted and not answered yet."""
        return len(self._wanted)

    def owes(self, now: float) -> tuple[float, str]:
        """Seconds without any answer while texts were wanted, and the last reason it gave; `now`: the loop's time."""
        if not self._wanted or self._owes_since is None:
            return 0.0, ""
        return now - self._owes_since, self._last_failure

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls it when `stopped` changes or the first answer came; returns how to end that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def sent_text(self, text: str) -> str:
        """What would be sent for a text: its head when it is above the provider's limit."""
        limit = self._limits.max_text_tokens
        return packing.cut(text, limit) if limit else text

    def want(self, texts: Iterable[tuple[str, str]], inbox: Inbox, *, later: bool = False) -> None:
        """(hash, text) pairs, each hash once; every one of them is answered to `inbox`, some at once. `later`: what is
        wanted without it goes first."""
        known: list[Answer] = []
        usage = inbox.usage
        if not self._wanted:
            self._owes_since = asyncio.get_running_loop().time()
        for content_hash, text in texts:
            vector = self.memory.get(content_hash)
            if vector is not None:
                known.append(Answer(content_hash, self.sent_text(text), vector))
                usage.save("memory")
                continue
            if self._wanted.join(content_hash, inbox, later=later):
                usage.save("same_batch")
                continue
            sent = self.sent_text(text)
            if sent is not text and len(sent) != len(text):
                usage.texts_cut += 1
            self._wanted.add(content_hash, sent, inbox, later=later)
        if known:
            inbox.put(known)
        if self._wanted.waiting:
            self._wake.set()

    def withdraw(self, inbox: Inbox) -> None:
        """The batch was given up; what nobody else waits for is not sent any more."""
        self._wanted.withdraw(inbox)

    async def replace(self, provider: Provider) -> None:
        """The definition was edited: what waits goes to the new address or key, at once."""
        old, self._provider = self._provider, provider
        self._told += old.tokens or 0
        self._limits = provider.limits
        self._pace.reset(self._limits.max_in_flight)
        self._served = False
        self._notify()
        self._wake.set()
        if not self._sending.get(id(old)):
            await old.close()

    async def run(self) -> None:
        """Sends until cancelled; then the provider is closed. After a failure it may be run again: nothing is lost."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    while self._in_flight < self._pace.window(loop.time()):
                        pack = self._wanted.next(self._limits)
                        if pack is None:
                            break
                        self._in_flight += 1
                        self._leaving.append(pack)
                        tasks.create_task(self._send(pack, self._provider))
                    opens_in = self._pace.opens_in(loop.time()) if self._wanted.waiting else None
                    try:
                        async with asyncio.timeout(opens_in):
                            await self._wake.wait()
                    except TimeoutError:
                        continue
        except asyncio.CancelledError:
            await self._provider.close()
            raise
        finally:
            # tasks that ended before they began
            self._in_flight -= len(self._leaving)
            self._wanted.again(*self._leaving, last=True)
            self._leaving.clear()

    async def _send(self, pack: Pack, provider: Provider) -> None:
        loop = asyncio.get_running_loop()
        self._leaving.remove(pack)
        self._sending[id(provider)] = self._sending.get(id(provider), 0) + 1
        sent = loop.time()
        self._count(pack)
        handled = False
        try:
            matrix = await self._ask(provider, [w.text for w in pack.wants])
            handled = True
            self._succeed(pack.wants, matrix)
        except ProviderRejectedInput as e:
            handled = True
            self._answered()
            self._reject(pack, e)
        except ProviderStop as e:
            handled = True
            self._retried(pack, "stop")
            self._wanted.again(pack)
            if provider is self._provider:
                self._stop(e)
        except ProviderSuspect as e:
            handled = True
            self._retried(pack, _suspected(e))
            await self._suspect(pack, e, provider, sent)
        except ProviderWait as e:
            handled = True
            self._retried(pack, "wait")
            self._wanted.again(pack)
            if provider is self._provider:
                self._wait(e, sent)
        finally:
            if not handled:
                self._wanted.again(pack)
            self._in_flight -= 1
            self._sending[id(provider)] -= 1
            if not self._sending[id(provider)]:
                del self._sending[id(provider)]
                if provider is not self._provider:
                    await provider.close()
            self._wake.set()

    async def _ask(self, provider: Provider, texts: Sequence[str]) -> np.ndarray:
        """Times the request, by how it ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome: Outcome | None = None
        try:
            matrix = await provider.embed(texts, kind="document")
            outcome = "ok"
        except ProviderRejectedInput:
            outcome = "input"
            raise
        except ProviderStop:
            outcome = "stop"
            raise
        except ProviderWait as e:
            outcome = _suspected(e) if isinstance(e, ProviderSuspect) else "wait"
            raise
        finally:
            if outcome is not None:
                self.request_texts.add(len(texts))
                self.requests.setdefault(outcome, Histogram()).add(loop.time() - began)
        return matrix

    def _count(self, pack: Pack) -> None:
        """All batches that wanted it may have been given up since it was packed."""
        asked = [(want, want.inboxes[0].usage) for want in pack.wants if want.inboxes]
        if asked:
            asked[0][1].requests += 1
        for want, usage in asked:
            usage.texts_sent += 1
            usage.tokens += packing.estimate_tokens(want.size)

    @staticmethod
    def _retried(pack: Pack, what: str) -> None:
        for want in pack.wants[:1]:
            for inbox in want.inboxes[:1]:
                inbox.usage.retries[what] += 1

    def _succeed(self, wants: Sequence[Want], matrix: np.ndarray) -> None:
        self._answered()
        self._successes += 1
        raw = np.ascontiguousarray(matrix, dtype="<f4").tobytes()
        step = len(raw) // len(wants)
        keep = self.memory.put
        answers = []
        for i, want in enumerate(wants):
            vector = raw[i * step : i * step + step]
            keep(want.hash, vector)
            answers.append(Answer(want.hash, want.text, vector))
        self._wanted.deliver(wants, answers)

    def _answered(self) -> None:
        self._owes_since = asyncio.get_running_loop().time()
        healed = self._pace.answered()
        if healed or not self._served:
            self._served = True
            if healed:
                _log.info("provider answers again", extra={"action": "provider_healed"})
            self._notify()

    def _stop(self, error: ProviderStop) -> None:
        self._last_failure = str(error)
        if self._pace.stop(error, now=asyncio.get_running_loop().time()):
            _log.error("provider says stop", extra={"action": "provider_stopped", "reason": str(error)})
            self._notify()

    def _wait(self, error: ProviderWait, sent: float) -> None:
        self._last_failure = str(error)
        self._pace.wait(error, sent=sent, now=asyncio.get_running_loop().time(), jitter=self._jitter())
        _log.warning("provider asks to wait", extra={"action": "provider_wait", "reason": str(error)})

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _reject(self, pack: Pack, error: ProviderRejectedInput) -> None:
        """*This input*: a limit is learned, or the request is halved, down to the one text that is refused."""
        wants = pack.wants
        self._retried(pack, "input")
        if len(wants) > 1 and error.limit is not None:
            self._limits = packing.learn(self._limits, error.limit, wants)
            self._wanted.first(wants)
            _log.info("provider limit learned", extra={"action": "limit_learned", "limit": error.limit})
            return
        if len(wants) > 1:
            self._wanted.halve(pack, self._successes)
            return
        want = wants[0]
        tokens = packing.estimate_tokens(want.size)
        if error.limit is not None and self._limits.max_text_tokens and tokens > _CUT_FLOOR:
            want.cut(tokens * 3 // 4)
            self._wanted.again(Pack(wants))
            return
        self._refuse(want, error)

    def _refuse(self, want: Want, error: Exception) -> None:
        self._wanted.deliver([want], [Answer(want.hash, want.text, None, str(error))])

    async def _suspect(self, pack: Pack, error: ProviderSuspect, provider: Provider, sent: float) -> None:
        """Bounded tries, then: halve; a single text that fails alone, again, while others succeed, is refused."""
        if error.good is not None and len(error.bad) < len(pack.wants):
            good = [i for i in range(len(pack.wants)) if i not in error.bad]
            self._succeed([pack.wants[i] for i in good], error.good[good])
            pack.wants = [pack.wants[i] for i in sorted(error.bad)]
        if provider is not self._provider:
            self._wanted.again(pack)
            return
        if pack.mark < 0:
            pack.mark = self._successes
        pack.tries += 1
        if pack.tries >= _SPLIT_AFTER[error.what] or (pack.tries >= 3 and self._successes > pack.mark):
            verdict = await self._others_work(pack, provider)
            if verdict is None:
                if len(pack.wants) > 1:
                    self._wanted.halve(pack, self._successes)
                else:
                    self._refuse(pack.wants[0], error)
                return
            if error.what == "dimensions":
                self._wanted.again(pack)
                self._stop(ProviderStop(error.message, error.cure))
                return
        self._wanted.again(pack, last=True)
        self._wait(error, sent)

    async def _others_work(self, pack: Pack, provider: Provider) -> Exception | None:
        """None when other texts succeed; where there are none, a harmless one is tried."""
        if self._successes > pack.mark:
            return None
        try:
            await provider.embed([_CANARY], kind="document")
        except (ProviderWait, ProviderStop, ProviderRejectedInput) as e:
            return e
        self._answered()
        self._successes += 1
        return None
