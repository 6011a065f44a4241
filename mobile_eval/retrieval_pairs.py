"""mAP of the retrieval pairs: which network hashed the queries, and which the gallery."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER


class PairLabels(NamedTuple):
    """Labels of the queries and of the gallery, both int `[n]` or both multi-hot `[n, classes]`."""

    queries: NDArray[Any]
    gallery: NDArray[Any]


def retrieval_pairs(
    teacher_queries: Codes | None, student_queries: Codes, teacher_gallery: Codes, student_gallery: Codes,
    labels: PairLabels, top_k: int | None = None,
) -> dict[str, MapResult]:  # fmt: skip
    """Score the pairs, by name; student->gallery is how the student is deployed.

    teacher_queries, student_queries: packed codes `[Q, bits/8]`; None if the teacher is not available, nor its pair
    teacher_gallery, student_gallery: codes of the gallery images, `[N, bits/8]`, in one order
    labels: in the orders of both; top_k: how many of the first results count (None: all)
    """
    pairs = {TEACHER_TEACHER: (teacher_queries, teacher_gallery)} if teacher_queries is not None else {}
    pairs |= {STUDENT_GALLERY: (student_queries, teacher_gallery), STUDENT_STUDENT: (student_queries, student_gallery)}
    return {
        name: mean_average_precision(queries, codes, labels.queries, labels.gallery, top_k)
        for name, (queries, codes) in pairs.items()
    }
