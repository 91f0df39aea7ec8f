"""COPY … TO STDOUT: text-format lines -> tuples of raw column texts. Pure.

Law: a value comes out as the bytes that the type's output function made, so that it equals pgoutput's.
PostgreSQL manual, COPY, section "Text Format". Next: `rows`.
"""

from __future__ import annotations

import re

from walvec.contracts.errors import DecodeError

Raw = bytes | None

_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_LETTERS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found.group(1)
    letter = _LETTERS.get(code)
    if letter is not None:
        return letter
    if code[0] == 0x78 and len(code) > 1:
        return bytes((int(code[1:], 16),))
    if 0x30 <= code[0] <= 0x37:
        return bytes((int(code, 8) & 0xFF,))
    return code


def _cell(cell: bytes) -> Raw:
    if cell == b"\\N":
        return None
    if b"\\" not in cell:
        return cell
    if b"\\\\" not in cell:  # then escapes stand alone: line breaks, by far the most frequent, go in one pass
        cell = cell.replace(b"\\n", b"\n")
        if b"\\" not in cell:
            return cell
    return _ESCAPE.sub(_unescape, cell)


def parse_line(line: bytes, columns: int) -> tuple[Raw, ...]:
    """One CopyData message, its newline included. Raises DecodeError when it has not that many columns."""
    cells = line[:-1].split(b"\t") if line.endswith(b"\n") else line.split(b"\t")
    if len(cells) != columns:
        raise DecodeError(f"a COPY line of {len(cells)} columns, not {columns}")
    if b"\\" in line:
        return tuple([_cell(c) for c in cells])
    return tuple(cells)
