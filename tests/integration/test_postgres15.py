"""An older source: the cases that lean on what a server's version decides, run once more on PostgreSQL 15.

The imported tests are the same that run on the newest server; `postgres` is the older one here.
"""

from __future__ import annotations

import pytest

from tests.integration.cdc_world import key
from tests.integration.test_backfill import (
    test_partitioned_table_and_inheritance,
    test_rule_start_horizon_a_prepared_transaction_on_a_partition_is_waited_for,
)
from tests.integration.test_backfill_live import test_backfill_beside_writers_ends_equal
from tests.integration.test_cdc_stream import (
    test_insert_update_delete_reinsert,
    test_key_change,
    test_partitioned_table_and_row_movement,
    test_swapped_keys_in_one_transaction,
    test_truncate,
    test_unchanged_toast,
    test_values_have_one_text_whatever_the_server_is_set_to,
)
from tests.integration.test_cdc_stream_faults import (
    SLOT,
    first_session,
    reasons,
    test_a_missing_right_is_told_and_heals,
    test_a_slot_moved_by_somebody_is_a_gap,
    test_restart_on_loss_slot_dropped,
    test_slot_lost_with_policy_halt,
    test_table_taken_out_of_the_publication,
    test_walsender_terminated,
    world,
)
from tests.integration.test_cdc_stream_service import test_streams_beside_a_backfill_and_leaves_nothing_behind
from tests.integration.test_preflight import (
    checks,
    defined,
    test_all_is_well,
    test_keys_and_identities,
    test_rights_of_a_plain_role,
    test_what_the_publication_really_publishes,
)
from tests.integration.test_source import test_release_drops_slot_and_publication, test_unusual_keys_read_by_key
from tests.plugins.eventually import eventually
from tests.plugins.postgres15 import OlderDatabase

__all__ = [
    "test_a_missing_right_is_told_and_heals",
    "test_a_slot_moved_by_somebody_is_a_gap",
    "test_all_is_well",
    "test_backfill_beside_writers_ends_equal",
    "test_insert_update_delete_reinsert",
    "test_key_change",
    "test_keys_and_identities",
    "test_partitioned_table_and_inheritance",
    "test_partitioned_table_and_row_movement",
    "test_release_drops_slot_and_publication",
    "test_restart_on_loss_slot_dropped",
    "test_rights_of_a_plain_role",
    "test_rule_start_horizon_a_prepared_transaction_on_a_partition_is_waited_for",
    "test_slot_lost_with_policy_halt",
    "test_streams_beside_a_backfill_and_leaves_nothing_behind",
    "test_swapped_keys_in_one_transaction",
    "test_table_taken_out_of_the_publication",
    "test_truncate",
    "test_unchanged_toast",
    "test_unusual_keys_read_by_key",
    "test_values_have_one_text_whatever_the_server_is_set_to",
    "test_walsender_terminated",
    "test_what_the_publication_really_publishes",
]


@pytest.fixture
def postgres(postgres15: OlderDatabase) -> OlderDatabase:
    return postgres15


@pytest.mark.parametrize("remade", [False, True])
async def test_a_slot_whose_publication_was_dropped_is_made_anew(postgres: OlderDatabase, remade: bool) -> None:
    """Before PostgreSQL 18 it can never be read again, whoever makes the publication anew."""
    w, table = await world(postgres)  # type: ignore[arg-type]
    await first_session(w, table)
    async with w.reading():
        made_by_hand = f"CREATE PUBLICATION {SLOT} FOR TABLE items WITH (publish_via_partition_root)"
        unseen = (f"DROP PUBLICATION {SLOT}", "INSERT INTO items VALUES (2, 'unseen', 1)")
        await w.sql(*unseen, *([made_by_hand] if remade else []))
        await eventually(lambda: w.stream.fresh and w.stream.live and table.id in w.stream.routed)
        assert await reasons(w, table)
        await w.sql("INSERT INTO items VALUES (3, 'c', 1)")
        assert key(id=3) in await w.rows(table)


async def test_a_generated_column_is_refused(postgres: OlderDatabase) -> None:
    """It is not on the wire before PostgreSQL 18, and the doctor says what to do."""
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, a text, g text GENERATED ALWAYS AS (a || '!') STORED)")
    found = await checks(postgres.dsn, defined("t", ("id",), ("a", "g")))
    assert not found["generated_columns"].ok
    assert "18" in found["generated_columns"].cure
    assert (await checks(postgres.dsn, defined("t", ("id",), ("a",))))["generated_columns"].ok
