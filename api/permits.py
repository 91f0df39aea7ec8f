"""What the table of `lifecycle` refuses, as the API's error."""

from __future__ import annotations

from collections.abc import Sequence

from api.lifecycle import Event, Refusal, after, facts_of, layers_of, said
from api.problems import Problem
from walvec.definitions.model import SyncStatus, Task, VectorTable


def permit(table: VectorTable, tasks: Sequence[Task], event: Event, cure: str = "") -> SyncStatus:
    """The state afterwards. `tasks`: the table's recent ones, newest first. Raises Problem."""
    layers = layers_of(table, tasks)
    found = after(layers, event, facts_of(table, tasks))
    if isinstance(found, Refusal):
        raise refusal(found, table, layers[0][1], cure)
    if found is None or found == "deleted":
        return layers[0][1]
    return found


def refusal(found: Refusal, table: VectorTable, state: SyncStatus, cure: str = "") -> Problem:
    message, known = said(found, table, state)
    return Problem(found.status, found.code, message, cure or known)
