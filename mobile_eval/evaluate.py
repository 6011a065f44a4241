"""Run every exported model on every device: a row for each device and model, whatever happens there."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.artifact import ExportedModel, ExportFailure, first_line
from export.bundle import Golden
from gallery.codes import pack, unpack
from gallery.console import log, track
from gallery.errors import CodeSpaceMismatch, CorruptFile, DeviceLost, InputError
from gallery.results import ModelResult, Thresholds
from mobile_eval.compare import NO_ENGINE, FloatReference, compare_to_float, compare_to_host
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.host import Host
from mobile_eval.devices.subprocess_device import WorkerKilled
from mobile_eval.formatting import count, number, percent
from mobile_eval.gate import row_failures, row_name
from mobile_eval.golden import OK, compare_golden

RETRIEVAL = ("map", "map_drop", "neighbor_recall", "neighbor_recall_drop")
Model = ExportedModel | ExportFailure


@dataclass(frozen=True, eq=False)
class DeviceResults:
    """Results of one device.

    reference: the queries that its models ran on; rows: one per model whose format it runs; outputs: by checksum;
    killed: variants whose process was killed from outside or took too long
    """

    device: str
    reference: FloatReference
    rows: list[ModelResult]
    outputs: dict[str, DeviceOutput]
    killed: list[str]


def evaluate(
    devices: Sequence[Device], models: Sequence[Model], reference: FloatReference, num_queries: int | None = None
) -> tuple[list[DeviceResults], list[str]]:
    """Evaluate all models on all devices; returns the results of each device, and notes on what no row says.

    The host runs first, even if it is not among the devices: the others are compared with it.  Devices run one after
    the other, since two that share the cores would slow down each other.

    num_queries: most queries on slow devices: all but the host and Core ML (None: all queries)
    Raises only `CodeSpaceMismatch`, as `evaluate_on`.
    """
    host = next((device for device in devices if device.name == Host.name), Host(samples=0))
    host_results = evaluate_on(host, models, reference)
    few = reference if num_queries is None else reference.subset(num_queries)
    reasons = {row.variant: row.reason for row in host_results.rows if row.status != "ran"}
    found, notes = [], []
    for device in devices:
        queries = reference if device.all_queries else few
        results = host_results if device is host else evaluate_on(device, models, queries, host_results)
        found.append(results)
        notes += [] if results.rows else [f"{device.name}: none of the bundle's files is for it"]
        notes += [
            f"{row_name(row)}: not compared with the host, where it did not run: {reasons[row.variant]}"
            for row in results.rows
            if device is not host and row.bit_flip_rate is not None and row.host_flips is None
        ]
    return found, notes


def evaluate_on(
    device: Device, models: Sequence[Model], reference: FloatReference, host: DeviceResults | None = None
) -> DeviceResults:
    """Evaluate each model whose format the device runs; one that could not be exported is a skipped row.

    A device that is missing or lost leaves rows with the reason; a model that fails leaves one.
    host: results of the same models there, on all queries
    Raises only `CodeSpaceMismatch`, for codes that must not be compared, and `OSError` of a full disk.
    """
    results = DeviceResults(device.name, reference, [], {}, [])
    models = [model for model in models if model.variant.partition("-")[0] in device.formats]
    try:
        with device:
            device.push([model for model in models if isinstance(model, ExportedModel)], reference.pixels)
            for model in track(models, f"evaluating on {device.name}", len(models)):
                results.rows.append(_evaluate_model(device, model, results, host))
                log.info("  %s", format_row(results.rows[-1]))
    except CodeSpaceMismatch:
        raise
    except Exception as error:  # no device may cost the others their rows
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("  %s: %s", device.name, error)
        results.rows.extend(_row(device, model, "skipped", error) for model in models[len(results.rows) :])
    return results


def fail_on_golden(
    results: DeviceResults, models: Sequence[ExportedModel], golden: Golden, thresholds: Thresholds
) -> DeviceResults:
    """Fail the rows of models that do not return the golden codes, as `verify` would, though no threshold is exceeded.

    results: of a device that ran the golden inputs, or some of them
    """
    indices = results.reference.indices
    part = Golden(golden.images[indices], golden.codes[indices], golden.logits[indices])
    rows, by_sum = [], {model.sha256: model for model in models}
    for row in results.rows:
        if row.status == "ran" and row.bit_flip_rate is not None and not row_failures(row, thresholds):
            status, reason = compare_golden(by_sum[row.sha256].precision, results.outputs[row.sha256], part)
            row = (
                row
                if status == OK
                else row.model_copy(update={"status": "failed", "reason": f"golden codes: {reason}"})
            )
        rows.append(row)
    return replace(results, rows=rows)


def format_row(row: ModelResult) -> str:
    """Format a row as one line of the log."""
    if row.status != "ran":
        return f"{row_name(row)}: {row.status}: {row.reason}"
    found = {
        "bit flips": percent(row.bit_flip_rate), "flips vs host": count(row.host_flips), "mAP": number(row.map, 4),
        "recall@10 of float neighbors": number(row.neighbor_recall, 4),
        "p50 ms": number(row.p50_ms, 2), "million instructions": number(row.instructions and row.instructions / 1e6, 1),
    }  # fmt: skip
    return f"{row_name(row)}: {', '.join(f'{name} {value}' for name, value in found.items() if value != '-') or 'ran'}"


def _evaluate_model(device: Device, model: Model, results: DeviceResults, host: DeviceResults | None) -> ModelResult:
    """Evaluate one model; only errors that concern other models too are raised."""
    if isinstance(model, ExportFailure):
        return _row(device, model, "skipped")
    reference = results.reference
    try:
        reference.space.check_compatible(model.metadata.code_space, "the gallery", model.variant)
        if model.metadata.size != reference.pixels.shape[1]:
            expected = f"queries of {model.metadata.size} pixels, as the metadata of {model.variant} say"
            fix = "Resize the queries by the rule in the metadata."
            raise InputError(expected, f"{reference.pixels.shape[1]} pixels", fix)
        output = device.run(model)
        measured = {"engine": output.engine} | output.figures | _compare(model, output, reference, host)
        row = _row(device, model, "ran", **measured)
    except (CodeSpaceMismatch, DeviceLost):
        raise
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like; the other rows must still be made
        results.killed.extend([model.variant] if isinstance(error, WorkerKilled) else [])
        return _row(device, model, "skipped" if isinstance(error, NO_ENGINE) else "failed", error)
    results.outputs[model.sha256] = output
    return row


def _row(device: Device, model: Model, status: str, error: Exception | None = None, **measured: Any) -> ModelResult:
    format, _, precision = model.variant.partition("-")
    if isinstance(model, ExportedModel):
        reason, precision = "" if error is None else first_line(error), model.precision
        file: dict[str, Any] = {"path": model.path.name, "bytes": model.bytes, "sha256": model.sha256, "reason": reason}
    else:
        file = {"path": "", "reason": model.reason}
    known = {"variant": model.variant, "format": format, "precision": precision, "device": device.name}
    return ModelResult(**{**measured, **known, **file, "status": status})


def _compare(
    model: ExportedModel, output: DeviceOutput, reference: FloatReference, host: DeviceResults | None
) -> dict[str, Any]:
    """Compare a model's codes, if the device returned any; raises `CorruptFile` if they have another shape.

    mAP over a part of the queries is noise: over 32 queries a model gained 0.016 that lost 0.002 over all 420.  So a
    row has the host's mAP over all queries, plus the difference between device and host on these; so has its recall.
    """
    codes, logits, indices = output.codes, output.logits, reference.indices
    if codes is None or logits is None:
        return {}
    expected = pack(reference.logits).shape, reference.logits.shape
    if (codes.shape, logits.shape) != expected:
        found = f"{codes.shape} and {logits.shape}"
        raise CorruptFile(f"codes and logits of {expected} from {model.path.name}", found, "Export it again.")
    if wrong := int((unpack(codes) != unpack(pack(logits))).sum()):
        what, found = f"codes of {model.path.name} to be the signs of its logits", f"{wrong} bits that are not"
        raise CorruptFile(what, found, "Export it again, or use another engine.")
    measured = compare_to_float(codes, logits, reference)
    on_host = host.outputs.get(model.sha256) if host else None
    if host is None or on_host is None or on_host.codes is None or on_host.logits is None:
        return measured if reference.query_indices is None else measured | dict.fromkeys(RETRIEVAL)
    host_codes, host_logits = on_host.codes[indices], on_host.logits[indices]
    if reference.query_indices is not None:
        here = compare_to_float(host_codes, host_logits, reference)
        on_all = next(row for row in host.rows if row.sha256 == model.sha256).model_dump(include=set(RETRIEVAL))
        measured |= {key: on_all[key] + measured[key] - here[key] for key in RETRIEVAL if on_all[key] is not None}
    return measured | compare_to_host(codes, logits, host_codes, host_logits, reference)
