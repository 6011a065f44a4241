"""Names of classes and images: made comparable, and made fit to be shown."""

import unicodedata
from collections.abc import Iterable
from itertools import islice

JOINERS = "\u200c\u200d"  # inside of a word they belong to the spelling of some languages
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that move a cursor or hide, reorder or break text
MOST_SHOWN = 80  # characters of one name in a sentence


def clean_label(text: str) -> str:
    """Return a label so that what looks the same is the same: NFC, without blanks around it or invisible characters.

    Control characters inside of it are spelled out, so that a class may be shown anywhere.
    """
    text = unicodedata.normalize("NFC", text)
    kept = (c for c in text if unicodedata.category(c) != "Cf" or c in JOINERS)
    return visible("".join(kept).strip().strip(JOINERS).strip(), JOINERS)


def folded(label: str) -> str:
    """Return what is left of a label without case, blanks, invisible characters and compatibility forms."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def visible(text: str, keep: str = "") -> str:
    """Return `text` on one line, with each character that could steer a terminal or reorder text spelled out."""
    return "".join(_spelled(c) if unicodedata.category(c) in STEERING and c not in keep else c for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def some(names: Iterable[str], most: int = 5) -> str:
    """Return the first names as they may be shown, by comma, with dots where there are more."""
    first = [visible(name) for name in islice(names, most + 1)]
    shown = [name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}..." for name in first[:most]]
    return ", ".join([*shown, "..."] if len(first) > most else shown)


def counted(count: int, what: str, plural: str = "") -> str:
    """Return "1 image" or "3 images"."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"
