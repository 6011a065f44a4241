"""What `results.json` says of execution providers and delegates: how much of a model they take."""

from pydantic import NonNegativeInt

from gallery.record import Record


class DelegatePartitions(Record):
    """An exported model on an execution provider or a delegate.

    operations, supported, partitions: of the model; which would run there; in how many parts, between which numbers are
    handed over; None where nothing is known
    reason: why nothing is known
    """

    delegate: str
    operations: NonNegativeInt | None = None
    supported: NonNegativeInt | None = None
    partitions: NonNegativeInt | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """The figures for a table, "149 of 150 in 2"; the reason where there are none."""
        return self.reason or f"{self.supported} of {self.operations} in {self.partitions}"
