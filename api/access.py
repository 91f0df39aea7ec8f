"""Who asks, and for what environment: a request's token and header -> `Caller`. Next: `app.Gate`, which asks.

Keys are looked up by their SHA-256 in the definitions as they are stored now, so that a key that was revoked opens
nothing from that moment on, in whatever process it is shown.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from api.problems import Problem
from walvec.contracts.errors import ConfigError
from walvec.definitions.model import ApiKey, Environment, Organization, Permission, Snapshot
from walvec.definitions.tenancy import FIRST_ENVIRONMENT, digest
from walvec.runtime.settings import Settings

_QUERY = re.compile(r"/v1/vector-tables/[^/]+/query")
_ACCOUNT = re.compile(r"/v1/(organizations|environments|api-keys|auth)(/|$)")
_HOST = re.compile(r"^(\[[^\]]*\]|[^:]*):\d*$")
_HOW = "Send Authorization: Bearer <key>; `walvec keys create` makes one."


@dataclass(frozen=True, slots=True)
class Caller:
    """`environment`: None where the request is about none, or its organization has none of the asked-for name.
    `key_id`: None = a key of the settings, or an open door."""

    organization: Organization
    permission: Permission
    environment: Environment | None
    key_id: str | None = None


class Asked(NamedTuple):
    """What a request says of who asks, and for what: its headers of these names. Of one that is sent twice the first
    counts."""

    authorization: str
    environment: str | None
    host: str
    origin: str | None

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]]) -> Asked:
        """`headers`: as ASGI has them, names in lower case."""
        found = {name: value.decode("latin-1") for name, value in reversed(headers)}
        return cls(
            found.get(b"authorization", ""),
            found.get(b"x-environment-id"),
            found.get(b"host", ""),
            found.get(b"origin"),
        )


@dataclass(slots=True)
class Access:
    """The rules of one API process. `keys`: those of its settings, full ones of the default organization. `own`: that
    of the `walvec up` which started the process; good as they are, and nobody has to have it. `loopback`: the address
    is reachable from this machine alone; then, as long as there never was a full key, nobody needs one.
    `environment`: name of the default organization's environment of requests that name none."""

    keys: Sequence[str]
    loopback: bool
    environment: str
    own: str | None = None
    _version: int = field(default=-1, init=False)
    _stored: Mapping[bytes, ApiKey] = field(default_factory=dict, init=False)

    def admit(
        self,
        snapshot: Snapshot,
        method: str,
        path: str,
        authorization: str,
        environment: str | None,
        *,
        host: str = "",
        origin: str | None = None,
    ) -> Caller:
        """Raises Problem: 401, 403, 404 environment_not_found. `host`, `origin`: the headers of those names."""
        caller = self._caller(snapshot, authorization, host, origin)
        if caller.permission == "read_only" and not _reads(method, path):
            raise Problem(
                403, "permission_denied", "the API key is read-only.", "Ask with a key whose permission is full."
            )
        if caller.organization.status == "deleting":
            raise Problem(403, "org_deleting", "the organization is being deleted.")
        if _ACCOUNT.match(path):
            return caller
        own, default = caller.organization, self.environment_of(snapshot, caller.organization)
        found = default if environment is None else snapshot.environment(own.id, environment)
        if found is None:
            raise Problem(
                404,
                "environment_not_found",
                "the environment does not exist.",
                "GET /v1/environments lists those that there are.",
            )
        return Caller(own, caller.permission, found, caller.key_id)

    def environment_of(self, snapshot: Snapshot, organization: Organization) -> Environment | None:
        """That of requests which name none."""
        default = organization.id == snapshot.default_organization.id
        return snapshot.environment(organization.id, self.environment if default else FIRST_ENVIRONMENT)

    def _caller(self, snapshot: Snapshot, authorization: str, host: str, origin: str | None) -> Caller:
        home = snapshot.default_organization
        scheme, _, token = authorization.partition(" ")
        given = digest(token.strip()) if scheme.lower() == "bearer" and token.strip() else b""
        # each is compared, whatever the first says; hashes, so that no time tells of a length
        found = [hmac.compare_digest(given, digest(k)) for k in (*self.keys, *([self.own] if self.own else []))]
        if any(found):
            return Caller(home, "full", None)
        stored = self._look_up(snapshot, given)
        if stored is not None:
            if stored.revoked_at is not None:
                raise Problem(401, "key_revoked", "the API key was revoked.", _HOW)
            return Caller(snapshot.organizations[stored.org_id], stored.permission, None, stored.id)
        if self.loopback and not self.keys and not snapshot.keys_needed:
            _no_foreign_page(host, origin)
            return Caller(home, "full", None)
        raise Problem(401, "unauthorized", "the API key is missing or wrong.", _HOW)

    def _look_up(self, snapshot: Snapshot, given: bytes) -> ApiKey | None:
        if self._version != snapshot.version:
            self._stored = {key.digest: key for key in snapshot.api_keys.values()}
            self._version = snapshot.version
        found = self._stored.get(given)
        return found if found is not None and hmac.compare_digest(found.digest, given) else None


def _reads(method: str, path: str) -> bool:
    return method in ("GET", "HEAD", "OPTIONS") or (method == "POST" and _QUERY.fullmatch(path) is not None)


def _no_foreign_page(host: str, origin: str | None) -> None:
    """An open door is for this machine's programs, not for the pages in its browser. A page of another site sends its
    Origin; one whose name was made to lead here sends that name as Host. Raises Problem."""
    name = _HOST.sub(r"\1", host).lower().rstrip(".")
    here = not name or name == "localhost" or name.endswith(".localhost") or _is_address(name)
    if here and origin in (None, f"http://{host}", f"https://{host}"):
        return
    raise Problem(
        403,
        "permission_denied",
        "without a key only programs of this machine may ask, by its address or as localhost, and no page of another "
        "site.",
        "Ask http://127.0.0.1 or http://localhost, or make a key: `walvec keys create`.",
    )


def _is_address(name: str) -> bool:
    """One that is spelled out leads nowhere else."""
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def keys_of(settings: Settings) -> list[str]:
    """Raises ConfigError for an empty one."""
    keys = [k.get_secret_value() for k in settings.api.keys]
    if any(not k for k in keys):
        raise ConfigError("an API key is empty.", "Remove it from api.keys, or give it at least one character.")
    return keys


def check_start(settings: Settings) -> None:
    """As `check_open`, before there is a control database to ask, where none can hold a key."""
    if settings.control_database.url is None and not (settings.data_dir / "postgres").exists():
        check_open(settings, Snapshot(0, {}, {}, {}))
    else:
        keys_of(settings)


def check_open(settings: Settings, snapshot: Snapshot) -> None:
    """Raises ConfigError when others could reach the address and nobody has a key."""
    given = keys_of(settings) or any(k.revoked_at is None for k in snapshot.api_keys.values())
    if not given and not is_loopback(settings.api.host):
        raise ConfigError(
            f"the API at {settings.api.host} would be open to others, and there are no API keys.",
            "Run `walvec keys create NAME`, set WALVEC_API__KEYS='[\"…\"]', or bind WALVEC_API__HOST=127.0.0.1.",
        )
