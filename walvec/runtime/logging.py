"""Log records into lines on stderr: text for people, JSON for machines. stdout belongs to answers.

Law: a message is constant and lower-case, what varies is a field (`extra={"action": "…"}`); no row value, key or vector
is ever given to a logger; secrets that slip into a foreign message are blotted out here. Next: `lifecycle.py`.
"""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRETS = (
    (re.compile(r"(://[^:/@\s]*:)[^@\s]+(@)"), r"\1***\2"),
    (re.compile(r"(?i)\b(password|api[_-]?key|secret[_-]?key|token)(['\"]?\s*[=:]\s*['\"]?)[^\s'\",&;]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), "sk-***"),
    (re.compile(r"\bsk_live_[A-Za-z0-9_-]{8,}"), "sk_live_***"),
)
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being served; every line that is logged meanwhile has it."""
_QUIET = ("httpx", "httpcore", "aiokafka", "uvicorn.access", "psycopg.pool", "asyncio")


def redact(text: str) -> str:
    """The text without passwords in URLs, keys and bearer tokens."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """`07:25:01.123 info  embedder  message  action=retry table=products`"""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname.lower():<7} {self._role:<8} {record.getMessage()}"
        for name, value in _fields(record).items():
            line += f"  {name}={value}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in _fields(record).items():
            line[name] = redact(value) if isinstance(value, str) else value
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(role: str, *, level: str = "info", style: str = "text", stream: TextIO | None = None) -> None:
    """Sets this process's logging up, once more if need be. Third parties speak from `warning` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role) if style == "json" else TextFormatter(role))
    handler.addFilter(_of_request)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))


def _of_request(record: logging.LogRecord) -> bool:
    found = request_id.get()
    if found is not None:
        record.request_id = found
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}
