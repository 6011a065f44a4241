"""The retrieval pairs, which network hashed the queries and which the gallery: mAP, and recall of float neighbors."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from gallery.codebook_index import CodebookIndex
from gallery.codes import Codes
from gallery.metrics import MapResult, mean_average_precision
from gallery.neighbors import NeighborRecall, Rows, neighbor_recall
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER, RetrievalPair


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
    pairs = code_pairs(teacher_queries, student_queries, teacher_gallery, student_gallery)
    return {
        name: mean_average_precision(queries, codes, labels.queries, labels.gallery, top_k)
        for name, (queries, codes) in pairs.items()
    }


def code_pairs(
    teacher_queries: Codes | None, student_queries: Codes, teacher_gallery: Codes, student_gallery: Codes
) -> dict[str, tuple[Codes, Codes]]:
    """Return the codes of queries and gallery of each pair; arguments as of `retrieval_pairs`."""
    pairs = {TEACHER_TEACHER: (teacher_queries, teacher_gallery)} if teacher_queries is not None else {}
    return pairs | {
        STUDENT_GALLERY: (student_queries, teacher_gallery), STUDENT_STUDENT: (student_queries, student_gallery)
    }  # fmt: skip


def neighbor_pairs(pairs: dict[str, tuple[Codes, Codes]], neighbors: Rows) -> dict[str, NeighborRecall]:
    """Measure how many float neighbors each pair finds; neighbors: their rows in the gallery, `[Q, n]`."""
    return {name: neighbor_recall(queries, CodebookIndex(codes), neighbors) for name, (queries, codes) in pairs.items()}


def pair_records(maps: dict[str, MapResult], recalls: dict[str, NeighborRecall]) -> tuple[RetrievalPair, ...]:
    """Return the pairs for `results.json`, from what was measured of each."""
    found = []
    for name in maps | recalls:
        own: dict[str, float] = {}
        if name in maps:
            own |= {"map": maps[name].map, "map_retrieved": maps[name].map_retrieved}
        if name in recalls:
            own |= {f"recall_at_{k}": share for k, share in recalls[name].at.items()}
        found.append(RetrievalPair(name=name, **own))
    return tuple(found)
