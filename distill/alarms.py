"""Results that are of no use, said in sentences: near chance, far below the teacher, classes not found, lost bits."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, unpack
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.names import some
from gallery.neighbors import NeighborRecall
from gallery.open_world_results import ITQ_TRAIN, OpenWorldResults
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER

# Shares of the way from random codes (0) to a perfect ranking (1).  Trained networks of the README stand at 0.75 to
# 0.98; a student of 64 bits on classes that it never saw at 0.08 or more.
NEAR_CHANCE = 0.05
# The student's share over its teacher's.  Of all networks in benchmarks/results: 0.94 to 1.02; a student that had
# failed: 0.03.
FAR_BELOW = 0.5
# mAP of student->gallery over teacher->teacher.  Distillation may gain 0.015 (the README's embedded run); a teacher
# that was trained too briefly lost 0.045 to its own student.
WORSE_BY = 0.03
# mAP that codes without labels may lose to ITQ: ITQ as a hash head, on features of any length, loses 0.014.
LABEL_FREE_SLACK = 0.02
DRAWS = 3  # of random codes: their mean over all queries is then known to a few thousandths

Floats = NDArray[np.float64]


def result_warnings(
    scores: Mapping[str, MapResult], index: GalleryIndex, labels: NDArray[Any], classes: Sequence[str],
    centers: NDArray[np.int8] | None,
) -> tuple[str, ...]:  # fmt: skip
    """Return a sentence for each way in which a run's results are of no use.

    scores: mAP by the names of the pairs; labels: of the queries, int `[Q]` or multi-hot `[Q, C]`, into `classes`
    centers: those that the gallery's codes were trained toward, None if its loss has none
    """
    found = scores[STUDENT_GALLERY]
    chance = random_precision(index, labels, classes, found.top_k)
    quality = {name: score.per_query for name, score in scores.items()}
    networks = [*_network_warnings("mAP", quality, float(chance.mean()))]
    lost = [] if networks else [*_class_warnings(found.per_query, chance, labels, classes)]
    return (*networks, *lost, *bit_warnings(index.codes, centers, len(classes)))


def neighbor_warnings(recalls: Mapping[str, NeighborRecall], index: GalleryIndex) -> tuple[str, ...]:
    """Return a sentence for each way in which a run's results are of no use, where no image has a label.

    recalls: of float neighbors, by the names of the pairs
    """
    quality = {name: recall.per_query for name, recall in recalls.items()}
    networks = _network_warnings("recall@10", quality, min(1.0, 10 / len(index)))
    return (*networks, *bit_warnings(index.codes, None, len(index)))


def open_world_warnings(found: OpenWorldResults | None) -> Iterator[str]:
    """Yield a sentence where trained codes find less of unseen classes than codes of the untouched features do."""
    if found is None:
        return
    protocol = "unseen_unseen" if found.classes[0] else "unseen_all"
    if (baseline := found.score(ITQ_TRAIN, protocol)) is None:
        return
    scores = {"teacher": found.score(TEACHER_TEACHER, protocol), "student": found.score(STUDENT_GALLERY, protocol)}
    least = baseline if found.classes[0] else baseline - LABEL_FREE_SLACK
    worse = {role: score for role, score in scores.items() if score is not None and score < least}
    if worse:
        what = " and ".join(f"{score:.3f} by the {role}" for role, score in worse.items())
        known = f"by codes of the untouched pretrained features (ITQ, fit on train) {baseline:.3f}"
        head, fix = found.columns[protocol], _open_world_fix(found, worse)
        yield f"Training costs classes without labels more than it gives: their mAP ({head}) is {what}, {known}.  {fix}"


def _open_world_fix(found: OpenWorldResults, worse: Collection[str]) -> str:
    if "teacher" not in worse:
        return "Train the student longer (--student-train.epochs), or choose a larger --student."
    if not found.classes[0]:
        return "Train the teacher longer (--teacher-train.linear-probe-epochs), or choose --loss itq."
    if found.unlabeled["teacher"]:
        more = "--loss csch --loss-args similarity-weight 1, at a cost for seen classes, or --loss similarity"
        return f"Keep more of the pretrained features: {more}."
    if found.gallery[1]:
        return "Train with --loss csch, which by default keeps the neighbors of gallery images without labels."
    return "Give images of these classes without labels: in the gallery, or a folder of them by --unlabeled-data."


def random_precision(
    index: GalleryIndex, labels: NDArray[Any], classes: Sequence[str], top_k: int | None
) -> Floats:  # fmt: skip
    """Return the average precision of each query among random codes: chance, for these labels."""
    random, gallery_labels = np.random.default_rng(0), index.class_labels(classes, labels.ndim == 2)
    width = index.codes.shape[1]
    queries, items = ((DRAWS, count, width) for count in (len(labels), len(index)))
    pairs = zip(random.integers(0, 256, queries, np.uint8), random.integers(0, 256, items, np.uint8), strict=True)
    scored = [mean_average_precision(*codes, labels, gallery_labels, top_k).per_query for codes in pairs]
    return np.asarray(np.mean(scored, axis=0))


def _share(found: float, chance: float) -> float:
    """Return how far a mAP is from chance (0) to perfect (1); 1 where chance is perfect already."""
    return (found - chance) / (1 - chance) if chance < 1 - 1e-6 else 1.0


def _network_warnings(what: str, quality: Mapping[str, Floats], chance: float) -> Iterator[str]:
    """Yield what is wrong with a network; quality: `what` of each query, by the names of the pairs."""
    of_student, of_teacher = quality[STUDENT_GALLERY], quality.get(TEACHER_TEACHER)
    student = float(of_student.mean())
    share, beside = _share(student, chance), f"that of random codes {chance:.3f}"
    if of_teacher is None:
        if share < NEAR_CHANCE:
            fix = "Train it longer (--student-train.epochs), or choose a larger --student."
            yield f"The student is near chance: its {what} in the gallery is {student:.3f}, {beside}.  {fix}"
        return
    teacher = float(of_teacher.mean())
    best = _share(teacher, chance)
    if best < NEAR_CHANCE:
        fix = "Check the labels; train it longer (--teacher-train.epochs), or from pretrained --teacher-weights."
        fix = fix if what == "mAP" else "Choose another --teacher, or more --bits."
        yield f"The teacher is near chance: its {what} is {teacher:.3f}, {beside}.  {fix}"
    elif share < FAR_BELOW * best:
        fix = "Train it longer (--student-train.epochs), or choose a larger --student."
        found = f"its {what} in the gallery is {student:.3f}, the teacher's {teacher:.3f}, {beside}"
        yield f"The student is far below its teacher: {found}.  {fix}"
    gain = of_student - of_teacher
    if gain.mean() > max(WORSE_BY, 3 * gain.std() / math.sqrt(len(gain))):  # three standard errors
        fix = "Train the teacher longer or fully (--teacher-train), or choose a better --teacher."
        found = f"{what} {teacher:.3f} against {student:.3f} in the same gallery"
        yield f"The teacher is worse than its own student: {found}.  {fix}"


def _class_warnings(found: Floats, chance: Floats, labels: NDArray[Any], classes: Sequence[str]) -> Iterator[str]:
    of_class = labels.T if labels.ndim == 2 else labels == np.arange(len(classes))[:, None]
    queried = [(name, own) for name, own in zip(classes, of_class, strict=True) if own.any()]
    lost = [name for name, own in queried if _share(float(found[own].mean()), float(chance[own].mean())) < NEAR_CHANCE]
    if lost:
        what = "their queries rank the gallery no better than random codes"
        yield f"{len(lost)} of {len(queried)} classes are not found ({some(map(repr, lost))}): {what}."


def bit_warnings(codes: Codes, centers: NDArray[np.int8] | None, classes: int) -> Iterator[str]:
    """Yield a sentence for bits that are the same in all codes, and one for codes of too few different bits.

    Where there are centers, as many bits as differ in those must differ in the codes; else as many as it takes to tell
    the classes apart, or without any the images.
    """
    bits = unpack(codes).astype(np.int8)
    dead, all_bits = int((bits == bits[:1]).all(0).sum()), bits.shape[1]
    planned = 0 if centers is None else int((centers == centers[:1]).all(0).sum())
    if dead > planned:
        yield f"{dead} of the {all_bits} bits are the same in all {len(codes):,} codes of the gallery: they are lost."
    least = math.ceil(math.log2(classes)) if centers is None else _different_columns(centers)
    if (different := _different_columns(bits)) < least - max(0, dead - planned):
        what = "the others repeat or invert them, and are lost"
        yield f"Only {different} of the {all_bits} bits of the gallery's codes differ from each other: {what}."


def _different_columns(rows: NDArray[np.int8]) -> int:
    """Return how many columns differ from each other and from each other's inverse, constant ones not counted."""
    flipped = rows ^ rows[:1] if rows.min() >= 0 else rows * rows[:1] < 0
    columns = np.unique(np.packbits(flipped.astype(bool), axis=0), axis=1)
    return int((columns != 0).any(0).sum())
