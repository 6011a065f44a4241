"""All the forms of one student: each format's slow conversion once, and a row for whatever was refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

from torch import nn

from export import to_coreai, to_coreml, to_litert, to_onnx
from export.artifact import ANY_SIZE, FLOAT, ExportedModel, ExportFailure, ModelMetadata, check_layers
from export.capture_output import quiet
from export.fake_quant import ranged, shipped
from export.query_model import QueryModel, deployable
from gallery.codespace import Preprocessing
from gallery.console import log, track
from gallery.errors import InputError


class Format(Protocol):
    """What each `to_*.py` offers: one slow `convert`, and a quick `write` for each precision."""

    FORMAT: str
    SUFFIX: str
    LAYOUT: str
    PRECISIONS: tuple[str, ...]
    INTEGERS: dict[str, bool]  # how it wants an 8-bit convolution said: see export/fake_quant.py

    def convert(self, model: QueryModel) -> Any: ...

    def write(self, program: Any, metadata: ModelMetadata, path: Path) -> ExportedModel: ...


STATIC = "w8a8", "w8a16"  # activations too, by ranges that calibration images gave
FORMATS: dict[str, Format] = {module.FORMAT: module for module in (to_onnx, to_litert, to_coreml, to_coreai)}


DEFAULT_PRECISIONS = "fp32", "fp16", "w8a32"


def select_variants(formats: Sequence[str], precisions: Sequence[str] = ()) -> list[str]:
    """List the variants, e.g. "onnx-w8a32": each precision in each format that has it.

    precisions: empty for the default ones: fp32, fp16 and w8a32, but for Core ML, which computes in fp16, without fp32
    Raises `InputError` for an unknown format, or for a precision that none of the formats has.
    """
    if not formats or not set(formats) <= set(FORMATS):
        found = ", ".join(formats) or "none"
        raise InputError(f"formats among {', '.join(FORMATS)}", found, "Choose from these.")
    known = {name: FORMATS[name].PRECISIONS for name in dict.fromkeys(formats)}
    if unknown := sorted(set(precisions) - {precision for each in known.values() for precision in each}):
        choices = "; ".join(f"{name}: {', '.join(each)}" for name, each in known.items())
        raise InputError(f"precisions that a chosen format has ({choices})", ", ".join(unknown), "Choose from these.")
    wanted = dict.fromkeys(precisions or DEFAULT_PRECISIONS)
    variants = [f"{name}-{precision}" for name, each in known.items() for precision in wanted if precision in each]
    return [variant for variant in variants if precisions or variant != "coreml-fp32"]


def check_forms(forms: Sequence[str]) -> None:
    """Raises `InputError` unless every form, e.g. "onnx-w8a32", can be made and is named once."""
    known = [f"{name}-{precision}" for name, format in FORMATS.items() for precision in format.PRECISIONS]
    wrong = sorted({form for form in forms if form not in known or list(forms).count(form) > 1})
    if wrong or not forms:
        raise InputError(
            "forms that can be made, each once", ", ".join(wrong) or "none", f"Choose from {', '.join(known)}."
        )


def export_all(
    net: nn.Module, preprocessing: Preprocessing, space_id: str, student: str, forms: Sequence[str], folder: Path,
    float_layers: Sequence[str] = (), simulated: Mapping[str, nn.Module] = MappingProxyType({}), calibration: str = "",
    dynamic_image_size: bool = False,
) -> list[ExportedModel | ExportFailure]:  # fmt: skip
    """Writes `folder/query-<precision>.<suffix>` for each form, in the order given.

    net:           normalised float32 `[B, 3, S, S]` to logits `[B, bits]`, left as it was
    float_layers:  dotted names, in the folded network, of convolutions and linear layers that no precision quantizes
    simulated:     networks of `export.quantize.simulate` by precision: for "w8a8" with simulated 8-bit layers, whose
                   ranges "w8a16" takes too; for "w8a32" with weights rounded together, or else to the nearest
    calibration:   how these were chosen, for the metadata
    dynamic_image_size: ONNX models take images `[B, H, W, 3]` of any size and resize them themselves
    A form whose converter raises is an `ExportFailure` with the reason; a form that does not exist, a layer that does
    not, or a network that cannot be folded, is an `InputError`; a full disk stays an `OSError`.
    """
    check_forms(forms)
    _check_rule(preprocessing, dynamic_image_size)
    model = QueryModel(deployable(net, preprocessing.size), preprocessing)
    check_layers(float_layers, [n for n, m in model.net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    programs: dict[tuple[str, str], Any] = {}
    rows = []
    for form in track(forms, "export", len(forms)):
        format, precision = _parsed(form)
        layout = ANY_SIZE if dynamic_image_size and format is FORMATS["onnx"] else format.LAYOUT
        metadata = ModelMetadata(
            space_id, model.bits, student, precision, model.size, preprocessing.resize, layout,
            float_layers=() if precision in FLOAT else tuple(float_layers),
            calibration=calibration if precision in STATIC else "",
        )  # fmt: skip
        given = simulated.get("w8a8" if precision == "w8a16" else precision)
        make = partial(_program, format, model, given, precision, preprocessing)
        key = "" if given is None else precision
        rows.append(_made(format, metadata, make, programs, key, folder / f"query-{precision}{format.SUFFIX}"))
    return rows


def _program(
    format: Format, model: QueryModel, simulated: nn.Module | None, precision: str, preprocessing: Preprocessing
) -> Any:
    """The format's own form of the network, of which the precision's weights are made."""
    if simulated is not None:
        return format.convert(QueryModel(_ready(simulated, format, precision), preprocessing))
    if precision in STATIC:
        raise ValueError("no pictures to calibrate it by")
    return format.convert(model)


def _ready(simulated: nn.Module, format: Format, precision: str) -> nn.Module:
    if precision == "w8a8":
        return shipped(simulated, **format.INTEGERS)
    return ranged(simulated) if precision == "w8a16" else simulated


def _check_rule(preprocessing: Preprocessing, dynamic_image_size: bool) -> None:
    rule = Preprocessing.resize
    if dynamic_image_size and preprocessing.resize != rule:
        raise InputError(f"the rule {rule!r} to resize inside the file", preprocessing.resize, "Resize outside.")


def _made(
    format: Format,
    metadata: ModelMetadata,
    make: Callable[[], Any],
    programs: dict[tuple[str, str], Any],
    key: str,
    path: Path,
) -> ExportedModel | ExportFailure:
    """key: of the network that the precision is made of; the float one is "", and shared."""
    if (format.FORMAT, key) not in programs:
        programs[format.FORMAT, key] = _attempt(make)
    program = programs[format.FORMAT, key]
    made = program if isinstance(program, Exception) else _attempt(lambda: format.write(program, metadata, path))
    if isinstance(made, Exception):
        form = f"{format.FORMAT}-{metadata.precision}"
        log.warning("  %s cannot be made: %s", form, reason(made))
        return ExportFailure(form, reason(made))
    return cast(ExportedModel, made)


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
