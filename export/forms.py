"""All the forms of one student: each format's slow conversion once, and a row for whatever was refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from export import to_coreml, to_litert, to_onnx
from export.artifact import Artifact, Refused
from export.card import Card
from export.query_model import QueryModel, deployable
from export.quiet import quiet
from gallery.codespace import Preprocessing
from gallery.console import log, track
from gallery.errors import InputError


class Format(Protocol):
    """What each `to_*.py` offers: one slow `convert`, and a quick `write` for each precision."""

    FORMAT: str
    SUFFIX: str
    LAYOUT: str
    PRECISIONS: tuple[str, ...]

    def convert(self, model: QueryModel) -> Any: ...

    def write(self, program: Any, card: Card, path: Path) -> Artifact: ...


FORMATS: dict[str, Format] = {module.FORMAT: module for module in (to_onnx, to_litert, to_coreml)}


def check_forms(forms: Sequence[str]) -> None:
    """Raises `InputError` unless every form, e.g. "onnx-int8-weights", can be made and is named once."""
    known = [f"{name}-{precision}" for name, format in FORMATS.items() for precision in format.PRECISIONS]
    wrong = sorted({form for form in forms if form not in known or list(forms).count(form) > 1})
    if wrong or not forms:
        raise InputError(
            "forms that can be made, each once", ", ".join(wrong) or "none", f"Choose from {', '.join(known)}."
        )


def export_all(
    net: nn.Module, preprocessing: Preprocessing, space_id: str, student: str, forms: Sequence[str], folder: Path
) -> list[Artifact | Refused]:
    """Writes `folder/query-<precision>.<suffix>` for each form, in the order given.

    net: normalised float32 `[B, 3, S, S]` to logits `[B, bits]`, left as it was
    A form whose converter raises is a `Refused` row with the reason; a form that does not exist, or a network that
    cannot be folded, is an `InputError`; a full disk stays an `OSError`.
    """
    check_forms(forms)
    model = QueryModel(deployable(net, preprocessing.size), preprocessing)
    programs: dict[str, Any] = {}
    rows = []
    for form in track(forms, "export", len(forms)):
        format, precision = _parsed(form)
        card = Card(space_id, model.bits, student, precision, model.size, preprocessing.resize, format.LAYOUT)
        rows.append(_made(format, card, model, programs, folder / f"query-{precision}{format.SUFFIX}"))
    return rows


def _made(format: Format, card: Card, model: QueryModel, programs: dict[str, Any], path: Path) -> Artifact | Refused:
    if format.FORMAT not in programs:
        programs[format.FORMAT] = _attempt(lambda: format.convert(model))
    program = programs[format.FORMAT]
    made = program if isinstance(program, Exception) else _attempt(lambda: format.write(program, card, path))
    if isinstance(made, Exception):
        form = f"{format.FORMAT}-{card.precision}"
        log.warning("  %s cannot be made: %s", form, reason(made))
        return Refused(form, reason(made))
    return cast(Artifact, made)


def _attempt(step: Any) -> Any:
    """The step's result, or the exception it raised: converters raise everything there is."""
    try:
        with quiet():
            return step()
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  (the row says why)
        log.debug("export failed", exc_info=error)
        return error


def reason(error: Exception) -> str:
    """One line: the class and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no detail'}"


def _parsed(form: str) -> tuple[Format, str]:
    name, _, precision = form.partition("-")
    return FORMATS[name], precision
