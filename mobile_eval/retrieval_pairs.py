"""mAP of the retrieval pairs: which network hashed the queries, and which the gallery."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER, RetrievalPair


def retrieval_pairs(
    teacher_queries: Codes | None,
    student_queries: Codes,
    student_gallery: Codes,
    index: GalleryIndex,
    labels: NDArray[Any],
    top_k: int | None = None,
) -> tuple[tuple[RetrievalPair, ...], MapResult]:
    """The pairs, and the whole score of student->gallery, the product's number.

    Codes are packed `[queries or gallery, bits/8]`; the teacher's gallery codes are those of the real `index`.
    teacher_queries: None where its codes are all that is left of the teacher; its own pair is then left out.
    top_k: the mAP is over this many first images (None: the whole gallery).
    """
    codes, known = index.codes(), index.labels()
    product = mean_average_precision(student_queries, codes, labels, known, top_k)
    student = mean_average_precision(student_queries, student_gallery, labels, known, top_k)
    pairs = _pair(STUDENT_GALLERY, product), _pair(STUDENT_STUDENT, student)
    if teacher_queries is None:
        return pairs, product
    teacher = mean_average_precision(teacher_queries, codes, labels, known, top_k)
    return (_pair(TEACHER_TEACHER, teacher), *pairs), product


def _pair(name: str, score: MapResult) -> RetrievalPair:
    return RetrievalPair(name=name, map=score.map, map_retrieved=score.map_retrieved)
