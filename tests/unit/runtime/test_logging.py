"""Log lines: fields, one line each, and no secret in them."""

import contextvars
import io
import json
import logging
from collections.abc import Iterator

import pytest

from walvec.runtime import logging as walvec_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(style: str) -> list[str]:
    out = io.StringIO()
    walvec_logging.configure("cdc", style=style, stream=out)
    logger = logging.getLogger("cdc.replication")
    logger.info("reading", extra={"action": "start", "count": 3})
    logger.warning("cannot connect to postgresql://bob:hunter2@db/shop", extra={"reason": "password=hunter2 refused"})
    logger.debug("unseen")
    return out.getvalue().splitlines()


def test_text_has_role_message_and_fields() -> None:
    first, second = lines("text")
    assert "info" in first
    assert "cdc" in first
    assert first.endswith("reading  action=start  count=3")
    assert "postgresql://bob:***@db/shop" in second


def test_json_has_fields_of_their_own() -> None:
    first = json.loads(lines("json")[0])
    assert (first["message"], first["action"], first["count"], first["role"]) == ("reading", "start", 3, "cdc")


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_secret_is_written(style: str) -> None:
    assert "hunter2" not in "\n".join(lines(style))


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer hunter2hunter2", "api_key=hunter2", '{"password": "hunter2"}', "key sk-hunter2hunter2"],
)
def test_secrets_are_blotted_out(text: str) -> None:
    assert "hunter2" not in walvec_logging.redact(text)


def test_a_line_has_the_id_of_the_request_that_is_served() -> None:
    stream = io.StringIO()
    walvec_logging.configure("api", style="json", stream=stream)
    context = contextvars.copy_context()
    context.run(walvec_logging.request_id.set, "req_1234")
    context.run(logging.getLogger("x").info, "within")
    logging.getLogger("x").info("outside")
    within, outside = map(json.loads, stream.getvalue().splitlines())
    assert within["request_id"] == "req_1234"
    assert "request_id" not in outside
