"""The code space: the compatibility contract between gallery, student and exported models."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gallery.codes import BIT_ORDER, BIT_RULE, RULE, check_bits, pack
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import atomic_path, open_array, read_json, write_json

FILE, CENTERS = "codespace.json", "centers.npy"
MAX_CENTERS = 256 << 20  # bytes: two million classes of 128 bits
ARITHMETIC = "fp32"  # of all logits whose signs are stored, or compared with stored ones
RGB = tuple[float, float, float]
RULE_TEXT = (  # what rule 2 is, the one place that says it: codes of different rules are not comparable
    "upright by its EXIF orientation, in sRGB (an embedded ICC profile is applied), transparency on white; decoded in "
    "full, or reduced to no less than 4 x size on the shorter side; then shorter side to size (bilinear, antialiased), "
    "centre crop"
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Preprocessing:
    """How an image becomes a network's input.

    size: side of the square input, pixels; mean, std: per channel, on pixels scaled to 0..1
    rule: the version of the rule that makes the square, followed by everyone who feeds the network (`RULE_TEXT`)
    """

    size: StrictInt
    mean: RGB
    std: RGB
    rule: StrictInt = RULE


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CodeSpace:
    """What a gallery, a student and every exported file must share to be comparable.

    classes: those that have a center each; none where codes were learned without labels, whose centers are of clusters
    teacher_sha256 and centers_sha256 are the hashes of `teacher.safetensors` and of the packed centers.
    golden_sha256: of the teacher's logits of known images, by which an encoder is checked; arithmetic: of all logits
    """

    bits: StrictInt
    classes: tuple[str, ...]
    teacher: str
    teacher_sha256: str
    centers_sha256: str
    preprocessing: Preprocessing
    golden_sha256: str = ""
    arithmetic: str = ARITHMETIC
    bit_rule: str = BIT_RULE
    bit_order: str = BIT_ORDER

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def id(self) -> str:
        """16 hex digits over exactly what decides compatibility: the names of the classes do not."""
        decisive = {k: v for k, v in dataclasses.asdict(self).items() if k != "classes"}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def check_compatible(self, other_id: str | None, mine: str, theirs: str) -> None:
        """Raise `CodeSpaceMismatch` unless `other_id` is this space's id.

        mine, theirs: the names of both sides in the message, e.g. "the gallery", "student.onnx".
        """
        if not other_id:
            fix = f"Export or encode {theirs} again with Twinhash."
            raise CodeSpaceMismatch(f"{theirs} to carry a code space", "none", fix)
        if other_id != self.id:
            expected = f"{theirs} in code space {self.id}, that of {mine}"
            fix = f"{theirs} is stale or belongs to another teacher: make it again from the run that made {mine}."
            raise CodeSpaceMismatch(expected, f"code space {other_id}", fix)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON, and the id of them."""
        return {"id": self.id, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Invert `to_dict`; raises `CorruptFile` when a field is missing or the id does not fit.

        Raises `CodeSpaceMismatch` for images preprocessed by another rule than this version's, also where only codes
        would be compared: those to compare with cannot be made here, and another version decides what the id hashes.
        """
        seen = record.get("preprocessing") if isinstance(record, dict) else None
        if isinstance(seen, dict) and (rule := seen.get("rule")) != RULE:
            fix = (
                "Its codes can be compared with none that this version makes, and its id cannot be checked here: "
                "search it with the version of Twinhash that made it, or make it again from the images."
            )
            found = "none" if rule is None else ascii(rule)[:20]
            raise CodeSpaceMismatch(f"images preprocessed by rule {RULE}: {RULE_TEXT}", f"rule {found}", fix)
        try:
            space = TypeAdapter(cls).validate_python({k: v for k, v in record.items() if k != "id"})
        except (ValidationError, AttributeError, InputError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            found = f"a damaged one ({problem})"
            raise CorruptFile("a complete code space", found, "Restore it from its run.") from error
        if record.get("id") != space.id:
            raise CorruptFile(f"code space id {space.id}", str(record.get("id")), "The file was edited: restore it.")
        return space


def hash_centers(centers: NDArray[np.int8]) -> str:
    """Return the SHA-256 of +-1 centers `[classes, bits]` in their packed form."""
    return hashlib.sha256(pack(centers).tobytes()).hexdigest()


def fits_classes(centers: NDArray[Any], space: CodeSpace) -> bool:
    """Whether there is a center for each class, or any number, at least one, where there are no classes."""
    return len(centers) == len(space.classes) if space.classes else len(centers) > 0


def save(folder: Path, space: CodeSpace, centers: NDArray[np.int8]) -> None:
    """Write `centers.npy` (int8, +-1, `[classes or clusters, bits]`), then `codespace.json`, each atomically."""
    with atomic_path(folder / CENTERS) as draft, draft.open("wb") as stream:
        np.save(stream, centers.astype(np.int8), allow_pickle=False)
    write_json(folder / FILE, space.to_dict())


def load(folder: Path) -> tuple[CodeSpace, NDArray[np.int8]]:
    """Read what `save` wrote; raises `CorruptFile` if the centers are not those of the space."""
    try:
        space = CodeSpace.from_dict(read_json(folder / FILE, dict))
        centers: NDArray[np.int8] = np.array(open_array(folder / CENTERS, MAX_CENTERS))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{FILE} and {CENTERS} in {folder}", str(error), "Restore them from the run.") from error
    sound = centers.dtype == np.int8 and centers.ndim == 2 and centers.shape[1] == space.bits
    sound = sound and fits_classes(centers, space)
    sound = sound and bool(np.isin(centers, (-1, 1)).all())  # the checksum is that of their signs
    if not sound or hash_centers(centers) != space.centers_sha256:
        raise CorruptFile(f"the centers of code space {space.id}", "other centers", f"Restore {folder / CENTERS}.")
    return space, centers
