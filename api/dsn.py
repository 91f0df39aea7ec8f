"""Credentials into one connection string. Next: `cdc.session` connects with it."""

from __future__ import annotations

from pydantic import ValidationError

from api.problems import invalid
from api.schemas import ChangedCredentials, Credentials
from walvec.contracts.errors import ConfigError
from walvec.definitions.document import ConnectionSpec, with_parts, with_stored_secrets
from walvec.runtime.addresses import check_connection_address


def dsn_of(name: str, credentials: Credentials) -> str:
    """Raises Problem when `url` cannot be read or the parts are incomplete; the message never holds the password."""
    given = credentials.model_dump(exclude_none=True)
    if credentials.url is None:
        given = {"port": 5432, "ssl_mode": "prefer", **given}
    try:
        dsn = ConnectionSpec.model_validate({"name": name, **given}).dsn
    except ValidationError as e:
        messages = "; ".join(str(d["msg"]).removeprefix("Value error, ") for d in e.errors(include_input=False))
        raise invalid(f"credentials: {messages}.") from None
    check_connection_address(dsn)
    return dsn


def changed_dsn(name: str, credentials: ChangedCredentials, stored: str) -> str:
    """The stored connection string with what is given. A password is kept, but never for another server or user: it
    would be told to whoever answers there. Raises Problem."""
    if credentials.url is not None:
        new = dsn_of(name, Credentials.model_validate(credentials.model_dump(exclude_none=True)))
    else:
        given = credentials.model_dump(exclude_none=True, exclude={"password"})
        secret = credentials.password
        new = with_parts(stored, password=None if secret is None else secret.get_secret_value(), **given)
        check_connection_address(new)
    try:
        return with_stored_secrets(new, stored)
    except ConfigError as e:
        raise invalid(f"credentials: {e.message}", e.cure) from None
