"""A relation's plain rows, decoded and written in one straight pass: a function generated per relation. Pure.

Most rows have only texts and NULLs in their columns. For them the generated function goes from the bytes of an INSERT,
or of an UPDATE without an old tuple, to key and record, without a list of values between and without a loop over the
columns: half the time of `pgoutput.read_tuple` and `encoder.RowEncoder`, which stay the law. It gives the bytes that
they would give, or None; whatever is not plain, errors included, is theirs. `encoder.RowEncoder.plain` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import orjson

from cdc.pgoutput import NEW, NULL, TEXT_VALUE, U32, UNCHANGED_VALUE
from walvec.contracts.values import Codec

Exact = Callable[[Sequence[bytes | None]], bytes]
Read = Callable[[bytes, int, bytes, int], tuple[bytes, bytes] | None]
"""(frame, where the tuple's marker stands, template, ordinal) -> (key, value). The template has a `%b` per fragment, a
`%d` for the ordinal, and a last `%b` where there are exact columns. May raise where the frame is cut short."""


def compile_row(
    width: int,
    used: Mapping[int, Codec],
    order: Sequence[int],
    key: Sequence[tuple[str, int, Codec]],
    exact: Sequence[int],
    exact_block: Exact,
) -> Read:
    """`width`: columns that the server sends. `used`: codec by place; `order`: the places in the template's order.
    `key`: (name, place, codec) in index order. `exact`: places whose raw values `exact_block` wants to see.
    """
    names: dict[str, object] = {"u32": U32, "dumps": orjson.dumps, "text": str, "block": exact_block}
    names["key"] = b"{" + b",".join(orjson.dumps(n).replace(b"%", b"%%") + b":%b" for n, _, _ in key) + b"}"
    keys = {place: (i, codec) for i, (_, place, codec) in enumerate(key)}
    lines = [
        "def read(data, at, template, ordinal):",
        f"    if data[at] != {NEW} or data[at + 1] << 8 | data[at + 2] != {width}:",
        "        return None",
        "    at += 3",
    ]
    for place in range(width):
        wanted = place in used or place in keys or place in exact
        lines += _taken(place, used, keys, exact, names) if wanted else _SKIPPED
    fragments = [f"v{place}" for place in order] + ["ordinal"]
    if exact:
        fragments.append(f"block(({' '.join(f'r{place},' for place in exact)}))")
    key_fragments = " ".join(f"k{i}," for i in range(len(key)))
    lines += [
        "    if at != len(data):",
        "        return None",
        f"    return key % ({key_fragments}), template % ({', '.join(fragments)})",
    ]
    exec("\n".join(lines), names)  # noqa: S102 - the text is made of numbers alone; names and codecs come as objects
    return names["read"]  # type: ignore[return-value]


_SKIPPED = [
    "    kind = data[at]",
    f"    if kind == {TEXT_VALUE}:",
    "        at += 5 + u32(data, at + 1)[0]",
    f"    elif kind == {NULL} or kind == {UNCHANGED_VALUE}:",
    "        at += 1",
    "    else:",
    "        return None",
]


def _taken(
    place: int,
    used: Mapping[int, Codec],
    keys: Mapping[int, tuple[int, Codec]],
    exact: Sequence[int],
    names: dict[str, object],
) -> list[str]:
    lines = [
        "    kind = data[at]",
        f"    if kind == {TEXT_VALUE}:",
        "        start = at + 5",
        "        at = start + u32(data, at + 1)[0]",
        "        raw = data[start:at]",
    ]
    null = []
    if place in used:
        lines.append(f"        v{place} = {_fragment(used[place], place, names)}")
        null.append(f'        v{place} = b"null"')
    if place in keys:
        index, codec = keys[place]
        same = place in used and used[place] is codec
        lines.append(f"        k{index} = {f'v{place}' if same else _fragment(codec, place, names, 'k')}")
    if place in exact:
        lines.append(f"        r{place} = raw")
        null.append(f"        r{place} = None")
    if place not in keys:
        lines += [f"    elif kind == {NULL}:", *null, "        at += 1"]
    return [*lines, "    else:", "        return None"]


def _fragment(codec: Codec, place: int, names: dict[str, object], kind: str = "c") -> str:
    if codec.name == "text":
        return "dumps(text(raw, 'utf-8'))"
    if codec.name == "int":
        return 'raw or b"null"'
    names[f"{kind}{place}_encode"] = codec.encode
    return f"{kind}{place}_encode(raw)"
