"""Variants of a file that its reader has to refuse, or to read as it was: from a seed, by bytes or as JSON."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000
JSON = (".json", ".jsonl")


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _splice(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 4, 8, 64))
    filler = rng.choice((b"\0", b"\xff", b"\x7f")) * length if rng.random() < 0.7 else rng.randbytes(length)
    return data[:start] + filler + data[start + rng.choice((0, length)) :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "cut early": lambda data, rng: data[: min(len(data) - 1, rng.randrange(1, 16))],
    "flipped": _flip,
    "spliced": _splice,
    "junk": lambda data, rng: rng.randbytes(rng.choice((1, 100, 10_000))),
    "doubled": lambda data, rng: data + data,
    "longer": lambda data, rng: data + rng.randbytes(1000),
    "zeros": lambda data, rng: bytes(len(data)),
    "other encoding": lambda data, rng: data.decode("latin-1").encode("utf-16"),
    "deep": lambda data, rng: rng.choice((b"[", b'{"a":', b"{a: ", b"- ")) * DEEP,
    "a number": lambda data, rng: rng.choice((b"1", b"1e999", b"9" * 5000, b"NaN", b"-0")),
    "a word": lambda data, rng: rng.choice((b"null", b"true", b'"x"', b"[]", b"{}", b"[{}]", b'{"a": 1}')),
    "a pickle": lambda data, rng: b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93.",
    "a zip": lambda data, rng: b"PK\x03\x04" + data,
}


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


NODES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None, "a folder": _folder, "a pipe": os.mkfifo, "a link to itself": _loop,
    "a link to an endless file": _endless,
}  # fmt: skip


def deep(rng: random.Random) -> Any:
    value: Any = []
    for _ in range(rng.choice((50, 150))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None, lambda rng: True, lambda rng: rng.choice((0, -1, 1, 2, 3, 1 << 31, 1 << 63, -(1 << 63), 10**400)),
    lambda rng: rng.choice((0.5, -1.5, 1e308, float("inf"), float("nan"))),
    lambda rng: rng.choice(("", "x", "x" * 100_000, "\ud800", "\x1b[2J", "../../x",
    "/etc/passwd", "a\0b", "hf-hub:x/y")),
    lambda rng: [], lambda rng: {}, lambda rng: [[]], lambda rng: {"": {}}, lambda rng: [None] * 1000, deep,
)  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inside for place in _places(item, (*at, key)))]


def change_json(text: str, rng: random.Random) -> str:
    """JSON with one to three of its values replaced, removed, renamed or repeated."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change(value, rng)
    return json.dumps(value)


def _change(value: Any, rng: random.Random) -> Any:
    changed, by = copy.deepcopy(value), rng.choice(VALUES)
    place = rng.choice(_places(changed))
    if not place:
        return by(rng)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    key, how = place[-1], rng.random()
    if how < 0.6:
        parent[key] = by(rng)
    elif how < 0.75:
        del parent[key]
    elif isinstance(parent, dict):
        parent[rng.choice(("", "more", f"{key} ", "__class__"))] = parent[key] if how < 0.9 else parent.pop(key)
    else:
        parent.extend(copy.deepcopy(parent[:3]))
    return changed


def spoil(folder: Path, names: list[str], rng: random.Random) -> str:
    """Spoil one of the files `names` in `folder`, and say how."""
    path = folder / rng.choice(names)
    data = path.read_bytes()
    name, how = path.relative_to(folder).as_posix(), rng.random()
    if how < 0.15:
        kind = rng.choice(list(NODES))
        path.unlink()
        NODES[kind](path)
    elif path.suffix in JSON and how < 0.75:
        kind, lines = "changed", data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        line = rng.randrange(len(lines))
        lines[line] = change_json(lines[line], rng)
        path.write_text("\n".join(lines) + "\n", "utf-8", "surrogatepass")
    else:
        kind = rng.choice(list(BYTES))
        path.write_bytes(BYTES[kind](data, rng))
    return f"{name}: {kind}"
