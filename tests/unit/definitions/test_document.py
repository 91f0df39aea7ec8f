"""The definitions file: what it takes, what it refuses and what it says then."""

from pathlib import Path

import pytest

from walvec.contracts.errors import ConfigError
from walvec.definitions.document import load, loads, parse

GOOD = """
connections:
  - {name: shop, mode: managed, url: "${SHOP_URL}"}
embedding_providers:
  - {name: local, provider: static}
vector_tables:
  - name: products
    connection: shop
    embedding_provider: local
    source_table: public.products
    columns:
      - {name: name, role: embedding, ordinal: 1, name_prefix: "Name: "}
      - {name: price, role: metadata, filter_type: float}
"""
ENVIRONMENT = {"SHOP_URL": "postgresql://u:s3cr3t@h/d"}


def test_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "walvec.yaml"
    file.write_text(GOOD)
    document = load(file, ENVIRONMENT)
    assert document.connections[0].dsn == ENVIRONMENT["SHOP_URL"]
    table = document.vector_tables[0]
    assert (table.backfill, table.sync_mode, table.separator, table.store) == ("auto", "cdc", "\n", None)
    assert "s3cr3t" not in repr(document)
    assert parse(document.wire()) == document


def test_nothing_is_a_document() -> None:
    assert loads("").connections == ()
    assert loads("connections:\nvector_tables: []").vector_tables == ()


def test_parts_of_an_address() -> None:
    text = "connections: [{name: a, host: h, port: '${P}', database: d, user: u, password: 'p w', ssl_mode: require}]"
    dsn = loads(text, environment={"P": "6000"}).connections[0].dsn
    assert dsn == "host=h port=6000 dbname=d user=u password='p w' sslmode=require"


def test_variables() -> None:
    text = "embedding_providers: [{name: '$$x', provider: '${P:-static}', api_key: '${K}', base_url: '${U:-http://a}'}]"
    provider = loads(text, environment={"K": "a: 'b' #c", "U": ""}).embedding_providers[0]
    assert (provider.name, provider.provider, provider.base_url) == ("$x", "static", "http://a")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "a: 'b' #c"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, "connections[0].url: the environment variable SHOP_URL is not set"),
        (
            GOOD.replace("ordinal", "ordnal"),
            "vector_tables[0].columns[0]: unknown key `ordnal`; did you mean `ordinal`?",
        ),
        (GOOD.replace("embedding_providers:", "providers:"), "(top): unknown key `providers`"),
        (GOOD.replace("role: metadata", "role: meta"), "vector_tables[0].columns[1].role"),
        (GOOD.replace("filter_type: float", "filter_type: flaot"), "vector_tables[0].columns[1].filter_type"),
        (GOOD.replace("role: embedding", "role: metadata"), "vector_tables[0].columns: no column has role embedding"),
        (GOOD.replace("price, role: metadata, filter_type: float", "name, role: embedding"), "'name' stands twice"),
        (GOOD.replace("    connection: shop\n", ""), "vector_tables[0].connection: Field required"),
        (GOOD + GOOD[GOOD.index("  - name: products") :], "vector_tables: the name 'products' stands twice"),
        (GOOD + "connections: []", "line 14, column 1: the key 'connections' stands twice"),
        ("connections: [{name: a", "line 1"),
        ("connections: [{name: a, url: s3cr3t}]", "not a connection string"),
        ("connections: [{name: a, url: 'postgresql://s3cr3t@h/d', host: s3cr3t}]", "not both"),
        ("connections: [{name: a, host: s3cr3t}]", "where is the database"),
        ("connections: [{name: '${}'}]", "without a variable's name"),
        ("- a", "must be a mapping"),
        ("connections: &x [*x]", "nested without end"),
        ("connections: s3cr3t", "connections"),
        ("vector_tables: [{index: {kind: hsnw}}]", "vector_tables[0].index.kind"),
        ("embedding_providers: [{name: a, provider: b, base_url: s3cr3t}]", "http://"),
    ],
)
def test_refusals_name_the_place_and_show_no_value(text: str, said: str) -> None:
    environment = {} if "not set" in said else ENVIRONMENT
    with pytest.raises(ConfigError) as refused:
        loads(text, "f.yaml", environment)
    assert said in str(refused.value)
    assert "f.yaml" in str(refused.value)
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load("/nonexistent/walvec.yaml")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:abc@1:s3cr3t@host/d",  # port
        "postgresql://u:abc@s3cr3t@host/d",  # host
        "postgresql://u:abc@@host/d",  # a Unix socket
        "postgresql://u:abc/s3cr3t@host/d",  # port
        "postgresql://u:1/s3cr3t@host/d",  # database
        "host=h port=s3cr3t dbname=d",
        "host=h@s3cr3t dbname=d",
    ],
)
def test_a_password_that_is_not_escaped_is_refused_unseen(url: str) -> None:
    with pytest.raises(ConfigError, match="%40 for @") as refused:
        parse({"connections": [{"name": "a", "url": url}]}, "the file")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:abc%40s3cr3t@host:5432/d",
        "postgresql+psycopg://u:p@h1:1,h2:2/d",
        "postgresql://u:p@[::1]/d%40x",
        "postgresql:///d?host=/run/postgresql",
        "host=@abstract dbname=d password=a@b/c:d",
        "host=h port=' 5432 ' dbname=d@x",
    ],
)
def test_a_connection_string_that_can_be_meant_is_taken(url: str) -> None:
    assert parse({"connections": [{"name": "a", "url": url}]}, "the file").connections[0].dsn
