import math

import pytest

from api.filters import BadFilter, parse
from walvec.contracts.stores import Condition, Filter
from walvec.definitions.model import FilterType

TYPES: dict[str, FilterType] = {
    "category": "keyword",
    "price": "float",
    "stock": "integer",
    "new": "boolean",
    "seen": "datetime",
}


@pytest.mark.parametrize(
    ("filters", "conditions"),
    [
        ({"category": "shoes"}, [Condition("category", "eq", "shoes")]),
        ({"category": {"neq": "a"}}, [Condition("category", "ne", "a")]),
        ({"category": {"$ne": "a"}}, [Condition("category", "ne", "a")]),
        ({"price": {"gte": 1, "lt": 2.5}}, [Condition("price", "gte", 1), Condition("price", "lt", 2.5)]),
        ({"stock": {"in": [1, 2.0]}}, [Condition("stock", "in", [1, 2])]),
        ({"stock": {"nin": []}}, []),
        ({"stock": {"in": []}}, [Condition("stock", "in", [])]),
        ({"stock": {"gt": 1.5}}, [Condition("stock", "gte", 2)]),
        ({"stock": {"lte": -1.5}}, [Condition("stock", "lte", -2)]),
        ({"new": {"exists": False}}, [Condition("new", "exists", False)]),
        ({"new": None}, [Condition("new", "exists", False)]),
        ({"new": {"ne": None}}, [Condition("new", "exists", True)]),
        ({"seen": {"gt": "2026-01-31T10:00:00Z"}}, [Condition("seen", "gt", "2026-01-31T10:00:00Z")]),
    ],
)
def test_conditions(filters: dict[str, object], conditions: list[Condition]) -> None:
    assert parse(filters, TYPES) == Filter(tuple(conditions))


def test_groups() -> None:
    found = parse({"new": True, "$or": [{"price": 1}, {"price": {"gt": 5}, "category": "x"}]}, TYPES)
    either = (
        Filter((Condition("price", "eq", 1),)),
        Filter((Condition("price", "gt", 5), Condition("category", "eq", "x"))),
    )
    assert found == Filter((Condition("new", "eq", True),), (either,))
    assert parse(None, TYPES) is None
    assert parse({}, TYPES) is None


def deep(n: int) -> dict[str, object]:
    return {"$or": [deep(n - 1)]} if n else {"price": 1}


@pytest.mark.parametrize(
    "filters",
    [
        {"nothing": 1},
        {"price": {}},
        {"price": {"about": 1}},
        {"price": "1"},
        {"price": True},
        {"price": math.nan},
        {"price": math.inf},
        {"price": 10**400},
        {"stock": 1.5},
        {"stock": 2**63},
        {"stock": {"gt": math.inf}},
        {"category": 5},
        {"category": {"gt": "a"}},
        {"category": "a\x00"},
        {"category": "\ud800"},
        {"new": {"lt": True}},
        {"new": {"exists": 1}},
        {"seen": "yesterday"},
        {"seen": {"gt": None}},
        {"stock": {"in": 1}},
        {"stock": {"in": [None]}},
        {"$or": []},
        {"$or": {"price": 1}},
        {"$or": [1]},
        deep(50),
        {"$or": [{"price": n} for n in range(1001)]},
        {"$and": [{"price": {"gt": n}} for n in range(1001)]},
        {"$or": [{} for _ in range(1001)]},
        {"$or": [{"price": {"in": list(range(5001))}}, {"stock": {"nin": list(range(5000))}}]},
    ],
)
def test_refusals(filters: dict[str, object]) -> None:
    with pytest.raises(BadFilter):
        parse(filters, TYPES)


def test_as_many_conditions_as_are_taken() -> None:
    found = parse({"$or": [{"price": n} for n in range(499)], "price": {"in": list(range(10_000))}}, TYPES)
    assert found is not None
    assert len(found.any_of[0]) == 499
