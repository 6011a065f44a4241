"""What `results.json` says of apps that make the query's input in another way than the gallery's images were made."""

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from gallery.record import Record


class SkewRow(Record):
    """The float student on the queries by one way of preprocessing, compared with the rule.

    pipeline, found_in: the way, and what does so, or nearly, in words; allowed: whether the rule permits it
    bit_flip_rate: share of bits that differ; recall_at_10: share of the ten nearest images that stay
    map_drop, map_drop_error: mAP lost, and the standard error of that over the queries; None without labels
    """

    pipeline: str
    found_in: str
    allowed: bool = False
    bit_flip_rate: NonNegativeFloat
    recall_at_10: NonNegativeFloat
    map_drop: float | None = None
    map_drop_error: NonNegativeFloat | None = None


class PreprocessingSkew(Record):
    """Train/serve skew of preprocessing.

    queries: how many were compared, evenly spaced among all
    reduction: the median of their shorter side over the input's
    """

    queries: PositiveInt
    reduction: PositiveFloat
    rows: tuple[SkewRow, ...]

    @property
    def resizing(self) -> SkewRow:
        """The row of the mistake that is made most: resizing by the platform's own function."""
        return self.rows[0]

    @property
    def sentence(self) -> str:
        """What an app loses by it, in one sentence."""
        row = self.resizing
        said = (
            f"An app that resizes by {row.pipeline} ({row.found_in}) flips {100 * row.bit_flip_rate:.2f}% of the bits "
            f"and loses {100 * (1 - row.recall_at_10):.0f}% of the ten nearest images"
        )
        if row.map_drop is not None:
            said += f", and mAP changes by {-row.map_drop:+z.4f} (standard error {row.map_drop_error:.4f})"
        return f"{said}: use the bundle's app code."

    @property
    def caption(self) -> str:
        """What was measured."""
        return (
            f"The float student on {self.queries:,} queries, whose shorter side is {self.reduction:.3g} times its "
            "input's (median), made into its input in other ways than the gallery's images were. Of larger photos, "
            "ways without antialiasing pass over more."
        )
