"""Names of views, storages and topics, in any script."""

import re
import unicodedata

import pytest

from walvec.definitions.model import VectorTable
from walvec.definitions.naming import ascii_storage_name, ascii_view_name, storage_name, view_name
from walvec.transport.records import bridge_group, changes_topic, dead_topic, embedder_group, sink_group, vectors_topic

NAMES = [
    "Größe",
    "Grüße",
    "商品",
    "顧客",
    "товары",
    "हिन्दी",
    "हिन्दू",
    "ไทย",
    "😀",
    "😁",
    "Straße 5",
    "café-menu",
    "a b",
    "x" * 100,
]
"""All different; so must be their views."""


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("products", "products"),
        ("product-search", "product_search"),
        ("Größe", "Größe"),
        ("商品", "商品"),
        ("日本 語\uff0d版", "日本_語_版"),
        ("zero\u200bwidth\u00a0space", "zero_width_space"),
        (unicodedata.normalize("NFD", "Größe"), "Größe"),
        ('a"b;c', "a_b_c"),
    ],
)
def test_a_view_keeps_letters_of_any_script(name: str, view: str) -> None:
    assert view_name(name) == view


def test_names_that_differ_have_views_that_differ_and_fit() -> None:
    long = ["商" * 40 + "一", "商" * 40 + "二", "é" * 60, "é" * 61]
    views = [view_name(n) for n in (*NAMES, *long)]
    assert len(set(views)) == len(views)
    assert all(len(v.encode()) <= 63 for v in views)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("products", "_products"),
        ("product-search", "_product-search"),
        ("Größe", "_grosse"),
        ("Grüße", "_grusse"),
        ("Café 5", "_cafe_5"),
        ("商品", ""),
        ("商品 A", "_a"),
        ("x" * 100, "_" + "x" * 40),
    ],
)
def test_a_storage_has_a_slug_that_can_be_read(name: str, slug: str) -> None:
    assert storage_name("vt_0123456789abcdef", name) == f"vt_01234567{slug}"


@pytest.mark.parametrize("name", NAMES)
def test_topics_and_groups_are_legal(name: str) -> None:
    storage = storage_name("vt_0123456789abcdef", name)
    for make in (changes_topic, vectors_topic, dead_topic, embedder_group, sink_group, bridge_group):
        assert re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", make(storage))
    assert len(f"{storage}_g123456") <= 63


@pytest.mark.parametrize("name", [n for n in NAMES if n.isascii()])
def test_ascii_names_are_what_they_were(name: str) -> None:
    assert view_name(name) == ascii_view_name(name)
    assert storage_name("vt_0123456789abcdef", name) == ascii_storage_name("vt_0123456789abcdef", name)


def test_tables_of_before_keep_their_names() -> None:
    table = VectorTable("vt_0123456789abcdef", "Größe", "c", "e", "static", "public", "t", "pgvector", "managed", ())
    assert (table.view_name, table.storage_name) == ("Gr__e", "vt_01234567_gr__e")
