from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artifact import ExportedModel, ExportFailure, ModelMetadata
from gallery.codes import RULE, pack
from gallery.errors import CodeSpaceMismatch, InputError, MissingBackend
from gallery.files import sha256_of
from gallery.index import GalleryIndex
from gallery.results import MARGIN_BINS, MAX_DISAGREEMENTS, BitDisagreement, Thresholds, WorstQuery
from mobile_eval import compare
from mobile_eval.compare import FloatReference
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.host import Host
from mobile_eval.evaluate import evaluate_on
from mobile_eval.gate import check
from tests.gallery.galleries import index_of, space_of

BITS, SIZE, QUERIES = 16, 8, 130
SPACE = space_of(BITS, size=SIZE)
RNG = np.random.default_rng(5)


@functools.cache
def gallery(count: int = 40, multi: bool = False) -> GalleryIndex:
    codes, labels = pack(np.random.default_rng(0).standard_normal((40, BITS)))[:count], np.arange(count) % 2
    labels = np.eye(2, dtype=bool)[labels] if multi else labels
    return index_of(SPACE, codes, labels)


class Table(Device):
    """A device whose outputs come from a table: the first two channels of an image's first pixel name its row."""

    name, formats = "host", ("onnx",)

    def __init__(self, logits: Any, codes: Any = None, space: str = SPACE.id, size: int = SIZE) -> None:
        self.logits, self.codes = logits, pack(logits) if codes is None else codes
        self.metadata = ModelMetadata(code_space=space, bits=BITS, student="s", precision="fp32", size=size, rule=RULE)
        self.ran = 0

    def prepare(self) -> None: ...

    def push(self, models: Any, images: Any) -> None:
        self.rows = images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)

    def run(self, model: ExportedModel) -> DeviceOutput:
        self.ran += 1
        return DeviceOutput(self.codes[self.rows], self.logits[self.rows], "a table", {"threads": 1})

    def close(self) -> None: ...


def numbered(queries: int) -> Any:
    pixels = np.zeros((queries, SIZE, SIZE, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(queries) % 256, np.arange(queries) // 256
    return pixels


def float_student(queries: int = QUERIES) -> Any:
    return np.random.default_rng(1).standard_normal((queries, BITS)).astype(np.float32)


def make_reference(logits: Any = None, **changes: Any) -> FloatReference:
    logits = float_student() if logits is None else logits
    labels = changes.pop("labels", np.arange(len(logits)) % 2)
    changes = {"classes": SPACE.classes, "gallery": gallery(), **changes}
    return FloatReference(numbered(len(logits)), logits, SPACE, labels, **changes)


def run_on(table: Table, folder: Path, reference: FloatReference | None = None) -> Any:
    """The row of a model on a device."""
    (folder / "m.onnx").write_bytes(b"weights")
    model = ExportedModel.of(folder / "m.onnx", "onnx", table.metadata)
    return evaluate_on(table, [model], reference or make_reference()).rows[0]


def slow_ap(code: Any, label: int, gallery: GalleryIndex, orders: int = 400) -> float:
    """Mean of the plain AP over random orders of ties."""
    bits = np.unpackbits(gallery.codes, axis=1, bitorder="little")
    distance = (bits != np.unpackbits(code, bitorder="little")).sum(axis=1)
    rng, total, labels = np.random.default_rng(3), 0.0, gallery.class_labels(SPACE.classes, False)
    for _ in range(orders):
        order = np.lexsort((rng.random(40), distance))
        right = labels[order] == label
        total += float(np.mean([right[: k + 1].mean() for k in np.flatnonzero(right)]))
    return total / orders


def test_the_float_student_itself_flips_nothing(tmp_path: Path) -> None:
    row = run_on(Table(float_student()), tmp_path)
    assert (row.status, row.bits_compared, row.bits_flipped, row.bit_flip_rate) == ("ran", QUERIES * BITS, 0, 0.0)
    assert (row.map_drop, row.predicted_bit_flip_rate, row.flips_beyond_tolerance, row.worst) == (0.0, 0.0, 0, ())
    assert (row.engine, row.bytes, row.sha256) == ("a table", 7, sha256_of(tmp_path / "m.onnx"))
    assert (row.device, row.threads, row.path) == ("host", 1, "m.onnx")


def test_known_flips_are_counted_and_placed(tmp_path: Path) -> None:
    logits = np.where(float_student() > 0, 1.0, -1.0).astype(np.float32)
    logits[7, 3], logits[99, 0], logits[99, 1] = 4e-4, 2e-3, -0.5  # bits 1, 1, 0
    moved = logits.copy()
    moved[7, 3], moved[99, 0], moved[99, 1] = -1e-4, -1e-4, 0.1
    row = run_on(Table(moved), tmp_path, make_reference(logits, tolerance=1e-3))
    assert (row.bits_flipped, row.flips_beyond_tolerance) == (3, 2)
    assert row.worst == (WorstQuery(query=99, flipped=2), WorstQuery(query=7, flipped=1))
    assert row.bit_flip_rate == 3 / (QUERIES * BITS)
    assert not check([row], Thresholds()).passed


def test_a_zero_logit_is_a_zero_bit(tmp_path: Path) -> None:
    logits = float_student()
    logits[:, 5] = 0.0
    nearly = logits.copy()
    nearly[:, 5] = -1e-6
    assert run_on(Table(nearly), tmp_path, make_reference(logits)).bits_flipped == 0
    nearly[:, 5] = 1e-6
    row = run_on(Table(nearly), tmp_path, make_reference(logits))
    assert (row.bits_flipped, row.flips_beyond_tolerance) == (QUERIES, 0)


def test_the_shipped_bytes_are_judged_and_not_the_logits(tmp_path: Path) -> None:
    """A file whose packing is broken (here: the other bit order) fails although its logits are perfect."""
    logits = float_student()
    reversed_order = np.packbits(logits > 0, axis=1, bitorder="big")
    row = run_on(Table(logits, codes=reversed_order), tmp_path)
    assert row.status == "failed"
    assert "the signs of its logits" in row.reason
    assert not check([row], Thresholds()).passed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 2))
def test_flips_and_map_equal_an_independent_slow_count(seed: int, queries: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((queries, BITS)).astype(np.float32)
    moved = (logits + noise * rng.standard_normal(logits.shape)).astype(np.float32)
    reference = make_reference(logits, tolerance=0.3)
    found = compare.compare_to_float(pack(moved), moved, reference)
    flips = [(q, b) for q in range(queries) for b in range(BITS) if (logits[q, b] > 0) != (moved[q, b] > 0)]
    assert found["bits_flipped"] == len(flips)
    assert found["bits_compared"] == queries * BITS
    assert found["flips_beyond_tolerance"] == sum(abs(float(logits[q, b])) > reference.tolerance for q, b in flips)
    counts = {q: sum(a == q for a, _ in flips) for q in range(queries)}
    expected = sorted((-n, q) for q, n in counts.items() if n)[: compare.WORST]
    assert [(-w.flipped, w.query) for w in found["worst"]] == expected


def test_map_equals_the_mean_over_random_tie_orders() -> None:
    logits = float_student(6)
    moved = logits + RNG.normal(0, 0.8, logits.shape).astype(np.float32)
    reference = make_reference(logits)
    found = compare.compare_to_float(pack(moved), moved, reference)
    slow = [[slow_ap(code, q % 2, gallery()) for q, code in enumerate(pack(z))] for z in (logits, moved)]
    assert reference.map == pytest.approx(np.mean(slow[0]), abs=4e-3)
    assert found["map"] == pytest.approx(np.mean(slow[1]), abs=4e-3)
    assert found["map_drop"] == pytest.approx(reference.map - found["map"], abs=1e-12)


def test_multi_hot_labels_and_a_cut_are_passed_on() -> None:
    logits = float_student(20)
    plain = make_reference(logits, top_k=7)
    hot = make_reference(logits, top_k=7, gallery=gallery(multi=True), labels=np.eye(2, dtype=bool)[np.arange(20) % 2])
    assert hot.map == pytest.approx(plain.map)
    assert plain.map != make_reference(logits).map


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 0.03, 0.2])
@pytest.mark.parametrize("shape", ["gaussian", "two peaks"])
def test_the_predicted_flip_rate_is_near_the_observed(noise: float, shape: str) -> None:
    rng = np.random.default_rng(11)
    logits = rng.standard_normal((4000, 64))
    if shape == "two peaks":  # a trained student: most logits far from zero
        logits = 0.5 * logits + np.where(rng.random(logits.shape) < 0.5, 1.0, -1.0)
    density = 1 / math.sqrt(2 * math.pi) * (1 if shape == "gaussian" else 2 * math.exp(-2))
    error = noise * rng.standard_normal(logits.shape)
    observed = int(((logits + error > 0) != (logits > 0)).sum())
    predicted = compare.predicted_bit_flip_rate(logits.astype(np.float32), error.astype(np.float32)) * logits.size
    assert predicted == pytest.approx(density * noise * math.sqrt(2 / math.pi) * logits.size, rel=0.1)
    assert abs(observed - predicted) < 4 * math.sqrt(predicted) + 0.1 * predicted + 1


def test_errors_that_grow_with_the_logit_are_not_overestimated() -> None:
    """A quantized tail that only stretches the logits flips nothing, however large the mean error."""
    logits = float_student(2000)
    everywhere = np.abs(0.1 * logits).mean() / math.sqrt(2 * math.pi)
    assert 0 < compare.predicted_bit_flip_rate(logits, 0.1 * logits) < everywhere / 10


def test_logits_that_are_not_numbers_fail_the_gate(tmp_path: Path) -> None:
    logits = float_student()
    broken = logits.copy()
    row_of_zero_bits = int(np.argmin((logits > 0).sum(axis=1)))
    broken[row_of_zero_bits, np.flatnonzero(logits[row_of_zero_bits] <= 0)[0]] = (
        np.nan
    )  # the bit stays 0: no flip at all
    row = run_on(Table(broken), tmp_path)
    assert row.bits_flipped == 0
    assert math.isnan(row.predicted_bit_flip_rate)
    assert not check([row], Thresholds()).passed


def test_a_stale_code_space_is_an_error_and_says_which_side(tmp_path: Path) -> None:
    stale = replace(SPACE, teacher_sha256="f" * 64)
    with pytest.raises(CodeSpaceMismatch, match="onnx-fp32 is stale"):
        run_on(Table(float_student(), space=stale.id), tmp_path)
    with pytest.raises(CodeSpaceMismatch, match="carry a code space"):
        run_on(Table(float_student(), space=""), tmp_path)


def test_nothing_of_a_stale_file_is_run(tmp_path: Path) -> None:
    engine = Table(float_student(), space="f" * 16)
    with pytest.raises(CodeSpaceMismatch):
        run_on(engine, tmp_path)
    assert engine.ran == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MissingBackend("a Mac", "Linux", "Use a Mac."), "skipped"),
        (ModuleNotFoundError("No module named 'x'"), "skipped"),
        (NotImplementedError("op sparse"), "skipped"),
        (RuntimeError("INVALID_PROTOBUF"), "failed"),
        (MemoryError("arena"), "failed"),
    ],
)
def test_what_stops_a_file_is_kept_with_its_type(tmp_path: Path, error: Exception, status: str) -> None:
    class Broken(Table):
        def run(self, model: ExportedModel) -> DeviceOutput:
            raise error

    row = run_on(Broken(float_student()), tmp_path)
    assert (row.status, row.map, row.bytes) == (status, None, 7)
    assert row.reason.startswith(type(error).__name__)
    assert str(error) in row.reason
    assert check([row], Thresholds()).passed is False


def test_breaking_in_the_middle_is_a_failed_row(tmp_path: Path) -> None:
    engine = Table(float_student())
    engine.logits = engine.logits[:100]  # of 130 queries
    row = run_on(engine, tmp_path)
    assert row.status == "failed"
    assert row.reason.startswith("IndexError")


def test_ctrl_c_is_not_swallowed(tmp_path: Path) -> None:
    class Interrupted(Table):
        def run(self, model: ExportedModel) -> DeviceOutput:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(Interrupted(float_student()), tmp_path)


def test_a_model_that_is_gone_fails(tmp_path: Path) -> None:
    metadata = Table(float_student()).metadata
    gone = ExportedModel(tmp_path / "gone.onnx", "onnx", metadata, "0" * 64, 7)
    (row,) = evaluate_on(Host(samples=0), [gone], make_reference()).rows
    assert row.status == "failed"
    assert "gone.onnx" in row.reason


def test_a_variant_that_was_not_exported_is_a_skipped_row_in_its_place(tmp_path: Path) -> None:
    table, path = Table(float_student()), tmp_path / "m.onnx"
    path.write_bytes(b"weights")
    models = [ExportFailure("onnx-fp16", "no op"), ExportedModel.of(path, "onnx", table.metadata)]
    rows = evaluate_on(table, [*models, ExportFailure("coreml-fp16", "no op")], make_reference()).rows
    assert [(row.variant, row.status, row.reason) for row in rows] == [
        ("onnx-fp16", "skipped", "no op"), ("onnx-fp32", "ran", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "engine",
    [
        Table(float_student(), size=SIZE + 1),
        Table(float_student()[:, :8]),
        Table(float_student(), codes=pack(float_student())[:, :1]),
    ],
)
def test_a_file_of_another_shape_fails_with_both_shapes(tmp_path: Path, engine: Table) -> None:
    row = run_on(engine, tmp_path)
    assert row.status == "failed"
    assert row.reason.startswith(("InputError", "CorruptFile"))
    assert "found" in row.reason


@pytest.mark.parametrize("logits", [float_student(5)[:, :8], float_student(4), np.full((5, BITS), np.nan, np.float32)])
def test_a_reference_without_one_finite_row_a_query_is_an_error(logits: Any) -> None:
    with pytest.raises(InputError, match="float-student logits"):
        FloatReference(numbered(5), logits, SPACE, np.zeros(5, int), gallery())


def test_margins_count_every_logit_by_its_distance_from_zero() -> None:
    logits = np.array([[0.0, -0.12, 0.13, 2.9, -30.0, np.nan]], np.float32)
    counts = compare.margins(logits, unit=1.0)
    assert (len(counts), sum(counts)) == (MARGIN_BINS, 6)
    assert counts[0] == 3  # 0, -0.12, and what is not a number
    assert counts[1] == 1
    assert counts[MARGIN_BINS - 1] == 2
    assert compare.margins(2 * logits, unit=2.0) == counts
    assert sum(compare.margins(np.zeros((3, 8), np.float32), unit=0.0)) == 24


def slow_nearest(code: Any, gallery: Any, k: int) -> list[int]:
    """One query at a time, one gallery image at a time, sorted by (distance, id)."""
    bits = [np.unpackbits(one, bitorder="little") for one in gallery.codes]
    mine = np.unpackbits(code, bitorder="little")
    ranked = sorted((sum(a != b for a, b in zip(mine, other, strict=True)), i) for i, other in enumerate(bits))
    return [i for _, i in ranked[:k]]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_bits_and_neighbours_equal_an_independent_slow_count(seed: int, noise: float) -> None:
    """16 bits leave many of 40 images at the same distance: the ids must settle it."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((9, BITS)).astype(np.float32)
    moved = (logits + noise * rng.standard_normal(logits.shape)).astype(np.float32)
    found = compare.compare_to_float(pack(moved), moved, make_reference(logits))
    kept = [
        len(set(slow_nearest(a, gallery(), 10)) & set(slow_nearest(b, gallery(), 10)))
        for a, b in zip(pack(logits), pack(moved), strict=True)
    ]
    assert found["recall_at_10"] == pytest.approx(sum(kept) / 90)
    per_bit = [sum((logits[q, b] > 0) != (moved[q, b] > 0) for q in range(9)) for b in range(BITS)]
    assert found["bit_flips"] == tuple(per_bit)
    assert sum(found["bit_flips"]) == found["bits_flipped"]


def test_a_gallery_of_fewer_images_than_neighbours() -> None:
    logits = float_student(4)
    assert (
        compare.compare_to_float(pack(-logits), -logits, make_reference(logits, gallery=gallery(3)))["recall_at_10"]
        == 1.0
    )


def test_without_labels_there_is_no_map_and_without_a_gallery_no_neighbours(tmp_path: Path) -> None:
    logits = float_student(6)
    bare = FloatReference(numbered(6), logits, SPACE)
    unlabeled = make_reference(logits, labels=None)
    assert (bare.map, unlabeled.map) == (None, None)
    row = run_on(Table(logits), tmp_path, bare)
    assert (row.status, row.bits_flipped, row.map, row.map_drop, row.recall_at_10) == ("ran", 0, None, None, None)
    row = run_on(Table(logits), tmp_path, unlabeled)
    assert (row.bits_flipped, row.map, row.map_drop, row.recall_at_10) == (0, None, None, 1.0)
    assert check([row], Thresholds()).passed


def test_some_of_the_queries_are_spread_evenly_and_scored_by_themselves() -> None:
    logits = float_student()
    all_of_them = make_reference(logits)
    few = all_of_them.subset(5)
    assert few.query_indices.tolist() == [0, 32, 64, 97, 129]
    assert np.array_equal(few.logits, logits[few.query_indices])
    assert np.array_equal(few.pixels, all_of_them.pixels[few.query_indices])
    alone = FloatReference(few.pixels, few.logits, SPACE, np.arange(QUERIES)[few.query_indices] % 2, gallery(),
                           classes=SPACE.classes)  # fmt: skip
    assert few.map == alone.map != all_of_them.map
    assert np.array_equal(few.nearest, all_of_them.nearest[few.query_indices])
    assert all_of_them.subset(QUERIES) is all_of_them
    moved = few.logits.copy()
    moved[3, :4] *= -1
    assert compare.compare_to_float(pack(moved), moved, few)["worst"] == (WorstQuery(query=97, flipped=4),)


def test_bits_unlike_the_hosts_are_counted_and_the_sure_ones_listed() -> None:
    few = make_reference(np.ones((6, BITS), np.float32)).subset(3)  # places 0, 2 (or 3) and 5
    host = few.logits.copy()
    host[1, 2], host[2, 7] = 5e-4, np.nan
    there = np.nan_to_num(host.copy(), nan=1.0)
    there[0, 4], there[1, 2], there[2, 7] = -1.0, -5e-4, 1.0
    found = compare.compare_to_host(pack(there), there, pack(host), host, few)
    assert (found["host_flips"], found["host_flips_beyond"]) == (3, 2)
    assert found["disagreements"][0] == BitDisagreement(query=0, bit=4, logit=-1.0, host=1.0)
    assert (found["disagreements"][1].query, found["disagreements"][1].bit) == (5, 7)
    many = compare.compare_to_host(pack(-few.logits), -few.logits, pack(few.logits), few.logits, few)
    assert many["host_flips_beyond"] == 3 * BITS
    assert len(many["disagreements"]) == min(MAX_DISAGREEMENTS, 3 * BITS)
