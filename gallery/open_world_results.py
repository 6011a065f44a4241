"""What `results.json` says of classes that were not trained on."""

from typing import Literal

from pydantic import NonNegativeInt

from gallery.open_world import OpenWorldMaps
from gallery.record import Record

FLOAT_COSINE = "float cosine"  # of the pretrained features, which ITQ makes codes of
ITQ_TRAIN, ITQ_GALLERY = "ITQ on train", "ITQ on gallery"


class OpenWorldRow(Record):
    """mAP of the four protocols, over all that is searched: of a retrieval pair, or of a baseline."""

    name: Literal["teacher->teacher", "student->gallery", "float cosine", "ITQ on train", "ITQ on gallery"]
    maps: OpenWorldMaps


class OpenWorldResults(Record):
    """Retrieval where some classes have no label in training; baselines are of the untouched pretrained backbone.

    classes, queries, gallery: how many are of seen and how many of unseen classes; none is seen where nothing was
             learned from labels
    unlabeled: how many images of unseen classes the training of teacher and of student used, without labels; None where
               that is not known: the teacher is an earlier run's
    unknown: how many images of which no label is known either of them used
    no_baselines: why baselines are missing, in words
    """

    classes: tuple[NonNegativeInt, NonNegativeInt]
    queries: tuple[NonNegativeInt, NonNegativeInt]
    gallery: tuple[NonNegativeInt, NonNegativeInt]
    unlabeled: dict[Literal["teacher", "student"], NonNegativeInt | None]
    unknown: NonNegativeInt = 0
    rows: tuple[OpenWorldRow, ...]
    no_baselines: str = ""

    def score(self, name: str, protocol: str = "unseen_unseen") -> float | None:
        """The mAP of a row in a protocol, by its field's name; None where it was not measured."""
        return next((getattr(row.maps, protocol) for row in self.rows if row.name == name), None)

    def title(self, name: str) -> str:
        """What a row is called: ITQ knows no image of an unseen class where it is fit on train."""
        settings = {ITQ_TRAIN: " (inductive)", ITQ_GALLERY: " (transductive)"} if self.classes[0] else {}
        return name + settings.get(name, "")

    @property
    def columns(self) -> dict[str, str]:
        """The protocols to show, by their fields' names: queries@database."""
        names = OpenWorldMaps.model_fields if self.classes[0] else ["unseen_all"]
        return {name: name.replace("_", "@") if self.classes[0] else "all@all" for name in names}

    @property
    def setting(self) -> str:
        """What is known of the unseen classes before they are asked for, as one sentence."""
        if used := [f"{count:,} by the {role}" for role, count in self.unlabeled.items() if count]:
            return f"Transductive: images of these classes, without labels, were trained on: {', '.join(used)}."
        if None in self.unlabeled.values():
            return "Whether the teacher, an earlier run's, was trained on images of these classes is not known here."
        if self.unknown:
            return (
                f"Inductive, unless some of the {self.unknown:,} images without labels that were trained on are theirs."
            )
        return "Inductive: no image of these classes was trained on."

    @property
    def caption(self) -> str:
        """Sizes and setting, to stand beside the figures."""
        (old, new), queries, gallery = self.classes, self.queries, self.gallery
        if not old:
            return f"No labels of the {new:,} classes were used in training. {self.setting}"
        return (
            f"{old:,} classes are in the training set ({queries[0]:,} queries, {gallery[0]:,} gallery images), {new:,} "
            f"are not ({queries[1]:,} queries, {gallery[1]:,} gallery images). {self.setting}"
        )
