"""Organizations, environments and API keys. Implements `ports.Accounts`; every change moves the feed."""

from __future__ import annotations

from dataclasses import replace

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions import tenancy
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.model import DEFAULT_ORGANIZATION, ApiKey, Environment, Organization, Snapshot
from walvec.definitions.values import now


class MemoryAccounts:
    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed

    @property
    def _known(self) -> Snapshot:
        return self._feed.current

    async def create_organization(self, organization: Organization, environment: Environment, key: ApiKey) -> None:
        if any(o.name == organization.name for o in self._known.organizations.values()):
            raise Conflict("there is already an organization of that name.", "Choose another name.")
        self._feed.move(
            organizations={**self._known.organizations, organization.id: replace(organization, created_at=now())},
            environments={**self._known.environments, environment.id: replace(environment, created_at=now())},
            api_keys={**self._known.api_keys, key.id: replace(key, created_at=now())},
            keys_needed=self._known.keys_needed or tenancy.locks(key),
        )

    def _deletable(self, org_id: str) -> Organization:
        found = self._known.organizations.get(org_id)
        if found is None:
            raise NotFound(f"there is no organization {org_id!r}.")
        if found.name == DEFAULT_ORGANIZATION:
            raise tenancy.default_stays()
        return found

    async def mark_deleting(self, org_id: str) -> None:
        found = replace(self._deletable(org_id), status="deleting")
        self._feed.move(organizations={**self._known.organizations, org_id: found})

    async def delete_organization(self, org_id: str) -> None:
        self._deletable(org_id)
        for environment in [e for e in self._known.environments.values() if e.org_id == org_id]:
            self._check_empty(environment.id)
        kept = {k: e for k, e in self._known.environments.items() if e.org_id != org_id}
        self._feed.move(
            organizations={k: o for k, o in self._known.organizations.items() if k != org_id},
            environments=kept,
            providers={k: p for k, p in self._known.providers.items() if p.environment_id in kept},
            api_keys={k: a for k, a in self._known.api_keys.items() if a.org_id != org_id},
        )

    def _check_empty(self, environment_id: str) -> None:
        held = self._known.within(environment_id)
        if held.connections or held.vector_tables:
            raise Conflict("it holds connections or vector tables.", "Delete them first.")

    async def create_environment(self, environment: Environment) -> None:
        self._check_organization(environment.org_id)
        place = (environment.org_id, environment.name)
        if any((e.org_id, e.name) == place for e in self._known.environments.values()):
            raise Conflict("there is already an environment of that name.", "Choose another name.")
        made = replace(environment, created_at=now())
        self._feed.move(environments={**self._known.environments, made.id: made})

    async def delete_environment(self, environment_id: str) -> None:
        if environment_id not in self._known.environments:
            raise NotFound(f"there is no environment {environment_id!r}.")
        self._check_empty(environment_id)
        self._feed.move(
            environments={k: e for k, e in self._known.environments.items() if k != environment_id},
            providers={k: p for k, p in self._known.providers.items() if p.environment_id != environment_id},
        )

    async def create_key(self, key: ApiKey) -> None:
        self._check_organization(key.org_id)
        self._feed.move(
            api_keys={**self._known.api_keys, key.id: replace(key, created_at=now())},
            keys_needed=self._known.keys_needed or tenancy.locks(key),
        )

    def _check_organization(self, org_id: str) -> None:
        if org_id not in self._known.organizations:
            raise NotFound("there is no such organization.")

    async def revoke_key(self, key_id: str) -> None:
        found = self._known.api_keys.get(key_id)
        if found is None:
            raise NotFound(f"there is no API key {key_id!r}.")
        revoked = replace(found, revoked_at=found.revoked_at or now())
        self._feed.move(api_keys={**self._known.api_keys, key_id: revoked})
