"""Names of classes and images: made comparable, and made fit to be shown."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

from gallery.console import plain

JOINERS = "\u200c\u200d"  # inside of a word they belong to the spelling of some languages
# Characters that show nothing, though they are no blanks or format characters by their category.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]")
LETTER, ALPHABETS = r"[^\W\d_]", {"LATIN", "GREEK", "CYRILLIC"}
MOST_SHOWN = 80  # characters of one name in a sentence


@lru_cache(4096)  # a folder of a million images has few names of classes
def clean_label(text: str) -> str:
    """Return a label so that what looks the same is the same: NFC, single blanks, no invisible characters.

    Control characters are spelled out, so that a class may be shown anywhere.
    """
    kept = "".join(c for c in BLANK.sub("", text) if unicodedata.category(c) != "Cf" or c in JOINERS)
    text = " ".join(unicodedata.normalize("NFC", kept).split()).strip(f" {JOINERS}")
    return "".join(c if c in JOINERS or c == " " else plain(c) for c in text)


def folded(label: str) -> str:
    """Return a label without case, blanks, invisible characters, compatibility forms, quotes, zeros that add nothing,
    and punctuation between letters."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    text = "".join(c for c in BLANK.sub("", text) if not c.isspace() and unicodedata.category(c) != "Cf")
    text = text.lstrip("'\"").rstrip("'\".")
    return re.sub(rf"(?<={LETTER})[\W_]+(?={LETTER})|^0+(?=\d)|(?<=\d)\.0+$", "", text)


def mixes_alphabets(label: str) -> bool:
    """Return whether a word has Latin letters beside Greek or Cyrillic ones, which look the same."""
    words = re.findall(f"{LETTER}+", label)
    return any({"LATIN"} < {unicodedata.name(c, "").split(" ")[0] for c in word} & ALPHABETS for word in words)


def some(names: Iterable[str], most: int = 5) -> str:
    """Return the first names as they may be shown, by comma, with dots where there are more."""
    first = [plain(name) for name in islice(names, most + 1)]
    shown = [name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}..." for name in first[:most]]
    return ", ".join([*shown, "..."] if len(first) > most else shown)


def counted(count: int, what: str, plural: str = "") -> str:
    """Return "1 image" or "3 images"."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"
