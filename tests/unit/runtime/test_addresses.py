"""Where walvec connects to on a user's word."""

import asyncio
import pathlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from embedder.providers import guarded
from walvec.runtime import addresses
from walvec.runtime.addresses import AddressRefused, check_base_url, check_connection_address, literal_of, policy_of


@pytest.fixture(autouse=True)
def _own_policy() -> Iterator[None]:
    yield
    addresses.configure(())


def resolves(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to the answers, one after the other, the last for ever. The names that were asked."""
    asked: list[str] = []
    real = asyncio.BaseEventLoop.getaddrinfo
    left = list(answers)

    async def resolve(self: Any, host: str, port: int, **more: Any) -> Any:
        if literal_of(host) is not None:
            return await real(self, host, port, **more)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        if not found:
            raise socket.gaierror("nobody of that name")
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    return asked


METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    "0xa9.254.43518",
    "169.254.169.254.",
    "\uff11\uff16\uff19.254.169.254",
    "[fe80::1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "metadata.google.internal",
    "METADATA.google.internal.",
]


@pytest.mark.parametrize("host", METADATA)
def test_metadata_services_are_refused_however_they_are_spelled(host: str) -> None:
    with pytest.raises(AddressRefused, match="not one that this walvec may connect to"):
        check_base_url(f"http://{host}/v1")
    with pytest.raises(AddressRefused):
        check_connection_address(f"host={host.strip('[]')} dbname=d")
    with pytest.raises(AddressRefused):
        check_connection_address(f"host=db.example.com,{host.strip('[]')} dbname=d")


@pytest.mark.parametrize(
    "host", ["db", "127.0.0.1", "10.0.0.7", "db.example.com", "[::1]", "[fd00::7]", "1.2.3.4.nip.io"]
)
def test_other_addresses_are_taken(host: str) -> None:
    check_base_url(f"https://{host}:8443/v1")
    check_connection_address(f"host={host.strip('[]')} dbname=d password=p")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/v1", "not an address"),
        ("http://", "not an address"),
        ("http://host:port/", "not an address"),
        ("http://a b/", "not an address"),
        ("http://good\\@169.254.169.254/", "not an address"),
        ("http://user:word@host/v1", "user or password"),
    ],
)
def test_a_base_url_says_scheme_host_port_and_path(url: str, said: str) -> None:
    with pytest.raises(AddressRefused, match=said):
        check_base_url(url)


@pytest.mark.parametrize(
    "more",
    ["service=x", "passfile=/etc/passwd", "sslkey=/k", "sslcert=/c", "options='-c search_path=x'", "hostaddr=10.0.0.1",
     "replication=database", "krbsrvname=x", "requirepeer=x", "gssdelegation=1"],
)  # fmt: skip
def test_parameters_that_reach_further_are_refused(more: str) -> None:
    with pytest.raises(AddressRefused, match=more.split("=")[0]):
        check_connection_address(f"host=db dbname=d password=hunter2 {more}")
    check_connection_address("postgresql://u:p@db:6000/d?sslmode=verify-full&connect_timeout=3&application_name=a")


FILES = ["sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("path", ["/etc/passwd", "/nowhere", "root.crt", "~/x", "", "system "])
def test_no_file_of_this_machine_is_named(name: str, path: str) -> None:
    with pytest.raises(AddressRefused, match=f"{name!r}, which names a file") as refused:
        check_connection_address(psycopg.conninfo.make_conninfo(host="db", dbname="d", **{name: path}))
    assert "api.allowed_certificates" in refused.value.cure


def test_the_machines_own_authorities_may_always_be_named() -> None:
    check_connection_address("host=db dbname=d sslmode=verify-full sslrootcert=system")
    with pytest.raises(AddressRefused):
        check_connection_address("host=db dbname=d sslcert=system")


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_offered_may_be_named(name: str) -> None:
    addresses.configure((), ["/etc/walvec/certificates", "/etc/ssl/ca.pem"])

    def check(path: str) -> None:
        check_connection_address(psycopg.conninfo.make_conninfo(host="db", dbname="d", **{name: path}))

    for path in ("/etc/ssl/ca.pem", "/etc/walvec/certificates/a.crt", "/etc/walvec/certificates/a/b.crt"):
        check(path)
    for path in (
        "/etc/walvec/certificates/../../passwd",
        "/etc/walvec/certificates2/a.crt",
        "/etc/walvec",
        "/etc/ssl/ca.pem.bak",
        "//etc/ssl/ca.pem",
        "/etc/walvec/certificates//a.crt",
        "/etc/walvec/certificates/./a.crt",
        "certificates/a.crt",
    ):
        with pytest.raises(AddressRefused):
            check(path)


@pytest.mark.parametrize("entry", ["", "/", "certificates", "/etc/../root", "//etc"])
def test_what_is_no_path_cannot_be_offered(entry: str) -> None:
    with pytest.raises(ValueError):
        addresses.certificates_of([entry])


def test_a_refusal_never_shows_the_password() -> None:
    for dsn in ("postgresql://u:hunter2@169.254.169.254/d", "host=db password=hunter2 service=x", "hunter2 = = ="):
        with pytest.raises(AddressRefused) as refused:
            check_connection_address(dsn)
        assert "hunter2" not in str(refused.value)


def test_an_allow_list_of_names_suffixes_and_networks() -> None:
    policy = policy_of(["db", "*.example.com", "10.1.0.0/16", "fd00:1::/32"])
    for host in ("db", "DB.", "a.example.com", "a.b.EXAMPLE.com", "10.1.2.3", "fd00:1::5", "::ffff:10.1.2.3"):
        policy.spelled(host)
    for host in ("10.2.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(AddressRefused):
            policy.spelled(host)
    policy.spelled("other.org")  # it may still resolve into 10.1.0.0/16
    assert policy.reachable("other.org", ip_address("10.1.9.9"))
    assert not policy.reachable("other.org", ip_address("10.2.9.9"))
    assert policy.reachable("db", ip_address("10.2.9.9"))
    assert not policy.reachable("db", ip_address("169.254.169.254"))
    with pytest.raises(AddressRefused):
        policy_of(["db", "*.example.com"]).spelled("example.com")
    with pytest.raises(AddressRefused):
        policy_of(["*.example.com"]).spelled("badexample.com")
    assert policy_of(["169.254.7.0/24"]).reachable("x", ip_address("169.254.7.7"))


@pytest.mark.parametrize("entry", ["1.2.3.4/99", "a b", "http://x", "*", "ex*mple", "10.0.0"])
def test_a_wrong_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError):
        policy_of([entry])


def test_unix_sockets_need_to_be_listed_where_there_is_a_list() -> None:
    check_connection_address("host=/var/run/postgresql dbname=d")
    check_connection_address("dbname=d")
    addresses.configure(["db"])
    for dsn in ("host=/var/run/postgresql dbname=d", "dbname=d", "host=db,/tmp dbname=d", "host=@abstract dbname=d"):
        with pytest.raises(AddressRefused, match="Unix socket"):
            check_connection_address(dsn)
    addresses.configure(["unix"])
    check_connection_address("host=/var/run/postgresql dbname=d")
    with pytest.raises(AddressRefused):
        check_connection_address("host=db dbname=d")


async def test_a_name_that_points_elsewhere_by_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, ["10.0.0.1"], ["169.254.169.254"])
    first = conninfo_to_dict(await addresses.pinned("host=rebind.example dbname=d password=p"))
    assert (first["host"], first["hostaddr"]) == ("rebind.example", "10.0.0.1")
    with pytest.raises(AddressRefused):
        await addresses.pinned("host=rebind.example dbname=d password=p")


async def test_what_was_looked_at_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, ["169.254.169.254", "10.0.0.1", "fd00::1"])
    found = conninfo_to_dict(await addresses.pinned("host=a,/tmp,b port=1,2,3 dbname=d"))
    assert found["host"] == "a,a,/tmp,b,b"
    assert found["hostaddr"] == "10.0.0.1,fd00::1,,10.0.0.1,fd00::1"
    assert found["port"] == "1,1,2,3,3"
    attempts = await psycopg._conninfo_attempts_async.conninfo_attempts_async(found)  # type: ignore[attr-defined]
    assert [a.get("hostaddr") for a in attempts] == ["10.0.0.1", "fd00::1", "", "10.0.0.1", "fd00::1"]


async def test_a_name_that_nobody_resolves_is_psycopgs_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, [])
    with pytest.raises(psycopg.OperationalError, match="failed to resolve host 'nowhere'"):
        await addresses.pinned("host=nowhere dbname=d")


class Recorder(httpx.AsyncBaseTransport):
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_provider_is_asked_at_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, ["169.254.169.254", "10.0.0.1", "10.0.0.2"])
    inner = Recorder(httpx.ConnectError("down"), httpx.Response(200, text="yes"))
    async with httpx.AsyncClient(transport=guarded.Guarded(inner)) as client:
        answer = await client.post("https://models.example:8443/v1/embeddings", content=b"body")
    assert answer.text == "yes"
    assert [r.url.host for r in inner.requests] == ["10.0.0.1", "10.0.0.2"]
    assert {r.headers["host"] for r in inner.requests} == {"models.example:8443"}
    assert {r.extensions["sni_hostname"] for r in inner.requests} == {"models.example"}
    assert {await r.aread() for r in inner.requests} == {b"body"}


async def test_a_redirect_is_not_followed_and_a_rebound_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, ["10.0.0.1"], ["169.254.169.254"])
    inner = Recorder(httpx.Response(302, headers={"location": "http://169.254.169.254/latest"}))
    async with httpx.AsyncClient(transport=guarded.Guarded(inner)) as client:
        assert (await client.get("http://models.example/")).status_code == 302
        with pytest.raises(AddressRefused):
            await client.get("http://models.example/")
    assert len(inner.requests) == 1


@pytest.mark.parametrize(
    "dsn",
    [
        "host=127.0.0.1 port=hunter2 dbname=d",
        "postgresql://u:abc@1:hunter2@host/d",
        "host=127.0.0.1,127.0.0.1 port=1,hunter2",
        "host=127.0.0.1 port=-1",
    ],
)
async def test_a_port_that_is_none_is_psycopgs_failure(dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="port") as refused:
        await addresses.pinned(dsn)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["a..b", "a" * 300, "-"])
async def test_a_host_that_no_name_can_be_is_psycopgs_failure(host: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="failed to resolve"):
        await addresses.pinned(f"host={host} dbname=d")


@pytest.mark.parametrize(
    ("environment", "url", "direct"),
    [
        ({}, "https://models.example/v1", True),
        ({"https_proxy": "http://127.0.0.1:9"}, "https://models.example/v1", False),
        ({"https_proxy": "http://127.0.0.1:9"}, "http://models.example/v1", True),  # no proxy for this scheme
        ({"all_proxy": "127.0.0.1:9"}, "http://models.example/v1", False),
        (
            {"all_proxy": "http://127.0.0.1:9", "no_proxy": "other.example,models.example"},
            "http://models.example/v1",
            True,
        ),
        ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "*"}, "http://models.example:81/v1", True),
    ],
)
async def test_past_a_proxy_the_address_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, direct: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = resolves(monkeypatch, ["169.254.169.254"])
    async with httpx.AsyncClient(transport=guarded.transport(url)) as client:
        with pytest.raises(AddressRefused if direct else httpx.ConnectError):
            await client.get(url)
    assert asked == (["models.example"] if direct else [])


@pytest.mark.parametrize("host", ["fd00:ec2::23", "fe80::1%lo", "::ffff:169.254.170.23", "[fe80::1%25eth0]"])
def test_credential_services_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(AddressRefused):
        check_connection_address(psycopg.conninfo.make_conninfo(host=host, dbname="d"))


async def test_a_name_that_leads_to_a_link_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, ["fe80::1%1"])
    with pytest.raises(AddressRefused):
        await addresses.pinned("host=a dbname=d")


def test_a_server_that_says_nothing_is_not_waited_for_without_end() -> None:
    check_connection_address("host=h dbname=d connect_timeout=60")
    for seconds in ("0", "61", "999999", "-1", "x", "", "' 5'", "1_0", "\u0661"):
        with pytest.raises(AddressRefused, match="connect_timeout"):
            check_connection_address(f"host=h dbname=d connect_timeout={seconds or repr('')}")


async def test_a_server_is_told_no_password_of_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """It asks for the password in clear, as anybody's server may."""
    told: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (size := int.from_bytes(await reader.readexactly(4))) == 8:  # asks for encryption
            await reader.readexactly(size - 4)
            writer.write(b"N")
        await reader.readexactly(size - 4)
        writer.write(b"R\x00\x00\x00\x08\x00\x00\x00\x03")
        told.append(await reader.read(1000))
        writer.close()

    file = tmp_path / "passwords"
    file.write_text("*:*:*:*:of-the-file\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        where = f"host=127.0.0.1 port={server.sockets[0].getsockname()[1]} user=u dbname=d"
        for variable in ("of-the-environment", None):
            if variable is None:
                monkeypatch.delenv("PGPASSWORD")
            else:
                monkeypatch.setenv("PGPASSWORD", variable)
            with pytest.raises(psycopg.OperationalError):  # the control: libpq has one to tell
                await psycopg.AsyncConnection.connect(where)
            with pytest.raises(psycopg.OperationalError, match="no password supplied"):
                await psycopg.AsyncConnection.connect(await addresses.pinned(where))
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(await addresses.pinned(where + " password=own"))
    assert [words[5:-1] for words in told] == [b"of-the-environment", b"", b"of-the-file", b"", b"own"]
