"""What a view is called and what it cannot hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable
from walvec.definitions.views import check_view, view_columns


def table(*columns: Column, key: str = "id", name: str = "t") -> VectorTable:
    names = {key, "body", *(c.name for c in columns)}
    source = tuple(SourceColumn(n, "text", 25, "text", "text") for n in sorted(names))
    keys = (SourceColumn(key, "text", 25, "text", "text"),)
    generation = Generation(1, "active", "m", 3, (Column("body", "embedding"), *columns), keys, source)
    return VectorTable("vt_1", name, "c", "e", "static", "public", "s", "pgvector", "managed", (generation,))


@pytest.mark.parametrize("name", ["chunk", "embedding", "embedded_text", "source_lsn"])
def test_a_column_of_the_views_own_name_needs_an_alias(name: str) -> None:
    for made in (table(Column(name, "metadata")), table(key=name)):
        with pytest.raises(DefinitionError) as caught:
            check_view(made, made.active)
        assert "alias" in caught.value.cure
    mended = table(Column(name, "metadata", alias="other"))
    check_view(mended, mended.active)
    mended = table(Column(name, "metadata", alias="other"), key=name)
    check_view(mended, mended.active)


def test_two_columns_of_one_name_are_refused() -> None:
    made = table(Column("a", "metadata", alias="x"), Column("b", "metadata", alias="x"))
    with pytest.raises(DefinitionError, match="'a' and 'b'"):
        check_view(made, made.active)
    made = table(Column("a", "metadata", alias="id"))
    with pytest.raises(DefinitionError, match="id"):
        check_view(made, made.active)


def test_a_key_column_that_is_metadata_too_is_shown_once() -> None:
    made = table(Column("id", "metadata"), Column("a", "metadata"))
    keys, metadata = view_columns(made.active)
    assert [(c.physical, c.name) for c in (*keys, *metadata)] == [("k0", "id"), ("m1", "a")]


def test_a_name_that_cannot_be_a_view() -> None:
    made = table(name="_walvec_stores")
    with pytest.raises(DefinitionError):
        check_view(made, made.active)


def test_a_long_name_has_a_view_of_its_own() -> None:
    names = ["x" * 63, "x" * 64, "x" * 100, "x" * 99 + "y", "\U0001f600" * 100]
    views = [table(name=n).view_name for n in names]
    assert views[0] == names[0]
    assert max(len(v.encode()) for v in views) == 63
    assert len(set(views)) == len(views)
    for name in names:
        check_view(table(name=name), table().active)


def test_an_alias_above_63_bytes_is_refused() -> None:
    made = table(Column("a", "metadata", alias="ä" * 32))
    with pytest.raises(DefinitionError, match="63"):
        check_view(made, made.active)
    check_view(replace(made, name="ok"), table(Column("a", "metadata", alias="ä" * 31)).active)
