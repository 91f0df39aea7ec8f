"""The start gate: go on only where nothing can have been lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdc.gate import Identity, decide, parse_history
from cdc.slots import SlotState
from walvec.contracts.errors import DecodeError
from walvec.definitions.model import SourceProgress

NOW = Identity("sys", 1, "log", "shop")
STORED = SourceProgress(2, 500, "sys", 1, "log", 10)
SLOT = SlotState(400, False, "", False, "shop")


def test_first_start_makes_the_slot() -> None:
    found = decide(SourceProgress(), None, NOW, 0)
    assert (found.slot, found.gap, found.epoch, found.fresh) == ("create", None, 0, True)


def test_stored_above_the_slot_goes_on() -> None:
    found = decide(STORED, SLOT, NOW, 0)
    assert (found.slot, found.gap, found.epoch, found.fresh) == ("keep", None, 2, False)


def test_stored_below_the_slot_is_a_gap() -> None:
    found = decide(STORED, replace(SLOT, confirmed=501), NOW, 0)
    assert found.slot == "keep"
    assert found.gap


def test_a_new_log_is_a_gap() -> None:
    assert decide(STORED, SLOT, replace(NOW, log_identity="other"), 0).gap


@pytest.mark.parametrize("slot", [None, replace(SLOT, lost=True, reason="wal_removed"), replace(SLOT, database="x")])
def test_restart_on_loss_a_lost_slot_is_a_gap(slot: SlotState | None) -> None:
    found = decide(STORED, slot, NOW, 0)
    assert found.gap
    assert found.lost
    assert found.fresh


def test_epoch_grows_with_another_server() -> None:
    found = decide(STORED, SLOT, replace(NOW, system_identifier="other"), 0)
    assert (found.epoch, found.slot) == (3, "recreate")
    assert found.gap
    assert not found.lost


@pytest.mark.parametrize(
    ("fork", "highest", "epoch"), [(500, 500, 2), (499, 0, 3), (600, 601, 3), (600, 600, 2), (None, 0, 3)]
)
def test_epoch_grows_with_a_fork_below_what_was_read(fork: int | None, highest: int, epoch: int) -> None:
    now = replace(NOW, timeline=2, ends=() if fork is None else ((1, fork),))
    found = decide(STORED, SLOT, now, highest)
    assert found.epoch == epoch
    assert bool(found.gap) == (epoch == 3)


def test_history_files() -> None:
    assert parse_history("1\t0/1F4\tno recovery target\n\n2\t1/0\tx\n") == ((1, 500), (2, 2**32))
    with pytest.raises(DecodeError):
        parse_history("1 nonsense\n")
