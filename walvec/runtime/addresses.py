"""Which addresses walvec connects to on a user's word: source databases, and the base URLs of embedding providers.

An address is looked at twice: when it is stored (what is spelled out) and whenever it is connected to, after its name
was resolved: a name may point elsewhere by then. What was looked at is what is connected to. Addresses that the
operator sets (control database, pgvector, `providers.<kind>.base_url`) are not looked at.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import socket
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from walvec.contracts.errors import WalvecError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LISTED = "See api.allowed_hosts in docs/settings.md."
_REFUSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local; the metadata services of most clouds
        "fe80::/10",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
    )
)
_REFUSED_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
)
# Those that say where, who and how. Others name files on this machine, another server, or commands for the session.
_TAKEN = (
    "host port dbname user password sslmode sslnegotiation sslsni sslcompression ssl_min_protocol_version"
    " ssl_max_protocol_version channel_binding require_auth gssencmode target_session_attrs load_balance_hosts"
    " connect_timeout application_name fallback_application_name client_encoding"
    " keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout"
)
_PARAMETERS = frozenset(_TAKEN.split())
_FILES = frozenset(("sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir"))
"""Those that name files of this machine: whoever may name any learns which there are, and has them used."""
_SYSTEM = "system"
"""As `sslrootcert`: the certificate authorities that this machine trusts."""
_PATIENCE_AT_MOST = 60
_NO_FILE = "/dev/null/none"
"""A path that can never be: of one that is no plain file libpq would complain."""
_NAT64 = ip_network("64:ff9b::/96")


class AddressRefused(WalvecError):
    """An address that this walvec does not connect to."""

    kind = "definition"


@dataclass(frozen=True, slots=True)
class Policy:
    """`names` and `suffixes` (with their dot) in lower case. Not `restricted`: all but what is always refused."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    unix: bool = True
    restricted: bool = False

    def spelled(self, host: str) -> None:
        """A host as it is written, before anything is resolved. Raises AddressRefused."""
        literal = literal_of(host)
        if literal is not None:
            if not self.reachable(host, literal):
                raise self._refused(host)
        elif not self._listed(host) and (_plain(host) in _REFUSED_NAMES or (self.restricted and not self.networks)):
            # a name may still resolve into one of the networks: that is seen when it is connected to
            raise self._refused(host)

    def reachable(self, host: str, address: Address) -> bool:
        """Whether `host` may be reached at an address that it resolved to, or is."""
        faces = (address, *_inside(address))
        if any(face in network for face in faces for network in self.networks if face.version == network.version):
            return True
        if any(face in network for face in faces for network in _REFUSED if face.version == network.version):
            return False
        return not self.restricted or self._listed(host)

    def socket(self) -> None:
        if not self.unix:
            raise AddressRefused("the source's address is a Unix socket, which this walvec may not use.", _LISTED)

    def _listed(self, host: str) -> bool:
        name = _plain(host)
        return name in self.names or name.endswith(self.suffixes or ("\0",))

    def _refused(self, host: str) -> AddressRefused:
        return AddressRefused(f"host {host[:255]!r} is not one that this walvec may connect to.", _LISTED)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The host's addresses that may be connected to, in the resolver's order. Raises AddressRefused, or OSError
        when the name has none."""
        self.spelled(host)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
        usable = [text for text in addresses if self.reachable(host, ip_address(text))]
        if not usable:
            raise self._refused(host)
        return usable


def policy_of(entries: Sequence[str]) -> Policy:
    """`name`, `*.suffix`, an address or CIDR, `unix`. Raises ValueError."""
    names, suffixes, networks = set(), [], []
    for entry in (e.strip().lower() for e in entries):
        if entry in ("", "unix"):
            continue
        if entry.startswith("*."):
            suffixes.append(_plain(entry[1:]))
        elif re.fullmatch(r"[0-9.]+(/\d+)?|[0-9a-f.]*:[0-9a-f:.]*(/\d+)?", entry):
            networks.append(ip_network(entry, strict=False))
        elif re.fullmatch(r"[a-z0-9_]([a-z0-9._-]*)", entry):
            names.add(_plain(entry))
        else:
            raise ValueError(f"{entry!r} is neither a name, *.suffix, address, CIDR nor unix")
    given = {e.strip().lower() for e in entries} - {""}
    unix = not given or "unix" in given
    return Policy(frozenset(names), tuple(suffixes), tuple(networks), unix, restricted=bool(given))


def certificates_of(entries: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths of files and directories. Raises ValueError."""
    for entry in entries:
        if not _plain_path(entry) or entry == "/":
            raise ValueError(f"{entry!r} is not an absolute path of a file or directory")
    return tuple(entries)


def _plain_path(path: str) -> bool:
    return path.startswith("/") and posixpath.normpath(path) == path and not path.startswith("//") and "\0" not in path


_current = Policy()
_certificates: tuple[str, ...] = ()


def configure(allowed_hosts: Sequence[str], allowed_certificates: Sequence[str] = ()) -> None:
    """This process's policy, from its settings. Before that: all but what is always refused, and no certificates."""
    global _current, _certificates
    _current, _certificates = policy_of(allowed_hosts), certificates_of(allowed_certificates)


def check_connection_address(dsn: str) -> None:
    """A source's connection string that came over the API. Raises AddressRefused, never with the password."""
    given = _parts(dsn)
    for name, value in given.items():
        if name in _FILES:
            _check_file(name, str(value))
        elif name == "sslpassword":
            continue  # a secret like `password`: it opens the key that sslkey names
        elif name not in _PARAMETERS:
            raise AddressRefused(
                f"the connection string has the parameter {name!r}, which is not taken over the API.",
                "Leave it out; host, port, user, password, database, ssl_mode and time-outs can be set.",
            )
    patience = str(given.get("connect_timeout", 1))
    if not re.fullmatch("[0-9]{1,4}", patience) or not 1 <= int(patience) <= _PATIENCE_AT_MOST:
        # zero is for ever; whoever tests the connection would wait as long for a server that says nothing
        raise AddressRefused(
            f"the connection string's connect_timeout is not a whole number from 1 to {_PATIENCE_AT_MOST}.",
            "Leave it out, or write seconds.",
        )
    for host in _hosts(given):
        if _is_socket(host):
            _current.socket()
        else:
            _current.spelled(host)


def _check_file(name: str, path: str) -> None:
    """By its spelling alone: whether it is there is not asked."""
    if name == "sslrootcert" and path == _SYSTEM:
        return
    allowed = _plain_path(path) and any(path == a or path.startswith(a + "/") for a in _certificates)
    if not allowed:
        raise AddressRefused(
            f"the connection string has the parameter {name!r}, which names a file that this walvec does not offer.",
            "Write sslrootcert=system for certificates of public authorities; whoever runs walvec can offer files by "
            "api.allowed_certificates.",
        )


def check_base_url(url: str) -> None:
    """An embedding provider's address that came over the API. Raises AddressRefused."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\\]", url):
        raise AddressRefused("base_url: not an address.", "Write http://host/v1 or https://host/v1.")
    if parts.username is not None or parts.password is not None:
        raise AddressRefused("base_url: holds a user or password.", "Put the key into api_key.")
    _current.spelled(host)


async def resolve(host: str, port: int) -> list[str]:
    """As `Policy.resolve`, of this process."""
    return await _current.resolve(host, port)


async def pinned(dsn: str) -> str:
    """The connection string with the addresses that its hosts have now, so that nothing is resolved again, and with no
    other password than its own: libpq would send this process's to whatever server a user names.

    Raises AddressRefused, or as psycopg does when no host can be resolved.
    """
    # given, though empty: neither PGPASSWORD nor a password file (the user's, or PGPASSFILE's) takes its place
    given = {"password": "", "passfile": _NO_FILE, **_parts(dsn)}
    dsn = make_conninfo("", **given)
    if given.get("hostaddr"):
        for address in str(given["hostaddr"]).split(","):
            _current.spelled(address.strip())
        return dsn
    hosts = _hosts(given)
    ports = str(given.get("port") or "").split(",")
    if len(ports) < len(hosts):
        ports = (ports * len(hosts))[: len(hosts)]
    if not all(re.fullmatch("[0-9]{0,5}", port.strip()) for port in ports):
        # not said which: it may be a part of a password that was not escaped
        raise psycopg.OperationalError("a port of the connection string is no number")
    places: list[tuple[str, str, str]] = []
    unresolved: psycopg.Error | None = None
    for host, port in zip(hosts, ports, strict=False):
        if _is_socket(host):
            _current.socket()
            places.append((host, "", port))
            continue
        try:
            found = await _current.resolve(host, int(port.strip() or 5432))
        except (OSError, UnicodeError) as e:  # the latter: a label that no name can have
            unresolved = psycopg.OperationalError(f"failed to resolve host {host!r}: {e}")
            continue
        places.extend((host, address, port) for address in found)
    if not places:
        raise unresolved or psycopg.OperationalError("the connection string names no host")
    if not any(address for _, address, _ in places):
        return dsn
    names, addresses, numbers = (",".join(column) for column in zip(*places, strict=True))
    return make_conninfo(dsn, host=names, hostaddr=addresses, port=numbers)


def literal_of(host: str) -> Address | None:
    """The address that a host spells, also as one number, in octal or in hexadecimal; None for a name."""
    text = unicodedata.normalize("NFKC", host).strip("[]").rstrip(".")
    try:
        return ip_address(text)
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fA-FxX.]+", text):
        return None
    try:
        return IPv4Address(socket.inet_aton(text))
    except OSError:
        return None


def _inside(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, IPv4Address):
        return []
    found: list[Address] = [a for a in (address.ipv4_mapped, address.sixtofour) if a is not None]
    if address in _NAT64 or int(address) >> 32 == 0:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _plain(host: str) -> str:
    return unicodedata.normalize("NFKC", host).lower().rstrip(".")


def _parts(dsn: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.Error:
        # the message would quote the string, password and all
        raise AddressRefused(
            "the connection string cannot be read.", "Write postgresql://user:password@host:5432/database."
        ) from None


def _hosts(given: dict[str, Any]) -> list[str]:
    return [host.strip() for host in str(given.get("host") or "").split(",")]


def _is_socket(host: str) -> bool:
    """None given: libpq takes the socket of its own making."""
    return not host or host.startswith(("/", "@"))
