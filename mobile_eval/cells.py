"""The four cells: which network hashed the queries, and which the gallery."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.metrics import RetrievalScore, mean_average_precision
from mobile_eval.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_ALONE, TEACHER_TEACHER, Cell


def four_cells(
    teacher_queries: Codes, student_queries: Codes, student_gallery: Codes, index: GalleryIndex, labels: NDArray[Any]
) -> tuple[tuple[Cell, ...], RetrievalScore]:
    """The cells, and the whole score of student->gallery, the product's number.

    Codes are packed `[queries or gallery, bits/8]`; the teacher's gallery codes are those of the real `index`.
    """
    codes, known = index.codes(), index.labels()
    teacher = mean_average_precision(teacher_queries, codes, labels, known)
    product = mean_average_precision(student_queries, codes, labels, known)
    student = mean_average_precision(student_queries, student_gallery, labels, known)
    cells = (
        _cell(TEACHER_TEACHER, teacher),
        _cell(STUDENT_GALLERY, product),
        _cell(STUDENT_STUDENT, student),
        _cell(TEACHER_ALONE, teacher, "The same figure: it was trained alone and frozen before the student began."),
    )
    return cells, product


def _cell(name: str, score: RetrievalScore, note: str = "") -> Cell:
    return Cell(name=name, map=score.map, map_retrieved=score.map_retrieved, note=note)
