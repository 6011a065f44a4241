"""`results.json`: every number of a run, typed and frozen.  JSON, tables and HTML render the same `Results`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gallery.errors import CorruptFile
from gallery.files import write_whole

SCHEMA_VERSION = 1
TEACHER_TEACHER, STUDENT_GALLERY = "teacher->teacher", "student->gallery"
STUDENT_STUDENT, TEACHER_ALONE = "student->student", "teacher alone"
MOST_LISTED = 50  # of `FileRow.disagreements`
MARGIN_BINS, MARGIN_STEP = 24, 1 / 8  # of `FileRow.margins`; the step in standard deviations
DATA_URI = r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]*={0,2}$"  # can neither fetch nor inject anything


class Record(BaseModel):
    """Immutable, and unknown keys are refused; not-a-number survives JSON as the string "NaN"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


R = TypeVar("R", bound=Record)


class Protocol(Record):
    """What was measured on what.  train, validation, gallery, query: numbers of pictures; top_k: None means all."""

    dataset: str
    sentence: str
    classes: int
    train: int
    validation: int
    gallery: int
    query: int
    top_k: int | None = None
    tie_rule: str = "expectation over the order within each distance"
    denominator: str = "all relevant, at most top_k"
    seed: int


class ModelSummary(Record):
    """name: timm's; size: side of the input, pixels; weights: where they came from, in words; seconds: of training."""

    role: Literal["teacher", "student"]
    name: str
    parameters: int
    size: int
    weights: str
    random: bool
    seconds: float
    steps: int


class Cell(Record):
    """One "queries->gallery" pair.  map: tie-aware, over all relevant; map_retrieved: the literature's denominator."""

    name: str
    map: float
    map_retrieved: float | None = None
    note: str = ""


class WorstQuery(Record):
    """A query whose code changed most: its place among the queries, and how many of its bits flipped."""

    query: int
    flipped: int


class BitDisagreement(Record):
    """A bit that a file gave here and not on the host: its place among the queries and in the code, both logits."""

    query: int
    bit: int
    logit: float
    host: float


class ModelResult(Record):
    """One shipped file, executed over all queries and held against the float student.

    status:    "ran"; "not run": there is no engine for it here; "failed": an engine is here and the file broke in it
    reason:    why it did not run, with the error's type; empty when it ran
    flips_beyond_tolerance: bits that differ although |float logit| exceeds the tolerance of `Thresholds`
    predicted_flip_rate:    what the file's logit error alone explains (`compat.predicted_flip_rate`)
    margins:   how many logits lie how far from zero, in bins of an eighth of the float student's standard deviation
    map, map_drop: of the file, and that of the float student minus it; over all queries: where a device was asked only
               some, the host's figure and the difference that these make
    bit_flips: how many queries each of the code's bits differs in
    neighbours_kept: share of the float student's ten nearest gallery pictures that are among the file's
    host_flips, host_flips_beyond: bits that differ from those of the same file on the host, and of these, those where
               the host's |logit| exceeds the tolerance; disagreements: the first `MOST_LISTED` of the latter
    device:    where it ran; conditions: what is known of that place: processor, governor, temperature
    *_ms:      milliseconds there for one picture at a time; those of a host or an emulator are no phone's
    peak_memory_mb: most resident memory that opening and running the file added, 10**6 bytes
    instructions:   executed ARM instructions for one picture, counted under emulation; no time
    """

    form: str
    format: str
    precision: str
    path: str
    status: Literal["ran", "not run", "failed"]
    reason: str = ""
    device: str = "host"
    engine: str = ""
    bytes: int = 0
    sha256: str = ""
    bits_compared: int | None = None
    bits_flipped: int | None = None
    flip_rate: float | None = None
    flips_beyond_tolerance: int | None = None
    predicted_flip_rate: float | None = None
    bit_flips: tuple[int, ...] = ()
    worst: tuple[WorstQuery, ...] = ()
    neighbours_kept: float | None = None
    host_flips: int | None = None
    host_flips_beyond: int | None = None
    disagreements: tuple[BitDisagreement, ...] = ()
    margins: tuple[int, ...] = ()
    map: float | None = None
    map_drop: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    samples: int | None = None
    threads: int | None = None
    peak_memory_mb: float | None = None
    instructions: int | None = None
    conditions: dict[str, str] = {}

    @property
    def is_float(self) -> bool:
        """Whether weights and activations are floating point ("fp32", "fp16", "bf16")."""
        return self.precision.startswith(("fp", "bf", "float"))


class Threshold(Record):
    """The most a file may lose against the float student."""

    map_drop: float = Field(ge=0)
    """mAP points, 0..1."""
    flip_rate: float = Field(ge=0, le=1)
    """Share of its bits that may differ, 0..1."""


class Thresholds(Record):
    """The gate, as data.  The command line is made of it too, hence a line under each field."""

    float_files: Threshold = Threshold(map_drop=0.002, flip_rate=0.005)
    """For fp32 and fp16 files."""
    quantized_files: Threshold = Threshold(map_drop=0.01, flip_rate=0.02)
    """For files with integer weights or activations."""
    tolerance: float = Field(default=1e-3, ge=0)
    """The |logit| above which an fp32 file must give the float student's bit."""
    fp32_beyond_tolerance: int | None = 0
    """How many bits of an fp32 file may differ beyond the tolerance (None: any)."""
    p90_ms: dict[str, float] = {}
    """Most milliseconds for 90 % of the pictures, by device: host 5 browser-wasm-1 20."""
    size_mb: float | None = None
    """Most a file may weigh, 10**6 bytes (None: any)."""
    min_ratio: float | None = None
    """Least mAP of student->gallery over teacher->teacher (None: not gated)."""

    def of(self, row: ModelResult) -> Threshold:
        """The limit of a file's kind."""
        return self.float_files if row.is_float else self.quantized_files


class GateResult(Record):
    """failures: one sentence each; notes: what could not be checked here, which fails only a strict gate."""

    passed: bool
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class TrainingCurve(Record):
    """Training of one stage.  loss and accuracy (0..1, maybe empty) belong to `steps`; validation: (step, accuracy)."""

    stage: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.loss) != len(self.steps) or len(self.accuracy) not in (0, len(self.steps)):
            raise ValueError(f"{len(self.steps)} steps, {len(self.loss)} losses, {len(self.accuracy)} accuracies")
        return self


class HashCenterSummary(Record):
    """Hamming distances between the hash centers of some classes, and beside them how alike the classes are.

    similarity: cosines, of what `similarity_of` says; correlation: of the likeness of centers with it, None where that
    does not vary; construction, assignment: as configured
    """

    classes: tuple[str, ...]
    distance: tuple[tuple[int, ...], ...]
    similarity: tuple[tuple[float, ...], ...]
    similarity_of: str
    construction: str
    assignment: str
    correlation: float | None


class LayerRow(Record):
    """What one layer alone does when it is 8-bit.

    mode: "weights", or "int8" for its activations too; flips: share of bits that turn; error: mean |change of a logit|;
    kept: whether it was left as it was for that reason
    """

    layer: str
    mode: Literal["weights", "int8"]
    flips: float
    error: float
    kept: bool


class Quantization(Record):
    """How the layers that become 8-bit were chosen.  flips: share of bits that turn in the end, by mode; layers: worst
    first, those of the weights before those of the activations."""

    calibration: str
    flips: dict[str, float]
    layers: tuple[LayerRow, ...]


class Thumbnail(Record):
    """A thumbnail as a data: URI; label: its class names; distance, right: to the query, whether they share a class."""

    image: str = Field(pattern=DATA_URI)
    label: str
    distance: int | None = None
    right: bool | None = None


class RetrievalExample(Record):
    """A query and its nearest gallery pictures, nearest first."""

    query: Thumbnail
    hits: tuple[Thumbnail, ...]


class Skipped(Record):
    """An input that could not be used, and why."""

    path: str
    reason: str


class SystemInfo(Record):
    """What the numbers were taken on.  cores: those this process may use; memory_gb: 2**30 bytes."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None
    os: str
    python: str
    packages: dict[str, str]


class Results(Record):
    """A whole run.  created: UTC, ISO 8601; center_distance: least Hamming distance between hash centers."""

    schema_version: Literal[1] = 1
    created: str
    command: str
    name: str
    seed: int
    warnings: tuple[str, ...] = ()
    code_space: str
    bits: int
    center_distance: int
    protocol: Protocol
    networks: tuple[ModelSummary, ...]
    cells: tuple[Cell, ...]
    files: tuple[ModelResult, ...]
    limits: Thresholds
    verdict: GateResult
    curves: tuple[TrainingCurve, ...] = ()
    center_map: HashCenterSummary | None = None
    quantization: Quantization | None = None
    grid: tuple[RetrievalExample, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    seconds: dict[str, float]
    machine: SystemInfo

    @property
    def alarms(self) -> tuple[str, ...]:
        """What must be said before anything else: random starts first (never forgotten), then `warnings`."""
        roles = [network.role for network in self.networks if network.random]
        if not roles or any("RANDOM" in sentence for sentence in self.warnings):
            return self.warnings
        start = "start" if len(roles) > 1 else "starts"
        who = " and ".join(roles).capitalize()
        return (f"{who} {start} from RANDOM weights: expect far less than from pretrained ones.", *self.warnings)

    def cell(self, name: str) -> Cell | None:
        """The cell of that name, or None when it was not measured."""
        return next((cell for cell in self.cells if cell.name == name), None)

    @property
    def ratio(self) -> float | None:
        """mAP of student->gallery over teacher->teacher; None when either is missing, NaN over a zero."""
        return ratio(self.cells)

    def save(self, path: Path) -> Path:
        """Writes the JSON, whole or not at all."""
        return write_whole(path, self.model_dump_json(indent=1) + "\n")


class Proof(Record):
    """A bundle's files where they will run, held against the float student and the gallery.

    asked:   in words, which pictures; queries: how many, on the host; map: of the float student, None without labels
    files:   a row for each device and file, devices in the order asked for
    notes:   what no row tells: a device without a file for it, a file without answers of the host to compare with
    """

    schema_version: Literal[1] = 1
    created: str
    command: str
    name: str
    code_space: str
    bits: int
    student: str
    asked: str
    queries: int
    gallery: int | None
    map: float | None
    files: tuple[ModelResult, ...]
    limits: Thresholds
    verdict: GateResult
    notes: tuple[str, ...] = ()
    grid: tuple[RetrievalExample, ...] = ()
    machine: SystemInfo

    def save(self, path: Path) -> Path:
        """Writes the JSON, whole or not at all."""
        return write_whole(path, self.model_dump_json(indent=1) + "\n")


def load(path: Path) -> Results:
    """Reads what `Results.save` wrote; raises `CorruptFile` for anything else, naming the first field at fault."""
    return _load(path, Results)


def load_proof(path: Path) -> Proof:
    """Reads what `Proof.save` wrote, likewise."""
    return _load(path, Proof)


def _load(path: Path, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    except OSError as error:
        found = str(error)
    what = f"{kind.__name__.lower()} of schema {SCHEMA_VERSION} in {path}"
    raise CorruptFile(what, found, "Run the command that wrote it again.")


def ratio(cells: tuple[Cell, ...]) -> float | None:
    """mAP of student->gallery over teacher->teacher; None when either is missing, NaN over a zero."""
    found = {cell.name: cell.map for cell in cells}
    if not {STUDENT_GALLERY, TEACHER_TEACHER} <= found.keys():
        return None
    return found[STUDENT_GALLERY] / found[TEACHER_TEACHER] if found[TEACHER_TEACHER] else math.nan


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
