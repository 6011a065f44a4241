"""Conditions on the columns of a gallery, in SQL, as people write them at a command line."""

from __future__ import annotations

import re

from gallery.errors import InputError

MAX_LENGTH, MAX_DEPTH = 4096, 32
TOKEN = re.compile(
    r"\s+|'(?:[^']|'')*'|`[^`]*`|\"(?:[^\"]|\"\")*\"|(?P<word>[A-Za-z_]\w*)|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+"
    r"|(?P<comment>--|/\*)|<=|>=|<>|!=|\|\||(?P<open>[(\[])|(?P<close>[)\]])|[=<>+*/%,.:-]"
)
STATEMENTS = {"select", "with", "table", "values", "union", "exists", "insert", "update", "delete", "drop"}


def check_where(where: str) -> None:
    """Raise `InputError` unless `where` is one condition, without comments, statements and subqueries.

    LanceDB silently ignores what follows a semicolon: a filter that is longer than it seems would leave items out.
    """
    at, depth = 0, 0
    problem = f"{len(where):,} characters, more than {MAX_LENGTH:,}" if len(where) > MAX_LENGTH else ""
    while not problem and at < len(where):
        token = TOKEN.match(where, at)
        if token is None:
            problem = f"{where[at]!a} at character {at + 1}"
            break
        depth += bool(token["open"]) - bool(token["close"])
        if token["comment"]:
            problem = "a comment"
        elif (token["word"] or "").lower() in STATEMENTS:
            problem = f"the word {token[0]}; a column of that name is written `{token[0]}`"
        elif not 0 <= depth <= MAX_DEPTH:
            problem = "brackets that do not match, or too many"
        at = token.end()
    if not problem and (depth or not where.strip()):
        problem = "brackets that do not match" if depth else "nothing"
    if problem:
        fix = "Write one condition, such as: price < 10 AND brand = 'acme'"
        raise InputError("one condition on the columns of the gallery", problem, fix)
