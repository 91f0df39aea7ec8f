"""Who may ask. Without keys the API answers on loopback only, and any bearer token is accepted and ignored."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from ipaddress import ip_address

from walvec.contracts.errors import ConfigError
from walvec.runtime.settings import Settings


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def keys_of(settings: Settings) -> list[str]:
    """Raises ConfigError when the address would be open to others without any key."""
    keys = [k.get_secret_value() for k in settings.api.keys]
    if any(not k for k in keys):
        raise ConfigError("an API key is empty.", "Remove it from api.keys, or give it at least one character.")
    if not keys and not is_loopback(settings.api.host):
        raise ConfigError(
            f"the API would answer everybody at {settings.api.host}: there are no API keys.",
            "Set WALVEC_API__KEYS='[\"…\"]', or bind WALVEC_API__HOST=127.0.0.1.",
        )
    return keys


def allowed(authorization: str, keys: Sequence[str]) -> bool:
    scheme, _, token = authorization.partition(" ")
    given = token.strip().encode()
    found = [hmac.compare_digest(given, k.encode()) for k in keys]  # each is compared, whatever the first says
    return scheme.lower() == "bearer" and any(found)
