"""What becomes of a vector table's generations: every transition, those that are refused as well."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from walvec.contracts.errors import Conflict, PreconditionFailed
from walvec.definitions import generations, revisions, transitions
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable

ID = SourceColumn("id", "bigint", 20, "bigint", "int", nullable=False)
NAME = SourceColumn("name", "text", 25, "text", "text")
FIRST = Generation(1, "active", "minilm", 256, (Column("name", "embedding"),), (ID,), (ID, NAME), ready=True)
TABLE = VectorTable(
    "vt_1", "products", "conn_1", "emb_1", "static", "public", "products", "pgvector", "managed", (FIRST,),
    backfilled=True,
)  # fmt: skip


def another(table: VectorTable, **changes: Any) -> Generation:
    fields: dict[str, Any] = {"number": table.next_generation, "separator": " ", **changes}
    return replace(FIRST, **fields)


def building(table: VectorTable = TABLE, **changes: Any) -> VectorTable:
    return generations.entered(table, another(table, **changes), {})


def filled_and_ready(table: VectorTable) -> VectorTable:
    assert table.building is not None
    number = table.building.number
    return generations.ready(generations.filled(table, number), number)


def swapping(table: VectorTable = TABLE) -> VectorTable:
    found = filled_and_ready(building(table))
    return generations.swap_begun(found, found.generations[-1].number, fills=1, reading=False)


def swapped(table: VectorTable = TABLE, **changes: Any) -> VectorTable:
    found = filled_and_ready(building(table, **changes))
    number = found.generations[-1].number
    return generations.swapped(
        generations.swap_begun(found, number, fills=1, reading=False), number, "2026-01-01T01:00:00Z"
    )


def states(table: VectorTable) -> dict[int, str]:
    return {g.number: g.state for g in table.generations}


def test_a_rebuild_enters_a_generation_that_is_fed_and_not_served() -> None:
    table = building(ready=True, filled=True, swapping=True, kept_until="x", stalled="y")
    assert states(table) == {1: "active", 2: "building"}
    assert table.active == FIRST
    assert [g.number for g in table.live_generations] == [1, 2]
    assert table.pending_rebackfill
    found = table.building
    assert found is not None
    assert not any((found.ready, found.filled, found.swapping, found.kept_until, found.stalled))
    assert (found.embedding_provider_id, found.provider_kind) == ("emb_1", "static")


@pytest.mark.parametrize("number", [1, 3])
def test_another_number_than_the_next_is_refused(number: int) -> None:
    with pytest.raises(Conflict, match="not the next one") as refused:
        generations.entered(TABLE, replace(FIRST, number=number), {})
    assert refused.value.code == "generation_taken"


def test_never_back_a_number_is_given_once() -> None:
    """Rule never-back."""
    table = generations.aborted(building())
    assert (states(table), table.next_generation) == ({1: "active"}, 3)
    again = building(table)
    assert states(again) == {1: "active", 3: "building"}
    retired = swapped(table)
    assert generations.expired(retired, 1).next_generation == 4


def test_another_rebuild_replaces_the_one_before_and_keeps_its_vectors_until_the_swap() -> None:
    table = building(building())
    assert states(table) == {1: "active", 2: "retired", 3: "building"}
    assert [g.number for g in table.live_generations] == [1, 3]
    assert table.previous is None, "what never was active is nothing to go back to"
    found = filled_and_ready(table)
    done = generations.swapped(generations.swap_begun(found, 3, fills=1, reading=False), 3, "later")
    assert states(done) == {1: "retired", 3: "active"}
    assert states(generations.aborted(table)) == {1: "active"}


def test_fields_of_the_table_change_along() -> None:
    table = generations.entered(TABLE, another(TABLE), {"name": "goods", "keep_previous": 0})
    assert (table.name, table.keep_previous) == ("goods", 0)
    assert table.storage_name == TABLE.storage_name, "topics and storage keep their name"
    with pytest.raises(ValueError, match="backfilled"):
        generations.entered(TABLE, another(TABLE), {"backfilled": False})


def test_a_table_that_nobody_read_gets_another_definition_at_once() -> None:
    unread = replace(TABLE, backfilled=False)
    new = another(unread, embedding_provider_id="emb_2", provider_kind="openai")
    table = generations.replaced_active(unread, new, {"name": "goods"}, read=False)
    assert states(table) == {2: "active"}
    assert (table.embedding_provider_id, table.provider_kind, table.name) == ("emb_2", "openai", "goods")
    for read, other in ((True, unread), (False, TABLE), (False, building(unread))):
        with pytest.raises(Conflict):
            generations.replaced_active(other, another(other), {}, read=read)


def test_fed_or_read_a_swap_begins_only_with_all_rows_and_indexes_and_no_reading() -> None:
    """Rule fed-or-read: a generation that is read again does not serve before that is done."""
    table = building()
    for missing in (table, generations.filled(table, 2), generations.ready(table, 2)):
        assert generations.swap_begun(missing, 2, fills=1, reading=False) == missing
    whole = filled_and_ready(table)
    assert generations.swap_begun(whole, 2, fills=1, reading=True) == whole
    again = generations.unfilled(whole, 2)
    assert generations.swap_begun(again, 2, fills=1, reading=False) == again
    refilled = generations.filled(again, 2)
    assert generations.swap_begun(refilled, 2, fills=1, reading=False) == refilled, "drained before it was read again"
    assert generations.swap_begun(refilled, 2, fills=2, reading=False) != refilled
    begun = generations.swap_begun(whole, 2, fills=1, reading=False)
    assert begun.generation(2) == replace(whole.generations[1], swapping=True)
    assert generations.swap_begun(begun, 2, fills=1, reading=False) == begun
    for gone in (generations.stalled(whole, 2, "no"), generations.aborted(whole), TABLE):
        assert generations.swap_begun(gone, 2, fills=1, reading=False) == gone


def test_a_swap_is_one_step() -> None:
    table = swapped(embedding_provider_id="emb_2", provider_kind="openai")
    assert states(table) == {1: "retired", 2: "active"}
    old, new = table.generations
    assert (old.kept_until, old.embedding_provider_id, old.provider_kind) == ("2026-01-01T01:00:00Z", "emb_1", "static")
    assert not new.swapping
    assert (table.embedding_provider_id, table.provider_kind) == ("emb_2", "openai")
    assert table.provider_of(new) == "emb_2"
    assert table.backfilled
    assert not table.pending_rebackfill
    assert [g.number for g in table.live_generations] == [2]


def test_a_swap_is_finished_once_and_only_if_it_was_begun() -> None:
    unfinished = filled_and_ready(building())
    assert generations.swapped(unfinished, 2, "later") == unfinished
    done = swapped()
    assert generations.swapped(done, 2, "much later") == done


def test_a_provider_that_stopped_blocks_nobody_after_a_swap_to_another() -> None:
    blocked = replace(swapping(), blocked="no credit")
    other = tuple(replace(g, embedding_provider_id="emb_2") if g.swapping else g for g in blocked.generations)
    assert generations.swapped(replace(blocked, generations=other), 2, "").blocked is None
    assert generations.swapped(blocked, 2, "").blocked == "no credit"


@pytest.mark.parametrize(
    "act",
    [
        lambda t: generations.entered(t, another(t), {}),
        generations.aborted,
        generations.rolled_back,
        generations.retried,
    ],
)
def test_while_it_is_swapped_in_nothing_else_becomes_of_it(act: Callable[[VectorTable], VectorTable]) -> None:
    with pytest.raises(Conflict) as refused:
        act(swapping(swapped()))
    assert refused.value.code == "swap_in_progress"


def test_a_swap_that_the_store_refuses_is_undone() -> None:
    table = generations.swap_undone(swapping(), 2, "a view depends on it")
    assert states(table) == {1: "active", 2: "stalled"}
    found = table.building
    assert found is not None
    assert (found.stalled, found.swapping) == ("a view depends on it", False)
    assert table.pending_rebackfill
    assert generations.swap_undone(swapped(), 2, "late") == swapped()


def test_only_what_is_built_stalls() -> None:
    table = generations.stalled(building(), 2, "no credit")
    assert states(table) == {1: "active", 2: "stalled"}
    assert [g.number for g in table.live_generations] == [1]
    assert table.pending_rebackfill
    assert generations.stall_of(table, 2) == "stalled"
    assert generations.stalled(table, 2, "again") == table
    for serves in (swapping(), swapped()):
        assert generations.stalled(serves, 2, "late") == serves
        assert generations.stall_of(serves, 2) == "serves"
    assert generations.stall_of(generations.aborted(table), 2) == "gone"
    assert generations.stall_of(swapped(), 1) == "stalled", "what is retired is not fed: its records may be passed over"


def test_nothing_fills_or_readies_what_is_not_fed() -> None:
    table = generations.stalled(building(), 2, "no credit")
    assert generations.filled(table, 2) == table
    assert generations.filled(table, 9) == table


def test_never_back_a_retry_is_a_new_generation_of_the_same_definition() -> None:
    """Rule never-back: a role that has not heard of the retry waits for the number, and misses nothing."""
    table = generations.retried(generations.stalled(building(), 2, "no credit"))
    assert states(table) == {1: "active", 2: "retired", 3: "building"}
    old, new = table.generations[1:]
    assert (new.columns, new.separator, new.stalled) == (old.columns, old.separator, None)
    assert generations.retried(building()) == building(), "it is fed still: it is only read again"
    with pytest.raises(Conflict) as refused:
        generations.retried(TABLE)
    assert refused.value.code == "nothing_to_abort"


def test_never_back_a_rollback_is_a_new_generation_of_the_previous_definition() -> None:
    table = generations.rolled_back(swapped(embedding_provider_id="emb_2", provider_kind="openai"))
    assert states(table) == {1: "retired", 2: "active", 3: "building"}
    found = table.building
    assert found is not None
    assert (found.separator, found.embedding_provider_id) == (FIRST.separator, "emb_1")
    assert generations.expired(table, 1) == table, "its vectors are wanted"
    whole = filled_and_ready(table)
    back = generations.swapped(generations.swap_begun(whole, 3, fills=1, reading=False), 3, "later")
    assert (back.embedding_provider_id, back.provider_kind) == ("emb_1", "static")
    assert back.previous is not None
    assert back.previous.number == 2, "and forward again"
    with pytest.raises(Conflict) as refused:
        generations.rolled_back(building())
    assert refused.value.code == "nothing_to_roll_back"


def test_an_abort_leaves_what_it_was_before() -> None:
    for table in (building(), generations.stalled(building(), 2, "no"), filled_and_ready(building())):
        assert replace(generations.aborted(table), last_generation=0) == TABLE
    with pytest.raises(Conflict) as refused:
        generations.aborted(TABLE)
    assert refused.value.code == "nothing_to_abort"


def test_only_what_is_retired_expires() -> None:
    assert states(generations.expired(swapped(), 1)) == {2: "active"}
    for other in (swapped(), building()):
        assert generations.expired(other, 2) == other


def test_a_backfill_of_what_is_not_fed_is_refused() -> None:
    for table, number in ((swapped(), 1), (generations.stalled(building(), 2, ""), 2), (TABLE, 2)):
        with pytest.raises(Conflict):
            generations.check_fed(table, number)
    for number in (0, 1, 2):
        generations.check_fed(building(), number)


def test_a_rebackfill_of_the_active_one_leaves_the_rebuild_pending() -> None:
    table = generations.filled(building(), 1)
    assert table.pending_rebackfill
    assert generations.filled(replace(TABLE, backfilled=False, pending_rebackfill=True), 1) == TABLE


def test_a_definition_made_before_a_swap_takes_nothing_back() -> None:
    before = filled_and_ready(building(embedding_provider_id="emb_2", provider_kind="openai"))
    after = generations.swapped(generations.swap_begun(before, 2, fills=1, reading=False), 2, "later")
    put = transitions.put(after, replace(before, keep_previous=5), "now")
    assert put == replace(after, keep_previous=5, updated_at="now")


def test_a_definition_made_before_an_abort_brings_nothing_back() -> None:
    after = generations.aborted(building())
    assert transitions.put(after, replace(building(), name="goods"), "now") == replace(
        after, name="goods", storage=TABLE.storage_name, updated_at="now"
    )


def test_known_generation_another_text_under_the_same_number_passes_one_by() -> None:
    """As a changed source is mended in place: who knows the former text alone can tell that it is behind."""
    mended = tuple(replace(g, separator=" | ") for g in TABLE.generations)
    put = transitions.put(TABLE, replace(TABLE, generations=mended), "now")
    assert (put.active.number, put.next_generation) == (1, TABLE.next_generation + 1)
    flat = tuple(replace(g, index={"kind": "none"}) for g in put.generations)
    assert transitions.put(put, replace(put, generations=flat), "now").next_generation == put.next_generation


def test_loose_changes_of_a_generation_are_taken() -> None:
    flat = tuple(replace(g, index={"kind": "none"}) for g in TABLE.generations)
    assert transitions.put(TABLE, replace(TABLE, generations=flat), "now").active.index == {"kind": "none"}


@pytest.mark.parametrize("before", [TABLE, building()], ids=["before the rebuild", "while it was built"])
def test_never_back_what_was_put_of_a_definition_whose_generation_is_gone(before: VectorTable) -> None:
    """Swapped, and nothing kept, between a writer's look and its write: its storage is dropped already."""
    now = generations.expired(swapped(), 1)
    assert states(now) == {2: "active"}
    with pytest.raises(PreconditionFailed):
        transitions.put(now, replace(before, keep_previous=5), "now")


def test_a_revision_covers_what_a_user_says_and_nothing_else() -> None:
    first = revisions.etag(TABLE)
    written = replace(
        TABLE, paused=True, blocked="x", dead_in_row=3, updated_at="later", backfilled=False, error={"kind": "k"}
    )
    assert revisions.etag(written) == first
    second = revisions.etag(building())
    assert second != first
    for same in (filled_and_ready(building()), swapping(), swapped(), generations.stalled(building(), 2, "no")):
        assert revisions.etag(same) == second
    assert revisions.etag(generations.aborted(building())) == first
    assert len({revisions.etag(replace(TABLE, **change)) for change in SAID}) == len(SAID)


SAID: tuple[dict[str, Any], ...] = (
    {"name": "goods"},
    {"keep_previous": 0},
    {"sync_mode": "batch"},
    {"backfill": "manual"},
    {"embedding_provider_id": "emb_2"},
    {"generations": (replace(FIRST, columns=(Column("name", "embedding", name_prefix="Name: "),)),)},
    {"generations": (replace(FIRST, index={"kind": "none"}),)},
)
