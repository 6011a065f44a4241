"""The four cells: which network hashed the queries, and which the gallery."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_ALONE, TEACHER_TEACHER, Cell

SAME = "The same figure: nothing of the student reached the teacher while it was trained."


def four_cells(
    teacher_queries: Codes | None,
    student_queries: Codes,
    student_gallery: Codes,
    index: GalleryIndex,
    labels: NDArray[Any],
    alone: bool = True,
    top_k: int | None = None,
) -> tuple[tuple[Cell, ...], MapResult]:
    """The cells, and the whole score of student->gallery, the product's number.

    Codes are packed `[queries or gallery, bits/8]`; the teacher's gallery codes are those of the real `index`.
    teacher_queries: None where its codes are all that is left of the teacher; its own cells are then left out.
    alone: whether the teacher is what it would have become without a student.
    top_k: the mAP is over this many first pictures (None: the whole gallery).
    """
    codes, known = index.codes(), index.labels()
    product = mean_average_precision(student_queries, codes, labels, known, top_k)
    student = mean_average_precision(student_queries, student_gallery, labels, known, top_k)
    cells = _cell(STUDENT_GALLERY, product), _cell(STUDENT_STUDENT, student)
    if teacher_queries is None:
        return cells, product
    teacher = mean_average_precision(teacher_queries, codes, labels, known, top_k)
    same = (_cell(TEACHER_ALONE, teacher, SAME),) if alone else ()
    return (_cell(TEACHER_TEACHER, teacher), *cells, *same), product


def _cell(name: str, score: MapResult, note: str = "") -> Cell:
    return Cell(name=name, map=score.map, map_retrieved=score.map_retrieved, note=note)
