"""Results that are of no use: each kind is said, and none where there is nothing to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.alarms import open_world_warnings, random_precision, result_warnings
from gallery.codes import pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.index import create_gallery
from gallery.metrics import mean_average_precision
from gallery.open_world_results import ITQ_TRAIN, OpenWorldResults
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER
from tests.gallery.galleries import named, numbered
from tests.mobile_eval.factories import open_world

UNSEEN = "unseen_unseen", "unseen_all"
TRAINED_AND_ITQ = TEACHER_TEACHER, STUDENT_GALLERY, ITQ_TRAIN
BITS, CLASSES, EACH, QUERIES = 32, 8, 60, 20
NAMES = tuple(f"class {c}" for c in range(CLASSES))
CENTERS = np.random.default_rng(5).choice(np.array([-1, 1], np.int8), (CLASSES, BITS))
LABELS, ASKED = np.repeat(np.arange(CLASSES), EACH), np.repeat(np.arange(CLASSES), QUERIES)


def noisy(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Packed codes: the centers of the classes, with a share of their bits inverted."""
    flips = np.random.default_rng(seed).random((len(labels), BITS)) < noise
    return pack(np.where(flips, -CENTERS[labels], CENTERS[labels]).astype(np.float32))


def warnings(
    tmp_path: Path, teacher: float | None, student: float, gallery: np.ndarray | None = None, lost: int = -1
) -> tuple[str, ...]:
    """What is said of a teacher and a student of this noise in their bits; `lost`: a class the student mistakes."""
    space = CodeSpace(BITS, NAMES, "t", "0" * 64, hash_centers(CENTERS), Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    codes = noisy(LABELS, teacher or 0.1, 1) if gallery is None else gallery
    named_labels = named(LABELS, NAMES)
    index = create_gallery(tmp_path / "gallery", space, CENTERS, codes, numbered(len(LABELS)), named_labels)
    shown = np.where(lost == ASKED, (lost + 1) % CLASSES, ASKED)
    pairs = {STUDENT_GALLERY: noisy(shown, student, 2)}
    pairs |= {} if teacher is None else {TEACHER_TEACHER: noisy(ASKED, teacher, 3)}
    scores = {name: mean_average_precision(own, index.codes, ASKED, LABELS) for name, own in pairs.items()}
    return result_warnings(scores, index, ASKED, NAMES, CENTERS)


def test_good_results_are_not_commented(tmp_path: Path) -> None:
    assert warnings(tmp_path, 0.1, 0.12) == ()


@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        (0.5, 0.5, "The teacher is near chance"),
        (0.1, 0.42, "The student is far below its teacher"),
        (0.3, 0.05, "The teacher is worse than its own student"),
        (None, 0.5, "The student is near chance"),
    ],
)
def test_networks_that_are_of_no_use(tmp_path: Path, teacher: float | None, student: float, says: str) -> None:
    (said,) = warnings(tmp_path, teacher, student)
    assert said.startswith(says)
    assert "--" in said, "an alarm names what to do"


def test_a_class_that_is_not_found_is_named(tmp_path: Path) -> None:
    (said,) = warnings(tmp_path, 0.1, 0.1, lost=3)
    assert said.startswith("1 of 8 classes are not found ('class 3')")


def test_dead_bits_and_bits_that_repeat_others(tmp_path: Path) -> None:
    bits = np.unpackbits(noisy(LABELS, 0.02, 1), axis=1, bitorder="little")
    bits[:, :3] = 1
    (said,) = warnings(tmp_path, 0.02, 0.02, np.packbits(bits, axis=1, bitorder="little"))
    assert said.startswith("3 of the 32 bits are the same in all 480 codes")
    bits = np.repeat(bits[:, 3:4], BITS, 1) ^ (np.arange(BITS) % 2).astype(np.uint8)
    said = warnings(tmp_path, 0.02, 0.02, np.packbits(bits, axis=1, bitorder="little"))
    assert any(one.startswith("Only 1 of the 32 bits") for one in said)


def test_chance_is_the_share_of_the_class_for_balanced_labels(tmp_path: Path) -> None:
    space = CodeSpace(BITS, NAMES, "t", "0" * 64, hash_centers(CENTERS), Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    ids, labels = numbered(len(LABELS)), named(LABELS, NAMES)
    index = create_gallery(tmp_path / "g", space, CENTERS, noisy(LABELS, 0.1, 1), ids, labels)
    assert random_precision(index, ASKED, NAMES, None).mean() == pytest.approx(1 / CLASSES, abs=0.02)


def unseen(teacher: float | None, student: float, itq: float | None, **changes: Any) -> OpenWorldResults:
    """Results of this mAP of unseen@unseen; None: without the row."""
    made, scores = open_world(**changes), dict(zip(TRAINED_AND_ITQ, (teacher, student, itq), strict=True))
    rows = (
        row.model_copy(update={"maps": row.maps.model_copy(update=dict.fromkeys(UNSEEN, scores.get(row.name)))})
        for row in made.rows
        if scores.get(row.name, 0.0) is not None
    )
    return made.model_copy(update={"rows": tuple(rows)})


TWO = 0.46, 0.385, 0.61


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (unseen(*TWO), ("0.460 by the teacher and 0.385 by the student", "0.610", "--loss csch")),
        (unseen(*TWO, unlabeled={"teacher": 9, "student": 0}), ("similarity-weight", "--loss similarity")),
        (unseen(*TWO, gallery=(9, 0)), ("0.610", "--unlabeled-data")),
        (unseen(0.46, 0.65, 0.61), ("is 0.460 by the teacher, ", "--loss csch")),
        (unseen(0.7, 0.6, 0.61), ("is 0.600 by the student, ", "0.610", "--student-train.epochs")),
        (unseen(0.58, 0.6, 0.61, classes=(0, 9)), ("(all@all) is 0.580 by the teacher, ", "--loss itq")),
        (unseen(None, 0.6, 0.61), ("is 0.600 by the student, ", "0.610", "--student-train.epochs")),
    ],
)
def test_codes_that_lose_to_untrained_ones_on_unseen_classes(found: OpenWorldResults, says: tuple[str, ...]) -> None:
    (said,) = open_world_warnings(found)
    assert all(text in said for text in says), said


@pytest.mark.parametrize(
    "found", [None, unseen(0.62, 0.61, 0.61), unseen(0.1, 0.1, None), unseen(0.6, 0.6, 0.61, classes=(0, 9))]
)
def test_where_training_costs_unseen_classes_nothing_no_alarm(found: OpenWorldResults | None) -> None:
    assert [*open_world_warnings(found)] == []
