"""Grids of CSCH students and teachers: each row is what it changes of the base configuration."""

from typing import Any, ClassVar

from benchmarks.sweep import Sweep
from distill.distillers import DISTILLERS

BASE = "csch, offline"  # the row whose teacher and gallery the other offline rows reuse
RELEASED = "csch-released"

# What each row changes; `terms` are the student's, `teaching` is the teacher's, which is another one then.
ROWS: dict[str, dict[str, Any]] = {
    BASE: {},
    "csch, online": {"distillation": "online"},
    "labels only": {"distiller_args": {"instance_weight": 0.0}},
    "instance only": {"terms": {"center_loss_weight": 0.0}},
    RELEASED: {
        "distillation": "online", "hash_centers": "csch", "center_assignment": "csch", "loss_args": {"scale": 8.0},
        "distiller_args": {"instance_loss": "joint"},
    },
    **{f"{mode}, lr {rate:g}": {"teaching": {"finetune": mode, "lr": rate}, "terms": {"epochs": 1, "cached_views": 1}}
       for mode in ("full", "lp_ft") for rate in (1e-3, 3e-4, 1e-4)},
    "linear_probe": {"teaching": {"finetune": "linear_probe"}, "terms": {"epochs": 1}},
    "raw": {"distiller_args": {"instance_loss": "raw"}},
    "cosine": {"distiller_args": {"instance_loss": "cosine", "instance_weight": 20.0}},
    "+ similarity": {"distiller_args": {"center_similarity_weight": 1.0}},
    "+ rank": {"distiller_args": {"ranking_weight": 10.0}},
    "+ relation": {"distiller_args": {"rkd_weight": 10.0}},
    "+ margin": {"distiller_args": {"bit_margin_weight": 2.0}},
    **{name: {"distiller": name} for name in DISTILLERS.names() if name != "csch"},
    "on-the-fly crops": {"terms": {"cached_views": 0}},
    "unlabeled, a quarter": {"terms": {"unlabeled_ratio": 0.25}},
    "unlabeled, half": {"terms": {"unlabeled_ratio": 0.5}},
}  # fmt: skip


class CschSweep(Sweep):
    """A sweep over `ROWS`."""

    grid: ClassVar[dict[str, dict[str, Any]]] = ROWS
    base: ClassVar[str] = BASE
    reference: str = BASE


class Csch(CschSweep):
    """CSCH as released against this implementation: offline, online, labels only, instance loss only."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (16, 32, 64)
    rows: tuple[str, ...] = (BASE, "csch, online", "labels only", "instance only", RELEASED)
    name: str = "csch"
    reference: str = RELEASED
    note: str = (
        "UC Merced's gallery is its own training set, on which every teacher is near the ceiling: what the released "
        "code loses there is smaller than on imagenet20, whose gallery holds images that no network was trained on."
    )


class TeacherFinetuning(CschSweep):
    """Fine-tuning modes and learning rates of the teacher; its student is trained for one epoch only."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = tuple(row for row, changes in ROWS.items() if "teaching" in changes)
    name: str = "teacher_finetuning"
    figure: str = "teacher_teacher"


class CschAblation(CschSweep):
    """Terms of the student's loss, cached against on-the-fly views, shares of unlabeled images."""

    data: tuple[str, ...] = ("imagenet20",)
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = (
        BASE, "labels only", "instance only", "raw", "cosine", "+ similarity", "+ rank", "+ relation", "+ margin",
        "on-the-fly crops", "unlabeled, a quarter", "unlabeled, half",
    )  # fmt: skip
    name: str = "csch_ablation"


class Distillers(CschSweep):
    """Every distiller beside the center loss; all students share one teacher."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = (BASE, "labels only", *(name for name in DISTILLERS.names() if name != "csch"))
    name: str = "distillers"
