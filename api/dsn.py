"""Credentials into one connection string. Next: `cdc.session` connects with it."""

from __future__ import annotations

from pydantic import ValidationError

from api.problems import invalid
from api.schemas import Credentials
from walvec.definitions.document import ConnectionSpec
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
