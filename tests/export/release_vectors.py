"""Releases that a client takes or refuses, the same for Python, TypeScript and Kotlin: made here, at test time."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export.release import MAX_RELEASE, Release, ReleaseFile

KEY, OTHER_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
SPACE, OTHER = "0123456789abcdef", "fedcba9876543210"
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group of Ed25519's signatures
RIGHT, CHANGED, LONGER = b"the bytes of a model", b"the bytes of a mOdel", b"the bytes of a model, and more"


def file_of(name: str, data: bytes = RIGHT) -> ReleaseFile:
    return ReleaseFile(name, len(data), hashlib.sha256(data).hexdigest())


A, B, CODES = file_of("a.bin"), file_of("b.bin"), file_of("codes.bin")
FIRST = Release(3, SPACE, "mobilenetv3_small_100", "2026-11-30T12:00:00Z", (A, B))


def envelope(payload: str, key: Ed25519PrivateKey = KEY) -> bytes:
    """`release.json` of any payload, signed: what `sign` would refuse to."""
    return json.dumps({"payload": payload, "signature": key.sign(payload.encode()).hex()}, indent=1).encode()


def signed(release: Release, key: Ed25519PrivateKey = KEY) -> bytes:
    return envelope(release.payload, key)


@dataclass(frozen=True)
class Vector:
    """A `release.json` and a client that sees it.

    answer: "none", "student", "both", or a part of the message of the refusal
    """

    name: str
    data: bytes
    answer: str
    space: str = SPACE
    installed: Release | None = None
    pinned: int = 0

    @property
    def is_taken(self) -> bool:
        return self.answer in ("none", "student", "both")


def taken() -> Iterator[Vector]:
    whole = signed(FIRST)
    yield Vector("first", whole, "student")
    yield Vector("newer", whole, "student", installed=replace(FIRST, version=2))
    server = replace(FIRST, version=2, code_space=OTHER)  # brought no gallery: the client searches a server's
    yield Vector("newer-after-another-space-at-a-server", whole, "student", installed=server)
    whose = replace(FIRST, gallery=(CODES,))
    yield Vector("student-after-gallery", signed(replace(FIRST, version=4)), "student", installed=whose)
    other = signed(replace(FIRST, version=5, code_space=OTHER))
    yield Vector("another-space-after-a-student", other, "student", OTHER, replace(FIRST, version=4))
    yield Vector("installed", whole, "none", installed=FIRST)
    yield Vector("installed-and-pinned", whole, "none", installed=FIRST, pinned=3)
    yield Vector("pinned", whole, "student", pinned=3)
    yield Vector("gallery", signed(replace(FIRST, gallery=(CODES,))), "both")
    yield Vector("gallery-of-another-space", signed(replace(FIRST, code_space=OTHER, gallery=(CODES,))), "both")
    yield Vector("written-in-one-line", json.dumps(json.loads(whole)).encode(), "student")
    yield Vector("signature-first", json.dumps(dict(reversed(json.loads(whole).items()))).encode(), "student")
    yield Vector("as-large-as-may-be", whole.ljust(MAX_RELEASE), "student")
    names = ["n" * 96 + f"{i:04}" for i in range(128)]
    many = replace(FIRST, files=tuple(map(file_of, names[:64])), gallery=tuple(map(file_of, names[64:])))
    yield Vector("many-files-with-long-names", signed(many), "both")
    odd = ("A.b-c_d", "_", "0", "a..b", "-".join("abc"), "con-.x_")
    yield Vector("unusual-names", signed(replace(FIRST, files=tuple(map(file_of, odd)))), "student")
    largest = replace(FIRST, version=999_999_999, files=(replace(A, bytes=9_999_999_999),))
    yield Vector("largest-numbers", signed(largest), "student", installed=FIRST, pinned=999_999_999)


def refused_by_rule() -> Iterator[Vector]:
    whole = signed(FIRST)
    yield Vector("another-space", whole, "code space 0123456789abcdef without a gallery", space=OTHER)
    yield Vector("another-space-newer", whole, "--gallery", space=OTHER, installed=replace(FIRST, version=2))
    yield Vector("replayed", whole, "version 4, which is installed", installed=replace(FIRST, version=4))
    yield Vector("below-the-pinned", whole, "version 4, which is pinned", pinned=4)
    older = replace(FIRST, version=2)
    yield Vector("newer-but-below-the-pinned", whole, "publish this content as version 10", installed=older, pinned=9)
    yield Vector(
        "pinned-but-older", whole, "version 5, which is installed", installed=replace(FIRST, version=5), pinned=3
    )
    other = replace(FIRST, version=2, code_space=OTHER, gallery=(CODES,))
    brought = f"a release of the gallery's code space {OTHER}"
    yield Vector("newer-after-the-gallery-of-another-space", whole, brought, installed=other)
    yield Vector("newer-after-a-gallery-unknown-to-the-client", signed(replace(other, version=3, gallery=())),
                 f"a release of the gallery's code space {SPACE}", installed=other)  # fmt: skip
    with_gallery = signed(replace(FIRST, gallery=(CODES,)))
    yield Vector("older-with-gallery", with_gallery, "or a later one", installed=replace(FIRST, version=4))
    for what, other in {
        "a-file-less": replace(FIRST, files=(A,)),
        "another-file": replace(FIRST, files=(A, file_of("b.bin", CHANGED))),
        "a-gallery-more": replace(FIRST, gallery=(CODES,)),
        "another-time": replace(FIRST, created="2026-11-30T12:00:01Z"),
        "another-order": replace(FIRST, files=(B, A)),
    }.items():
        yield Vector(f"same-version-{what}", whole, "same version of other content", installed=other)


def forged() -> Iterator[Vector]:
    said = "another key's signature"
    payload, signature = json.loads(signed(FIRST)).values()
    yield Vector("other-key", signed(FIRST, OTHER_KEY), said)
    for old, new in (
        ("version 3", "version 4"),
        (SPACE, OTHER),
        ("a.bin", "c.bin"),
        ("small", "large"),
        ("T12", "T13"),
        (A.sha256[:8], "0" * 8),
        (f" {A.bytes} ", " 9 "),
        ("file", "gallery"),
        ("\n", "\r\n"),
    ):
        tampered = json.dumps({"payload": payload.replace(old, new), "signature": signature})
        yield Vector(f"tampered-{new.strip() or 'line-ends'}", tampered.encode(), said)
    larger = int.from_bytes(bytes.fromhex(signature[64:]), "little") + ORDER  # RFC 8032 5.1.7 refuses it
    others = {
        "of-another-release": json.loads(signed(replace(FIRST, version=4)))["signature"],
        "of-zeros": "0" * 128,
        "one-bit": f"{int(signature, 16) ^ 1:0128x}",
        "malleable": signature[:64] + larger.to_bytes(32, "little").hex(),
    }
    for name, other in others.items():
        yield Vector(f"signature-{name}", json.dumps({"payload": payload, "signature": other}).encode(), said)
    surrogate = json.dumps({"payload": "\ud800", "signature": signature}).encode()
    yield Vector("lone-surrogate", surrogate, "expected")


def malformed() -> Iterator[Vector]:
    said, whole = "a whole release.json of Twinhash", signed(FIRST)
    record = json.loads(whole)
    for length in (0, 1, 2, len(whole) // 2, len(whole) - 1):
        yield Vector(f"truncated-to-{length}", whole[:length], said)
    yield Vector("oversized", whole.ljust(MAX_RELEASE + 1), "more than")
    signature = record["signature"]
    for name, value in {
        "upper": signature.upper(),
        "short": signature[:-2],
        "long": signature + "00",
        "empty": "",
        "number": 1,
        "blank": signature[:-1] + " ",
        "none": None,
        "line": signature + "\n",
    }.items():
        yield Vector(f"signature-{name}", json.dumps({**record, "signature": value}).encode(), said)
    for name, payload in {"number": 3, "list": [record["payload"]], "none": None, "object": {}}.items():
        yield Vector(f"payload-{name}", json.dumps({**record, "payload": payload}).encode(), said)
    for name, value in {
        "array": [record],
        "null": None,
        "number": 3,
        "text": record["payload"],
        "more": {**record, "key": "x"},
        "less": {"payload": record["payload"]},
        "empty": {},
        "keys": {"PAYLOAD": record["payload"], "signature": signature},
    }.items():
        yield Vector(f"json-{name}", json.dumps(value).encode(), said)
    yield Vector("noise", bytes(range(256)), said)
    yield Vector("deep", b"[" * 10_000, said)
    yield Vector("two", whole + whole, said)
    yield Vector("page", b"<!doctype html><title>404</title>", said)
    yield Vector("utf-16", whole.decode().encode("utf-16"), said)
    yield Vector("byte-order-mark", b"\xef\xbb\xbf" + whole, said)
    yield Vector("invalid-utf-8", whole.replace(b"file", b"f\xffle"), "expected")


def signed_nonsense() -> Iterator[Vector]:
    """Payloads that Twinhash does not write, with a right signature: no parser may read them in its own way."""
    said, text = "that is not as Twinhash writes it", FIRST.payload
    names = [
        "../x",
        "a/b",
        "a\\b",
        ".hidden",
        "dot.",
        "a b",
        "",
        "n" * 101,
        "é",
        "a\tb",
        "a\0b",
        "..",
        "C:x",
        "a%2fb",
        "-x",
    ]
    changes = {f"name-{i}": ("a.bin", name) for i, name in enumerate(names)}
    changes |= {
        f"bytes-{value}": (f" {A.bytes} ", f" {value} ") for value in ("0", "-1", "020", "1e3", "2.0", "1" * 11, "２")
    }
    changes |= {
        f"version-{value}": ("version 3", f"version {value}") for value in ("0", "-1", "03", "3.0", "1" * 10, "٣", "3 ")
    }
    changes |= {
        "sha-upper": (A.sha256, A.sha256.upper()),
        "sha-short": (A.sha256, A.sha256[:-1]),
        "space-upper": (SPACE, SPACE.upper()),
        "space-short": (SPACE, SPACE[1:]),
        "no-student": (FIRST.student, ""),
        "student-blank": (FIRST.student, "a b"),
        "created": ("T12:00:00Z", ""),
        "line-ends": ("\n", "\r\n"),
        "kind": ("file", "fyle"),
        "kind-upper": ("file", "FILE"),
        "two-blanks": ("file ", "file  "),
        "no-file": (text[text.index("file") :], ""),
        "title": ("twinhash release 1", "twinhash release"),
        "title-01": ("release 1", "release 1 "),
        "vertical-tab": ("\nstudent", "\x0bstudent"),
        "separator": ("\nstudent", "\u2028student"),
    }
    for name, (old, new) in changes.items():
        yield Vector(f"odd-{name}", envelope(text.replace(old, new)), said)
    line = text[text.index("file") :].splitlines(keepends=True)[0]
    sixty_five = replace(FIRST, files=tuple(file_of(f"f{i}") for i in range(65))).payload
    gallery = replace(FIRST, gallery=tuple(file_of(f"f{i}") for i in range(65))).payload
    for name, payload in {
        "empty": "",
        "no-last-line-end": text[:-1],
        "blank-line": text + "\n",
        "line-before": "\n" + text,
        "more": text + "x\n",
        "gallery-before-files": text.replace(line, line.replace("file", "gallery")),
        "65-files": sixty_five,
        "65-of-gallery": gallery,
        "mark": "\ufeff" + text,
        "gallery-alone": text.replace("file", "gallery"),
    }.items():
        yield Vector(f"odd-{name}", envelope(payload), said)
    for name, twice in {
        "a.bin": ("b.bin", "a.bin"),
        "A.bin": ("b.bin", "A.bin"),
        "release.json": ("b.bin", "release.json"),
        "Release.JSON": ("b.bin", "Release.JSON"),
    }.items():
        yield Vector(f"twice-{name}", envelope(text.replace(*twice)), f"the name {name.lower()} twice")
    both = replace(FIRST, gallery=(file_of("B.bin"),))
    yield Vector("twice-in-the-gallery", envelope(both.payload), "the name b.bin twice")
    later = text.replace("release 1", "release 2") + "something new\n"
    yield Vector("format-2", envelope(later), "found format 2. Update the app")


def vectors() -> list[Vector]:
    kinds = (taken, refused_by_rule, forged, malformed, signed_nonsense)
    return [vector for kind in kinds for vector in kind()]


FILES = {  # name -> the bytes that came, and a part of what is said of them
    "file-right": (RIGHT, "right"),
    "file-changed": (CHANGED, "sha256"),
    "file-longer": (LONGER, "30 bytes"),
    "file-truncated": (RIGHT[:-1], "19 bytes"),
    "file-empty": (b"", "0 bytes"),
    "file-page": (b"<!doctype html>", "15 bytes"),
}


def write_vectors(folder: Path) -> None:
    """`releases.tsv` and `files.tsv`: a vector a line, bytes in base64."""
    digits = KEY.public_key().public_bytes_raw().hex()

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    rows = [
        (
            one.name,
            text(one.data),
            digits,
            one.space,
            text(signed(one.installed)) if one.installed else "",
            str(one.pinned),
        )
        for one in vectors()
    ]
    (folder / "releases.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    files = [(name, text(data), "b.bin", str(B.bytes), B.sha256) for name, (data, _) in FILES.items()]
    (folder / "files.tsv").write_text("".join("\t".join(row) + "\n" for row in files))
