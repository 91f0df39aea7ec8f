"""The decisions without a loop: offsets, coalescer, planner, packing, pace, what an answer means."""

from dataclasses import dataclass, replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import packing
from embedder.coalescer import coalesce, collapse
from embedder.memory import Memory
from embedder.offsets import Offsets, Ticket
from embedder.pace import Backoff, Pace
from embedder.packing import Limits
from embedder.planner import Claim, Delete, Embed, Planner, Reread, Truncate
from embedder.providers import answers
from embedder.providers.port import ProviderSuspect
from tests.plugins.embedder_world import change, generation, key
from walvec.contracts.errors import ProviderRejectedInput, ProviderStop, ProviderWait
from walvec.contracts.sources import ReadRow

PLANNER = Planner(generation(), "openai")
FILL = PLANNER.fillable


@given(st.permutations(range(8)), st.integers(1, 8))
def test_commit_after_output_never_passes_a_batch_in_work(order: list[int], finished: int) -> None:
    offsets = Offsets()
    tickets = [offsets.begin({0: 10 * (i + 1)}) for i in range(8)]
    committed = 0
    done: set[int] = set()
    for i in order[:finished]:
        done.add(i)
        committed = max(committed, offsets.done(tickets[i]).get(0, 0))
        gap_free = next((n for n in range(8) if n not in done), 8)
        assert committed == 10 * gap_free


def test_revoked_partitions_commit_nothing() -> None:
    offsets = Offsets()
    ticket: Ticket = offsets.begin({0: 5, 1: 7})
    offsets.forget([0])
    assert offsets.done(ticket) == {1: 7}
    assert offsets.idle


def test_collapse_position_is_the_highest_not_the_last_in_the_log() -> None:
    found = coalesce([change(1, 9, "new", op="u"), change(1, 7, "old", op="r")], 1, FILL)
    assert [c.position.lsn for c in found] == [9]
    assert found[0].after == change(1, 9, "new").after


def test_forced_wins_a_tie_and_any_forced_member_forces() -> None:
    back = change(1, 9, op="r", text="T: x", force=True)
    assert collapse([back, change(1, 9, "x", op="u")], FILL).text == "T: x"
    assert collapse([change(1, 9, "x", op="u"), change(1, 3, op="r", text="T: x", force=True)], FILL).force


def test_the_result_keeps_the_before_of_its_oldest_member() -> None:
    members = [
        change(1, 9, "b", op="u", before={"title": "b", "body": None}),
        change(1, 5, "b", op="u", before={"title": "a", "body": None}),
    ]
    found = collapse(members, FILL)
    assert found.before == {"title": "a", "body": None}
    assert isinstance(PLANNER.plan(found), Embed)


def test_truncates_and_other_generations() -> None:
    records = [
        change(0, 5, op="t", newest=2),
        change(1, 6, "a", generation=2),
        change(2, 7, "b", newest=2),
        change(0, 8, op="t", generation=1),
    ]
    assert [(c.op, c.position.lsn) for c in coalesce(records, 1, FILL)] == [("t", 5), ("t", 8), ("c", 7)]
    assert [(c.op, c.position.lsn) for c in coalesce(records, 2, FILL)] == [("t", 5), ("c", 6), ("c", 7)]


def test_collapsed_unchanged_column_takes_its_own_old_image_never_the_oldest() -> None:
    members = [
        change(1, 5, "t", op="u", body="B", before={"title": "t", "body": "A"}),
        change(1, 9, "t", op="u", unchanged=("body",), before={"title": "t", "body": "B"}),
    ]
    plan = PLANNER.plan(collapse(members, FILL))
    assert isinstance(plan, Embed)
    assert plan.row.text == "T: t\nB"


def test_collapsed_unchanged_column_without_an_old_image_is_read_and_embedded_in_full() -> None:
    members = [change(1, 5, "t", op="u", body="B"), change(1, 9, op="u", unchanged=("title", "body"))]
    plan = PLANNER.plan(collapse(members, FILL))
    assert isinstance(plan, Reread)
    assert not plan.proved
    assert isinstance(PLANNER.complete(plan, ReadRow({"title": "t", "body": "B"})), Embed)


def test_unchanged_in_every_member_stays_a_proof() -> None:
    members = [change(1, n, op="u", unchanged=("title", "body")) for n in (5, 9)]
    plan = PLANNER.plan(collapse(members, FILL))
    assert isinstance(plan, Reread)
    assert plan.proved


def test_plans() -> None:
    assert isinstance(PLANNER.plan(change(1, 5, op="d")), Delete)
    assert isinstance(PLANNER.plan(change(0, 5, op="t")), Truncate)
    assert isinstance(PLANNER.plan(change(1, 5, None, body="\u2003\n")), Delete)
    assert isinstance(PLANNER.plan(change(1, 5, "", body="")), Delete)
    same = change(1, 5, "a", op="u", before={"title": "a", "body": None})
    assert isinstance(PLANNER.plan(same), Claim)
    assert isinstance(PLANNER.plan(replace(same, force=True)), Embed)
    assert isinstance(PLANNER.plan(replace(same, before={"title": "a"})), Embed)
    assert isinstance(PLANNER.plan(replace(same, before={"title": "b", "body": None})), Embed)


def test_old_image_fills_unchanged_columns() -> None:
    plan = PLANNER.plan(change(1, 5, "n", op="u", unchanged=("body",), before={"title": "o", "body": "B"}))
    assert isinstance(plan, Embed)
    assert plan.row.text == "T: n\nB"
    kept = PLANNER.plan(change(1, 5, "n", op="u", unchanged=("body",), before={"title": "n", "body": "B"}))
    assert isinstance(kept, Claim)


def test_unchanged_metadata_is_read() -> None:
    plan = PLANNER.plan(change(1, 5, "n", op="u", unchanged=("price",)))
    assert isinstance(plan, Reread)
    assert plan.columns == ("price",)
    full = PLANNER.complete(plan, ReadRow({"id": 1, "title": "later", "body": "x", "price": "3"}))
    assert isinstance(full, Embed)
    assert (full.row.text, full.row.metadata) == ("T: later\nx", {"price": "3"})  # never a mix of two versions
    assert full.row.position == plan.change.position


@dataclass
class _Text:
    size: int


def test_packing_by_items_tokens_and_bytes() -> None:
    texts = [_Text(100)] * 10
    assert packing.head(texts, Limits(max_items=4)) == 4
    assert packing.head(texts, Limits(max_tokens=60)) == 2
    assert packing.head(texts, Limits(max_bytes=350)) == 3
    assert packing.head([_Text(10_000)], Limits(max_bytes=10)) == 1
    assert packing.learn(Limits(), "items", texts).max_items == 5
    assert packing.learn(Limits(), "tokens", texts).max_tokens == 125
    assert packing.learn(Limits(), "bytes", texts).max_bytes == 500


@given(st.text(), st.integers(1, 10))
def test_cut_is_a_head_within_the_limit(text: str, tokens: int) -> None:
    found = packing.cut(text, tokens)
    assert text.startswith(found)
    assert found == text or len(found.encode()) <= 4 * tokens


def test_memory_is_bounded() -> None:
    memory = Memory(max_bytes=2000)
    for i in range(100):
        memory.put(str(i), b"x" * 300)
    assert len(memory) == 4
    assert memory.get("99")
    assert memory.get("0") is None


def test_pace_pauses_probes_and_heals() -> None:
    pace = Pace(Backoff(first=1, longest=60, first_probe=1), 4)
    pace.wait(ProviderWait("x", retry_after=7), sent=0, now=0, jitter=0)
    assert pace.window(6.9) == 0
    assert pace.window(7.0) == 2
    gaps = []
    now = 10.0
    for _ in range(9):
        pace.stop(ProviderStop("bill"), now=now)
        gap = pace.opens_in(now)
        assert gap is not None
        gaps.append(gap)
        now += gap
        assert pace.window(now) == 1
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pace.answered()
    assert pace.stopped is None
    assert pace.window(now) >= 1


def test_requests_in_flight_together_are_one_failure() -> None:
    pace = Pace(Backoff(first=1, longest=60), 8)
    for _ in range(8):
        pace.wait(ProviderWait("x"), sent=0, now=1, jitter=1)
    assert pace.opens_in(1) == pytest.approx(1)


def _failure(status: int, body: bytes = b"{}", items: int = 2, **headers: str) -> Exception:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return answers.failure(status, named, body, items=items, now=1000.0, secret="sk-secret")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "3"}, 3),
        ({"retry_after": formatdate(1030, usegmt=True)}, 30),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-5"}, None),
        ({"x_ratelimit_reset_tokens": "6m0s"}, 360),
        ({"x_ratelimit_reset_requests": "20ms"}, 0.02),
        ({"x_ratelimit_reset_requests": "5s", "x_ratelimit_remaining_requests": "9"}, None),
        ({"x_ratelimit_reset_requests": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    error = _failure(429, **headers)
    assert isinstance(error, ProviderWait)
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b'{"error":{"code":"rate_limit_exceeded"}}', ProviderWait),
        (429, b'{"error":{"type":"insufficient_quota","code":"x"}}', ProviderStop),
        (429, b'{"error":{"code":"project_spend_limit_exceeded"}}', ProviderStop),
        (401, b"", ProviderStop),
        (402, b"", ProviderStop),
        (403, b"", ProviderStop),
        (404, b"", ProviderStop),
        (302, b"", ProviderStop),
        (408, b"", ProviderWait),
        (409, b"", ProviderWait),
        (425, b"", ProviderWait),
        (503, b"<html>", ProviderWait),
        (500, b"", ProviderSuspect),
        (424, b"", ProviderSuspect),
        (400, b'{"error":{"param":"dimensions","message":"no"}}', ProviderStop),
        (400, b'{"error":{"message":"API key not valid"}}', ProviderStop),
        (400, b'{"error":"bad input"}', ProviderRejectedInput),
        (413, b"", ProviderRejectedInput),
        (422, b'{"detail":[{"msg":"x"}]}', ProviderRejectedInput),
    ],
)
def test_three_classes(status: int, body: bytes, kind: type[Exception]) -> None:
    error = _failure(status, body)
    assert isinstance(error, kind)
    assert isinstance(error, ProviderSuspect) == (kind is ProviderSuspect)


@pytest.mark.parametrize(
    ("status", "message", "items", "limit"),
    [
        (400, "Requested 9 tokens, max 5 tokens per request", 5, "tokens"),
        (400, "batch size 64 > maximum allowed batch size 32", 5, "items"),
        (413, "Payload too large", 5, "bytes"),
        (400, "maximum context length is 8192 tokens", 1, "tokens"),
        (400, "maximum context length is 8192 tokens", 5, None),
        (400, "bad word", 5, None),
    ],
)
def test_limits_named_by_an_answer(status: int, message: str, items: int, limit: str | None) -> None:
    error = _failure(status, b'{"error":{"message":"%b"}}' % message.encode(), items)
    assert isinstance(error, ProviderRejectedInput)
    assert error.limit == limit


def test_no_secret_in_an_error() -> None:
    error = _failure(401, b'{"error":{"message":"wrong key sk-secret, or sk-abcdefghij***"}}')
    assert "sk-" not in str(error)
    assert key(1)
