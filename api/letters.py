"""`…/dead-letters`: changes that could not be processed, with their reasons; replayed or dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Query

from api import shapes
from api.pages import Place, foreign, page, place_of
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.schemas import Replay
from api.services import Services, Use
from api.verify import open_letters
from walvec.contracts.letters import DeadLetter
from walvec.definitions.model import Task, VectorTable

router = APIRouter(prefix="/v1/vector-tables/{table_id}", tags=["dead letters"])
_PER_TASK = 5_000


@router.get("/dead-letters")
async def listed(table_id: str, services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    table = await services.table(table_id)
    after = _after(cursor) if cursor is not None else 0
    found = await services.control.letters.page(table.id, limit=limit + 1, after_id=after)
    some, pagination = page(found, limit, cursor, _place)
    return Json(
        {
            "dead_letters": [shapes.letter(v) for v in some],
            "total": await services.control.letters.count(table.id),
            "pagination": pagination,
        }
    )


def _place(letter: DeadLetter) -> Place:
    """Its number alone: a newer change of the key gives a letter another time, and leaves it where it is."""
    return "", f"{letter.id:019d}"


def _after(cursor: str) -> int:
    at, number = place_of(cursor)
    if at or not re.fullmatch("[0-9]{19}", number) or int(number) >= 2**63:
        raise foreign()
    return int(number)


@router.get("/dead-letters/{letter_id:int}")
async def one(table_id: str, letter_id: int, services: Use) -> Json:
    table = await services.table(table_id)
    return Json(shapes.letter((await _these(services, table, [letter_id]))[0], whole=True))


@router.post("/dead-letters/replay")
async def replay(table_id: str, services: Use, body: Replay | None = None) -> Json:
    """Their rows are read again, with a new stamp; a letter leaves the list when its new record is durable."""
    table = await services.table(table_id)
    if body is None or body.ids is None:
        letters = await open_letters(services, table)
    else:
        letters = await _these(services, table, body.ids)
    tasks = await replay_letters(services, table, letters)
    return Json({"replayed": len(letters), "tasks": [shapes.task(t, services.organization.id) for t in tasks]})


@router.delete("/dead-letters/{letter_id:int}")
async def drop_one(table_id: str, letter_id: int, services: Use) -> Json:
    table = await services.table(table_id)
    await _these(services, table, [letter_id])
    return Json({"dropped": await services.control.letters.remove(table.id, [letter_id])})


@router.delete("/dead-letters")
async def drop(table_id: str, services: Use, ids: Annotated[list[int] | None, Query()] = None) -> Json:
    """All, or those that `ids` names."""
    table = await services.table(table_id)
    found = await open_letters(services, table) if ids is None else await _these(services, table, ids)
    return Json({"dropped": await services.control.letters.remove(table.id, [v.id for v in found])})


async def replay_letters(services: Services, table: VectorTable, letters: Sequence[DeadLetter]) -> list[Task]:
    """One task per generation and few thousand letters."""
    made: list[Task] = []
    ordered = sorted(letters, key=lambda v: (v.generation, v.id))
    for generation, group in groupby(ordered, key=lambda v: v.generation):
        ids = [v.id for v in group]
        for i in range(0, len(ids), _PER_TASK):
            params = {"letters": ids[i : i + _PER_TASK]}
            made.append(await services.control.tasks.create("replay", table.id, generation, params))
    return made


async def _these(services: Services, table: VectorTable, ids: Sequence[int]) -> list[DeadLetter]:
    wanted = [i for i in dict.fromkeys(ids) if 0 < i < 2**63]
    found = await services.control.letters.get(table.id, wanted) if wanted else []
    absent = set(ids) - {v.id for v in found}
    if absent:
        names = ", ".join(map(str, sorted(absent)[:10]))
        raise Problem(
            404, "dead_letter_not_found", f"{table.name} has no dead letter {names}.", f"walvec dead list {table.name}"
        )
    return found
