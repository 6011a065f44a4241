"""Export one student: every variant of format and precision, then a bundle of them."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from export import artifact, to_coreai, to_coreml, to_litert, to_mediapipe, to_onnx, to_ort
from export.artifact import (
    ANY_SIZE,
    FLOAT,
    LAYOUTS,
    ExportedModel,
    ExportFailure,
    ExportResult,
    Manifest,
    ModelMetadata,
)
from export.bundle import write_bundle
from export.capture_output import quiet
from export.fake_quant import convert_qdq, ranges_only
from export.golden import Golden
from export.golden_photos import draw_photos
from export.quantize import Pixels, QuantizationResult, logits, normalize, quantize
from export.query_model import QueryModel, inference_copy
from gallery.codes import Codes, pack
from gallery.codespace import CodeSpace, Preprocessing
from gallery.console import log, track
from gallery.decode import decode, to_square
from gallery.errors import InputError
from gallery.files import PARTIAL, partial_prefix, remove_partial


class ExportFormat(Protocol):
    """What each `to_*.py` offers: one slow `convert`, and a quick `write` for each precision."""

    FORMAT: str
    SUFFIX: str
    LAYOUT: str
    PRECISIONS: tuple[str, ...]
    QDQ_STYLE: dict[str, bool]  # arguments of `export.fake_quant.convert_qdq`

    def convert(self, model: QueryModel) -> Any: ...

    def write(self, converted: Any, metadata: ModelMetadata, path: Path) -> ExportedModel: ...


FORMATS: dict[str, ExportFormat] = {
    module.FORMAT: module for module in (to_onnx, to_litert, to_coreml, to_coreai, to_ort, to_mediapipe)
}
DEFAULT_PRECISIONS = "fp32", "fp16", "w8a32"
AUTHORSHIP = "author", "license", "model_version"  # fields of a request, of the commands and of the metadata
CALIBRATED = "w8a8", "w8a16"  # precisions with activations quantized by the ranges of calibration images


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """A trained network to export.

    net:         normalised float32 `[B, 3, S, S]` to logits `[B, bits]`; not modified
    name:        timm's, for the metadata; centers: of the code space, int8 `[classes, bits]`
    calibration: images uint8 `[n, S, S, 3]`, seen in training and held out (`export.quantize.quantize`)
    golden:      images, codes and logits of the float network (`export.bundle.Golden`)
    dynamic_image_size: ONNX models take images `[1, H, W, 3]` of any size and resize them themselves
    author, license, model_version: what the files say of themselves (`export.artifact.ModelMetadata`)
    """

    net: nn.Module
    name: str
    preprocessing: Preprocessing
    space: CodeSpace
    centers: NDArray[np.int8]
    calibration: tuple[Pixels, Pixels]
    golden: tuple[Pixels, Codes, NDArray[np.float32]]
    dynamic_image_size: bool = False
    author: str = ""
    license: str = ""
    model_version: int = 0


def export_bundle(
    request: ExportRequest, variants: Sequence[str], folder: Path
) -> tuple[Manifest, dict[str, Any] | None]:
    """Write the bundle `folder`, whole or not at all; return its manifest and how 8-bit layers were chosen.

    The second is `export.quantize.QuantizationResult.record`, None if no variant needs it.  Raises what `export_all`
    and `write_bundle` raise.
    """
    quantized = prepare_quantized(request, variants)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(folder.parent, folder.name)
    with tempfile.TemporaryDirectory(PARTIAL, partial_prefix(folder), folder.parent) as work:  # on the same disk
        exported = export_all(request, variants, Path(work), quantized)
        manifest = write_bundle(folder, exported, request.space, request.centers, golden_of(request))
    return manifest, quantized.record() if quantized else None


def golden_of(request: ExportRequest) -> Golden:
    """Return a request's golden inputs, then the squares of golden photographs, with the float network's codes."""
    images, codes, found = request.golden
    photos, size = draw_photos(request.preprocessing.size), request.preprocessing.size
    squares = np.stack([to_square(decode(data), size) for data in photos.values()])
    more = logits(copy.deepcopy(request.net).cpu().float(), normalize(squares, request.preprocessing)).numpy()
    joined = [np.concatenate(pair) for pair in ((images, squares), (codes, pack(more)), (found, more))]
    return Golden(joined[0], joined[1], joined[2], photos)


def prepare_quantized(request: ExportRequest, variants: Sequence[str]) -> QuantizationResult | None:
    """Choose the layers that become 8-bit; None if all variants are float ones.  `InputError` without calibration."""
    precisions = {variant.partition("-")[2] for variant in variants}
    if precisions <= set(FLOAT):
        return None
    net = inference_copy(request.net, request.preprocessing.size)
    activations = bool(precisions & set(CALIBRATED))
    return quantize(net, request.preprocessing, *request.calibration, activations)


def export_all(
    request: ExportRequest, variants: Sequence[str], folder: Path, quantized: QuantizationResult | None = None
) -> list[ExportResult]:
    """Write `folder/query-<precision>.<suffix>` for each variant, in the order given.

    quantized: of `prepare_quantized`: its layers kept in float are so in all quantized precisions; without it, w8a32
    rounds weights to the nearest, and the precisions that need calibration fail
    A variant whose converter raises is an `ExportFailure` with the reason; an unknown variant or layer, or a network
    that cannot be folded, is an `InputError`; a full disk stays an `OSError`.
    """
    known = [f"{name}-{precision}" for name, format in FORMATS.items() for precision in format.PRECISIONS]
    wrong = sorted({one for one in variants if one not in known or variants.count(one) > 1})
    if wrong or not variants:
        fix = f"Choose from {', '.join(known)}."
        raise InputError("variants that can be exported, each once", ", ".join(wrong) or "none", fix)
    exporter = _Exporter(request, folder, quantized)
    return [exporter.export(variant) for variant in track(variants, "export", len(variants))]


def select_variants(formats: Sequence[str], precisions: Sequence[str] = ()) -> list[str]:
    """List the variants, e.g. "onnx-w8a32": each precision in each format that has it.

    precisions: empty for the default ones: fp32, fp16 and w8a32, but for Core ML, which computes in fp16, without fp32
    Raises `InputError` for an unknown format, or for a precision that none of the formats has.
    """
    if not formats or not set(formats) <= set(FORMATS):
        raise InputError(f"formats among {', '.join(FORMATS)}", ", ".join(formats) or "none", "Choose from these.")
    known = {name: FORMATS[name].PRECISIONS for name in dict.fromkeys(formats)}
    if unknown := sorted(set(precisions) - {precision for each in known.values() for precision in each}):
        choices = "; ".join(f"{name}: {', '.join(each)}" for name, each in known.items())
        raise InputError(f"precisions that a chosen format has ({choices})", ", ".join(unknown), "Choose from these.")
    wanted = dict.fromkeys(precisions or DEFAULT_PRECISIONS)
    variants = [f"{name}-{precision}" for name, each in known.items() for precision in wanted if precision in each]
    return [variant for variant in variants if precisions or variant != "coreml-fp32"]


class _Exporter:
    """Variants of one network; those of one converter that are made of the same weights share a conversion."""

    def __init__(self, request: ExportRequest, folder: Path, quantized: QuantizationResult | None) -> None:
        self.request, self.folder, self.quantized = request, folder, quantized
        net = inference_copy(request.net, request.preprocessing.size)
        self.model = QueryModel(net, request.preprocessing)
        self.float_layers = quantized.float_layers if quantized else ()
        weighted = [name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        artifact.check_layers(self.float_layers, weighted)
        self.converted: dict[tuple[Callable[..., Any], str], Any] = {}

    def export(self, variant: str) -> ExportResult:
        name, _, precision = variant.partition("-")
        format, path = FORMATS[name], self.folder / f"query-{precision}{FORMATS[name].SUFFIX}"
        try:
            with quiet():
                return format.write(self.convert(format, precision), self.metadata(format, precision), path)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  (converters raise everything there is; the row says why)
            log.debug("export failed", exc_info=error)
            log.warning("  %s failed: %s", variant, artifact.first_line(error))
            return ExportFailure(variant, artifact.first_line(error))

    def convert(self, format: ExportFormat, precision: str) -> Any:
        """Convert the network that the precision is made of, once; a conversion that failed raises again."""
        quantized = self.quantized if precision in ("w8a32", *CALIBRATED) else None
        key = format.convert, precision if quantized else ""
        if key not in self.converted:
            try:
                self.converted[key] = format.convert(self.network(format, precision, quantized))
            except Exception as error:  # noqa: BLE001
                self.converted[key] = error
        if isinstance(self.converted[key], Exception):
            raise self.converted[key]
        return self.converted[key]

    def network(self, format: ExportFormat, precision: str, quantized: QuantizationResult | None) -> QueryModel:
        if precision in CALIBRATED and not (quantized and quantized.activations):
            raise ValueError("no images to calibrate by")
        if quantized is None:
            return self.model
        net = quantized.stored
        if precision in CALIBRATED:
            net = convert_qdq(quantized.net, **format.QDQ_STYLE) if precision == "w8a8" else ranges_only(quantized.net)
        return QueryModel(net, self.request.preprocessing)

    def metadata(self, format: ExportFormat, precision: str) -> ModelMetadata:
        request = self.request
        dynamic = request.dynamic_image_size and ANY_SIZE in LAYOUTS[format.FORMAT]
        return ModelMetadata(
            request.space.id, self.model.bits, request.name, precision, self.model.size, request.preprocessing.rule,
            layout=ANY_SIZE if dynamic else format.LAYOUT,
            float_layers=() if precision in FLOAT else self.float_layers,
            calibration=self.quantized.calibration if self.quantized and precision in CALIBRATED else "",
            **{name: getattr(request, name) for name in AUTHORSHIP},
        )  # fmt: skip
