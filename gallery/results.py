"""`results.json`: every number of a run, typed and frozen.  JSON, tables and HTML render the same record."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from gallery.errors import CorruptFile
from gallery.files import MAX_JSON, atomic_write, read_bytes
from gallery.open_world_results import OpenWorldResults
from gallery.partition_results import DelegatePartitions
from gallery.record import Record
from gallery.skew_results import PreprocessingSkew
from gallery.training_results import HashCenterSummary, Quantization, TrainingCurve

TEACHER_TEACHER, STUDENT_GALLERY, STUDENT_STUDENT = "teacher->teacher", "student->gallery", "student->student"
MAX_DISAGREEMENTS = 50  # listed in `ModelResult.disagreements`
MARGIN_BINS, MARGIN_STEP = 24, 1 / 8  # of `ModelResult.margins`; the step in standard deviations


class EvaluationProtocol(Record):
    """What was measured on what.  train, validation, gallery, query: numbers of images; top_k: None means all."""

    dataset: str
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


class RetrievalPair(Record):
    """One "queries->gallery" pair.  map: tie-aware, over all relevant; map_retrieved: the literature's denominator.

    recall_at_*: share of a query's 1, 10 or 100 nearest images by the pretrained teacher's float features that are
    among its 1, 10 or 100 nearest by code; measured where nothing was learned from labels.  What was not measured is
    None: mAP without labels, recall without a gallery that is larger.
    """

    name: str
    map: float | None = None
    map_retrieved: float | None = None
    recall_at_1: float | None = None
    recall_at_10: float | None = None
    recall_at_100: float | None = None


class WorstQuery(Record):
    """A query whose code changed most: its index among the queries, and how many of its bits flipped."""

    query: int
    flipped: int


class BitDisagreement(Record):
    """A bit that differs from the host's: indices of the query and of the bit in the code, both logits."""

    query: int
    bit: int
    logit: float
    host: float


class ModelResult(Record):
    """One exported model on one device, run over all queries and compared with the float student.

    status, reason: "skipped" without an engine for it here, "failed" in its engine; and why, with the error's type
    bit_flip_rate, recall_at_10: share of bits that differ from the float student's; share of its ten nearest images
    flips_beyond_tolerance: bits that differ although |float logit| exceeds the tolerance of `Thresholds`
    predicted_bit_flip_rate: what the model's logit error alone explains (`compare.predicted_bit_flip_rate`)
    margins:   histogram of |logit|, in bins of an eighth of the float student's standard deviation
    map, map_drop: the model's, and the float student's minus it; over all queries: where a device ran only some, the
               host's figure plus the difference that these make
    neighbor_recall, neighbor_recall_drop: likewise, recall@10 of float neighbors (see `RetrievalPair`)
    neighbor_recall_error: the standard error of that drop over the queries: one flipped bit may lose a neighbor
    bit_flips: how many queries each of the code's bits differs in
    host_flips, host_flips_beyond, disagreements: bits that differ from those of the same model on the host; of these,
               where the host's |logit| exceeds the tolerance; the first `MAX_DISAGREEMENTS` of the latter
    device, conditions: where it ran, and what is known of it: processor, governor, temperature
    *_ms:      milliseconds there for one image at a time; those of a host or an emulator are no phone's
    peak_memory_mb: most resident memory that opening and running the model added, 10**6 bytes
    instructions: executed ARM instructions for one image, counted under emulation; no time
    partitions: what execution providers and delegates take of it; in the rows of the host
    """

    variant: str
    format: str
    precision: str
    path: str
    status: Literal["ran", "skipped", "failed"]
    reason: str = ""
    device: str = "host"
    engine: str = ""
    bytes: int = 0
    sha256: str = ""
    bits_compared: int | None = None
    bits_flipped: int | None = None
    bit_flip_rate: float | None = None
    flips_beyond_tolerance: int | None = None
    predicted_bit_flip_rate: float | None = None
    bit_flips: tuple[int, ...] = ()
    worst: tuple[WorstQuery, ...] = ()
    recall_at_10: float | None = None
    host_flips: int | None = None
    host_flips_beyond: int | None = None
    disagreements: tuple[BitDisagreement, ...] = ()
    margins: tuple[int, ...] = ()
    map: float | None = None
    map_drop: float | None = None
    neighbor_recall: float | None = None
    neighbor_recall_drop: float | None = None
    neighbor_recall_error: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    samples: int | None = None
    threads: int | None = None
    peak_memory_mb: float | None = None
    instructions: int | None = None
    conditions: dict[str, str] = Field({})
    partitions: tuple[DelegatePartitions, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether weights and activations are floating point ("fp32", "fp16", "bf16")."""
        return self.precision.startswith(("fp", "bf", "float"))


class Threshold(Record):
    """The most a model may lose against the float student."""

    max_map_drop: float = Field(ge=0)
    """Largest loss of mAP, 0..1; without labels, of recall@10 of float neighbors beyond twice its standard error."""
    max_bit_flip_rate: float = Field(ge=0, le=1)
    """Largest share of bits that differ from the float student's, 0..1."""


class Thresholds(Record):
    """The quality gate, as data.  The command line is made of it too, hence a line under each field."""

    float: Threshold = Threshold(max_map_drop=0.002, max_bit_flip_rate=0.005)
    """For fp32 and fp16 models."""
    quantized: Threshold = Threshold(max_map_drop=0.01, max_bit_flip_rate=0.02)
    """For models with integer weights or activations."""
    logit_tolerance: NonNegativeFloat = 1e-3
    """The |logit| above which an fp32 model must give the float student's bit."""
    max_fp32_bit_flips: int | None = 0
    """How many bits of an fp32 model may differ beyond the tolerance (None: any)."""
    max_p90_latency_ms: dict[str, NonNegativeFloat] = Field({})
    """Most milliseconds for 90 % of the images, by device: host 5 browser-wasm-1t 20."""
    max_size_mb: NonNegativeFloat | None = None
    """Largest size of a model, 10**6 bytes (None: any)."""
    min_map_ratio: NonNegativeFloat | None = None
    """Least mAP (without labels: recall@10) of student->gallery over teacher->teacher (None: not gated)."""

    def of(self, row: ModelResult) -> Threshold:
        """The thresholds of a model's precision."""
        return self.float if row.is_float else self.quantized


class GateResult(Record):
    """failures: one sentence each; notes: what could not be checked here, which fails only a strict gate."""

    passed: bool
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Thumbnail(Record):
    """A thumbnail as a data: URI; label: its class names; distance, right: to the query, whether they share a class."""

    image: str = Field(pattern=r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]*={0,2}$")  # fetches, injects nothing
    label: str
    distance: int | None = None
    right: bool | None = None


class RetrievalExample(Record):
    """A query and its nearest gallery images, nearest first."""

    query: Thumbnail
    hits: tuple[Thumbnail, ...]


class Skipped(Record):
    """An image that could not be used, and why."""

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


class EvaluationResults(Record):
    """The exported models of a student on the devices asked for, compared with the float student.

    query_set, num_queries: in words, which images were queried, and how many on the host
    gallery_size, map: of the gallery and of the float student in it; None without a gallery or without labels
    neighbor_recall: likewise, recall@10 of float neighbors; measured where nothing was learned from labels
    models: a row for each device and model, devices in the order asked for
    thresholds, gate: set by `mobile_eval.gate.apply`, the last step
    notes: what no row says: a device without a model for it, a model without a result of the host to compare with
    """

    schema_version: Literal[2] = 2
    created: str
    command: str
    name: str
    code_space: str
    bits: int
    student: str
    query_set: str
    num_queries: int
    gallery_size: int | None
    map: float | None
    neighbor_recall: float | None = None
    models: tuple[ModelResult, ...]
    thresholds: Thresholds = Thresholds()
    gate: GateResult = GateResult(passed=False)
    notes: tuple[str, ...] = ()
    examples: tuple[RetrievalExample, ...] = ()
    system: SystemInfo

    def save(self, path: Path) -> Path:
        """Write the JSON, whole or not at all."""
        return atomic_write(path, self.model_dump_json(indent=1) + "\n")


class RunResults(EvaluationResults):
    """A whole training run.  center_distance: least Hamming distance between hash centers, None where no class has one;
    seconds: by stage.

    open_world: where gallery or queries have classes that training had no label of
    skew: where the queries are larger than the student's input
    data_warnings, warnings: sentences on the data ("check your data") and on results that are of no use; a strict gate
    fails by any of them
    """

    seed: int
    center_distance: int | None
    protocol: EvaluationProtocol
    model_summaries: tuple[ModelSummary, ...]
    pairs: tuple[RetrievalPair, ...]
    open_world: OpenWorldResults | None = None
    skew: PreprocessingSkew | None = None
    hash_centers: HashCenterSummary | None = None
    quantization: Quantization | None = None
    curves: tuple[TrainingCurve, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    data_warnings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float]

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `open_world` and `skew` where there are none."""
        absent = ("open_world", "skew")
        return {name: value for name, value in serialize(self).items() if name not in absent or value is not None}

    @property
    def alarms(self) -> tuple[str, ...]:
        """What must be said before anything else: random starts, which are never forgotten, and `warnings`."""
        roles = [summary.role for summary in self.model_summaries if summary.random]
        who = " and ".join(roles).capitalize() + (" start" if len(roles) > 1 else " starts")
        start = f"{who} from RANDOM weights: expect far less than from pretrained ones."
        return (*([start] if roles else []), *self.warnings)


def load(path: Path) -> EvaluationResults:
    """Read what `save` wrote, `RunResults` of a training run; `CorruptFile` names the first field at fault."""
    try:
        data = read_bytes(path, MAX_JSON)
        kind = RunResults if b'"model_summaries":' in data else EvaluationResults
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    except (OSError, ValueError) as error:
        found = str(error)
    raise CorruptFile(f"evaluation results of schema 2 in {path}", found, "Run the command that wrote it again.")


def load_run(path: Path) -> RunResults:
    """Read the results of a training run, likewise."""
    if isinstance(results := load(path), RunResults):
        return results
    raise CorruptFile(f"results of a training run in {path}", "those of an evaluation", "Name a run's results.json.")


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
