"""Every file in every place: devices by name, and a row for each device and file whatever happens there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.artifact import ExportedModel
from gallery.codes import pack
from gallery.console import log
from gallery.errors import CodeSpaceMismatch, CorruptFile, DeviceLost
from gallery.results import ModelResult
from mobile_eval.compare import NO_ENGINE, FloatReference, compare, compare_hosts, require
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.host import Host
from mobile_eval.gate import who

RANKED = ("map", "map_drop")


@dataclass(frozen=True, eq=False)
class DeviceResults:
    """What came of one device.

    against: what its files were asked; rows: one a file that it has an engine for; outcomes: by checksum
    """

    device: str
    against: FloatReference
    rows: list[ModelResult]
    outcomes: dict[str, DeviceOutput]


def everywhere(
    devices: Sequence[Device], files: Sequence[ExportedModel], against: FloatReference, count: int
) -> tuple[list[DeviceResults], list[str]]:
    """A lane for each device, in their order, and what no row tells.

    count: pictures at most where each takes long: on all devices but the host, and the reference of Core ML
    The host goes first, wanted or not: the others are held against it.  They go one at a time, since two that share
    the cores would slow each other's clock.
    """
    host = next((device for device in devices if device.name == Host.name), Host(samples=0))
    first = run_on(host, files, against)
    few, lanes = against.some(count), []
    for device in devices:
        asked = against if device.all_queries else few
        lanes.append(first if device is host else run_on(device, files, asked, first))
    return lanes, [note for lane in lanes for note in _notes(lane, first)]


def run_on(
    device: Device, files: Sequence[ExportedModel], against: FloatReference, host: DeviceResults | None = None
) -> DeviceResults:
    """Runs each file that the device has an engine for.

    host: what the same files answered there, to all queries
    A device that cannot be had, or is lost on the way, leaves rows that say why; so does a file that breaks there.
    Raises only `CodeSpaceMismatch`: a file of another code space must not be compared at all.
    """
    mine, lane = [file for file in files if file.format in device.formats], DeviceResults(device.name, against, [], {})
    try:
        with device:
            device.push(mine, against.pixels)
            for file in mine:
                lane.rows.append(_row(device, file, lane, host))
                log.info("  %s", line(lane.rows[-1]))
    except CodeSpaceMismatch:
        raise
    except Exception as error:  # noqa: BLE001 - no device may cost the others their rows
        log.warning("  %s: %s", device.name, error)
        lane.rows.extend(_bare(device, file, "skipped", error) for file in mine[len(lane.rows) :])
    return lane


def line(row: ModelResult) -> str:
    """A row in a line of the log."""
    if row.status != "ran":
        return f"{row.device} {row.variant}: {row.status}: {row.reason}"
    found = {
        "of bits flipped": None if row.bit_flip_rate is None else f"{row.bit_flip_rate:.3%}",
        "bits unlike the host's": None if row.host_flips is None else str(row.host_flips),
        "mAP": None if row.map is None else f"{row.map:.4f}",
        "ms at the median": None if row.p50_ms is None else f"{row.p50_ms:.2f}",
        "million instructions": None if row.instructions is None else f"{row.instructions / 1e6:,.1f}",
    }
    figures = ", ".join(f"{value} {name}" for name, value in found.items() if value is not None)
    return f"{row.device} {row.variant}: {figures or 'ran'}"


def _row(device: Device, file: ExportedModel, lane: DeviceResults, host: DeviceResults | None) -> ModelResult:
    """One file's row; only what concerns the other files too is raised."""
    try:
        require(file.card, file.form, lane.against)
        outcome = device.run(file)
        figures = _compared(file, outcome, lane.against, host)
        row = _bare(device, file, "ran")
        row = ModelResult(
            **{**vars(row), "engine": outcome.engine, **outcome.figures, **figures, "device": device.name}
        )
    except (CodeSpaceMismatch, DeviceLost):
        raise
    except NO_ENGINE as error:
        return _bare(device, file, "skipped", error)
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like; the other rows must still be made
        return _bare(device, file, "failed", error)
    lane.outcomes[file.sha256] = outcome
    return row


def _bare(device: Device, file: ExportedModel, status: str, error: Exception | None = None) -> ModelResult:
    reason = "" if error is None else f"{type(error).__name__}: {error}"
    return ModelResult(
        variant=file.form, format=file.format, precision=file.card.precision, path=file.path.name, status=status,
        reason=reason, device=device.name, bytes=file.bytes, sha256=file.sha256,
    )  # fmt: skip


def _compared(
    file: ExportedModel, outcome: DeviceOutput, against: FloatReference, host: DeviceResults | None
) -> dict[str, Any]:
    """What a file's codes say, where it gave any; raises `CorruptFile` when they have another shape."""
    codes, logits = outcome.codes, outcome.logits
    if codes is None or logits is None:
        return {}
    expected = pack(against.logits).shape, against.logits.shape
    if (codes.shape, logits.shape) != expected:
        found = f"{codes.shape} and {logits.shape}"
        raise CorruptFile(f"codes and logits of {expected} from {file.path.name}", found, "Export it again.")
    figures, known = compare(codes, logits, against), host and host.outcomes.get(file.sha256)
    if host is None or not known or known.codes is None or known.logits is None:
        return figures if against.places is None else figures | dict.fromkeys(RANKED)
    places = slice(None) if against.places is None else against.places
    here = known.codes[places], known.logits[places]
    if against.places is not None:
        figures |= _over_all(file, figures, compare(*here, against), host)
    return figures | compare_hosts(codes, logits, *here, against)


def _over_all(
    file: ExportedModel, there: dict[str, Any], here: dict[str, Any], host: DeviceResults
) -> dict[str, float]:
    """The mAP figures where only some queries were asked: the host's over all, and the difference that these make.

    Those of the few alone would be noise: over 32 queries a file gained 0.016 that lost 0.002 over all 420.
    """
    whole = next(row for row in host.rows if row.sha256 == file.sha256).model_dump(include=set(RANKED))
    return {key: whole[key] + there[key] - here[key] for key in RANKED if whole[key] is not None}


def _notes(lane: DeviceResults, host: DeviceResults) -> list[str]:
    if not lane.rows:
        return [f"{lane.device}: none of the bundle's files is for it"]
    reasons = {row.variant: row.reason for row in host.rows if row.status != "ran"}
    alone = [row for row in lane.rows if lane is not host and row.bit_flip_rate is not None and row.host_flips is None]
    return [f"{who(row)}: not compared with the host, where it did not run: {reasons[row.variant]}" for row in alone]
