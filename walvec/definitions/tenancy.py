"""New organizations, environments and API keys as values. Pure but for chance. Next: `accounts`, which stores them."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from walvec.contracts.errors import Conflict
from walvec.definitions.model import (
    DEFAULT_ORGANIZATION,
    FIRST_VIEW_SCHEMA,
    ApiKey,
    Environment,
    Organization,
    Permission,
)

FIRST_ENVIRONMENT = "prod"
_IDENTIFIER = 63
_TAKEN = ("walvec_control",)


def new_organization(name: str) -> Organization:
    return Organization(_id("org"), name)


def new_environment(organization: Organization, name: str) -> Environment:
    return Environment(_id("env"), organization.id, name, view_schema(organization, name))


def view_schema(organization: Organization, name: str) -> str:
    """The schema of an environment's storages and views in a store's database; never one of walvec's own."""
    if organization.name == DEFAULT_ORGANIZATION:
        schema = FIRST_VIEW_SCHEMA if name == FIRST_ENVIRONMENT else f"walvec_{name}"
    else:
        schema = f"walvec_{organization.id.removeprefix('org_')[:8]}_{name}"
    if len(schema) <= _IDENTIFIER and schema not in _TAKEN:
        return schema
    # the server would cut a longer identifier, and two environments would be one
    return f"{schema[: _IDENTIFIER - 9]}_{hashlib.sha256(schema.encode()).hexdigest()[:8]}"


def new_key(
    organization: Organization, name: str, permission: Permission, created_by: str | None = None
) -> tuple[str, ApiKey]:
    """The token, which is to be shown once, and what is kept of it."""
    token = f"sk_live_{secrets.token_urlsafe(32)}"
    return token, ApiKey(_id("key"), organization.id, name, digest(token), token[:12], permission, created_by)


def locks(key: ApiKey) -> bool:
    """From the first one of these on, every request needs a key, even when it is revoked later."""
    return key.permission == "full"


def default_stays() -> Conflict:
    return Conflict("the default organization cannot be deleted.", "Delete what it holds instead.")


def digest(token: str) -> bytes:
    """A token has 256 random bits: a plain hash is as hard to turn back as a slow one."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(8)}"


def shown(k: ApiKey) -> dict[str, Any]:
    """What is told of a key: all but the hash."""
    return {
        "id": k.id,
        "org_id": k.org_id,
        "name": k.name,
        "key_prefix": k.prefix,
        "permission": k.permission,
        "created_by": k.created_by,
        "created_at": k.created_at,
        "revoked_at": k.revoked_at,
    }
