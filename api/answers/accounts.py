"""Organizations, environments, API keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.answers.parts import Answer, CreatedAt, OrgId, Time

Permission = Annotated[
    Literal["full", "read_only"], Field(description="full: everything. read_only: GET requests, and queries.")
]


class Organization(Answer):
    """Who owns environments and API keys."""

    id: str = Field(examples=["org_5f1c3a9d7b2e4860"])
    """Its id."""
    name: str
    """Unique."""
    status: Literal["active", "deleting"]
    """deleting: its keys open nothing any more, and what it holds is being removed."""
    tier: Literal["self_hosted"]
    """walvec counts nothing and bills nobody."""
    created_at: CreatedAt


class OrganizationMade(Answer):
    organization: Organization
    api_key: str = Field(examples=["sk_live_…"])
    """Its first key, a full one. It is shown this once."""


class Environment(Answer):
    """Definitions apart from those of other environments."""

    id: str = Field(examples=["env_0a1b2c3d4e5f6071"])
    """Its id, for X-Environment-Id."""
    org_id: OrgId
    name: str
    """Unique in its organization."""
    created_at: CreatedAt


class ApiKey(Answer):
    """A bearer token. Only its hash is kept."""

    id: str = Field(examples=["key_9c8b7a6f5e4d3c2b"])
    """Its id."""
    org_id: OrgId
    name: str
    """What it is for."""
    key_prefix: str = Field(examples=["sk_live_aB3d"])
    """How it begins."""
    permission: Permission
    created_by: str | None
    """Id of the key that made it; null: the command line, a key of the settings, or nobody needed one."""
    created_at: CreatedAt
    revoked_at: Time | None
    """Since when it opens nothing."""


class KeyMade(Answer):
    key: str = Field(examples=["sk_live_…"])
    """It is shown this once."""
    api_key: ApiKey
