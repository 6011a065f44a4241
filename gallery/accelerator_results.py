"""What `results.json` says of the accelerators of phones: how much of a model they would take."""

from pydantic import NonNegativeInt

from gallery.record import Record


class AcceleratorPartitions(Record):
    """An exported model on an execution provider or delegate, by the operations that a tool knows it to have.

    operations, supported, partitions: of the model; which the accelerator would run; in how many parts, between which
    numbers are copied; None where the tool does not say
    reason: why the tool says nothing
    """

    accelerator: str
    operations: NonNegativeInt | None = None
    supported: NonNegativeInt | None = None
    partitions: NonNegativeInt | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """The figures for a table: "149 of 150 in 2"; the reason where there are none."""
        if self.supported is None:
            return self.reason
        parts = "" if self.partitions is None else f" in {self.partitions}"
        return f"{self.supported} of {self.operations}{parts}"
