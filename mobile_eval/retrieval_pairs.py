"""mAP of the retrieval pairs: which network hashed the queries, and which the gallery."""

from typing import Any

from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER


def retrieval_pairs(
    teacher_queries: Codes | None, student_queries: Codes, student_gallery: Codes, index: GalleryIndex,
    labels: NDArray[Any], top_k: int | None = None,
) -> dict[str, MapResult]:  # fmt: skip
    """Score the pairs, by name; student->gallery is how the student is deployed.

    teacher_queries, student_queries: packed codes `[Q, bits/8]`; None if the teacher is not available, nor its pair
    student_gallery: the student's codes of the gallery images, `[len(index), bits/8]`; `index` has the teacher's
    labels: of the queries, int `[Q]` or multi-hot `[Q, C]`; top_k: how many of the first results count (None: all)
    """
    gallery, gallery_labels = index.codes, index.labels
    pairs = {TEACHER_TEACHER: (teacher_queries, gallery)} if teacher_queries is not None else {}
    pairs |= {STUDENT_GALLERY: (student_queries, gallery), STUDENT_STUDENT: (student_queries, student_gallery)}
    return {
        name: mean_average_precision(queries, codes, labels, gallery_labels, top_k)
        for name, (queries, codes) in pairs.items()
    }
