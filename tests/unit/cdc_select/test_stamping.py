"""The stamp's rules, each with its counterexample."""

from cdc.stamping import ReadAgain, Reading, judge, outranks, strict_horizon
from cdc.stream import Delivered
from walvec.contracts.position import Position
from walvec.contracts.snapshots import XidSnapshot


def snapshot(text: str) -> XidSnapshot:
    return XidSnapshot.parse(text)


def stamp(text: str, delivered: list[tuple[int, int]], *, mark: int = 1000, horizon: int = 0) -> Position | ReadAgain:
    return judge(Reading(1, mark, snapshot(text)), session=1, epoch=3, delivered=delivered, horizon=horizon)


def test_all_seen_gives_the_watermark() -> None:
    assert stamp("760:760:", [(750, 900), (759, 990)]) == Position(3, 1000, 0)


def test_rule_visibility_listed_transaction_lowers_the_stamp() -> None:
    assert stamp("756:760:756", [(755, 800), (756, 900), (757, 950)]) == Position(3, 900, 0)


def test_rule_snapshot_xmax_unlisted_waiting_transaction_lowers_the_stamp() -> None:
    # seen with a transaction that waits for its standby: xid 756 is running and not listed
    assert stamp("756:756:", [(756, 900)]) == Position(3, 900, 0)


def test_rule_visibility_earliest_unseen_wins_whatever_the_order() -> None:
    assert stamp("700:700:", [(702, 950), (701, 900), (703, 970)]) == Position(3, 900, 0)


def test_rule_stamp_ordinal_stays_below_a_commit_at_the_same_lsn() -> None:
    found = stamp("760:760:", [])
    assert isinstance(found, Position)
    assert found < Position(3, 1000, 1)


def test_delivered_behind_the_watermark_does_not_raise_the_stamp() -> None:
    assert stamp("700:700:", [(701, 2000)]) == Position(3, 1000, 0)


def test_rule_memory_a_read_of_an_earlier_session_is_read_again() -> None:
    found = judge(Reading(1, 1000, snapshot("760:760:")), session=2, epoch=0, delivered=[], horizon=0)
    assert isinstance(found, ReadAgain)


def test_rule_start_horizon_an_older_open_transaction_makes_it_read_again() -> None:
    assert stamp("740:760:740", [], horizon=750) == ReadAgain(
        "transactions older than the start of the stream are still open", 750
    )
    assert stamp("750:760:750", [], horizon=750) == Position(3, 1000, 0)


def test_rule_start_horizon_has_no_exception_for_what_was_delivered() -> None:
    assert isinstance(stamp("740:760:740", [(740, 900)], horizon=750), ReadAgain)


def test_horizon_of_a_mere_restart_is_not_strict() -> None:
    assert strict_horizon(fresh=False, session_horizon=900, table_horizon=0) == 0
    assert strict_horizon(fresh=True, session_horizon=900, table_horizon=0) == 900
    assert strict_horizon(fresh=False, session_horizon=900, table_horizon=700) == 700


def test_rule_replay_above_a_tie_does_not_settle() -> None:
    letter = Position(0, 900, 1)
    assert not outranks(Position(0, 900, 0), letter)
    assert not outranks(letter, letter)
    assert outranks(Position(0, 901, 0), letter)


def test_rule_visibility_what_is_forgotten_while_a_chunk_is_open_still_counts_for_it() -> None:
    delivered = Delivered()
    window = delivered.open()
    delivered.add(756, 900)
    delivered.forget({756})  # a later snapshot sees it; the open chunk's does not
    assert stamp("756:756:", [*window, *delivered.commits]) == Position(3, 900, 0)
    delivered.close(window)
    delivered.add(757, 950)
    delivered.forget({757})
    assert (757, 950) not in window
    assert delivered.windows == []
