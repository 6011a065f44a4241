"""What the user should check in the data: a sentence on each thing that changes what a result means."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import ImageList, Split
from distill.data.image_folder import SPLIT_WORDS
from distill.data.splits import copies_among
from gallery.names import counted, folded, mixes_alphabets, some

DARK_BITS = 14  # 16-bit images without values of more bits are at most a quarter as bright as white
DARK, SAMPLE = 16, 200  # values from 0 or 255 within which an 8-bit image is blank, and images looked at
# How other software writes a value that is missing, bytes, or a list.
VALUE = re.compile(r"(?i:nan|nat|<na>|null|#n/a|\\n)|None|b(['\"]).*\1|[\[(]['\"].*[\])]|\{.*\}")
SCALED = re.compile(r"(.+?)([-_.@ ](\d+x\d*|thumb(nail)?|small|medium|large|preview|scaled))+", re.I)
MANY_DARK = 20  # so many of them are no accident, nor are three that are half of all


def check_classes(before: ImageList, after: ImageList) -> Iterator[str]:
    """Yield what to check in the classes of a list, and of its images that could be read."""
    found, kept = (sorted({label for row in images.labels for label in row}) for images in (before, after))
    joined = [label for label in kept if re.search("[,|]", label)]
    for what, labels in (
        ("without an image that can be read", sorted({*found} - {*kept})),
        ("with letters of several alphabets in a word", [ascii(label) for label in kept if mixes_alphabets(label)]),
        ("named like a missing value or a list", [label for label in kept if VALUE.fullmatch(label)]),
        ("with commas or bars, and no image with several: `;` separates labels",
         joined if after.multi and max(map(len, after.labels)) == 1 else []),
    ):  # fmt: skip
        if labels:
            yield f"{counted(len(labels), 'class', 'classes')} {what}: {some(labels)}."
    spelling = "case, blanks, punctuation, zeros or invisible characters"
    for how, key in ((spelling, folded), ("the name of a split", _without_split)):
        alike = defaultdict[str, list[str]](list)
        for label in kept:
            alike[key(label)].append(label)
        if same := [labels for labels in alike.values() if len(labels) > 1]:
            few = "; ".join(some(map(repr, labels)) for labels in same[:3])
            yield f"{counted(len(same), 'group')} of classes whose names differ only in {how}: {few}."


def _without_split(label: str) -> str:
    """Return the words of a label without those that name a split; the label itself where none does."""
    words = re.findall(r"[^\W\d_]+|\d+", label.casefold())
    left = [word for word in words if word not in SPLIT_WORDS]
    return " ".join(left) if len(left) < len(words) else f"={label}"


def check_sizes(names: Sequence[str]) -> Iterator[str]:
    """Yield what to check in images that are named like smaller versions of others."""
    stems = {name.rpartition(".")[0]: name for name in names}
    matches = {name: match[1] for stem, name in stems.items() if (match := SCALED.fullmatch(stem))}
    if found := [(name, stems[stem]) for name, stem in matches.items() if stem in stems]:
        yield f"{counted(len(found), 'image')} named like other sizes of others, which they find: {some(found[0])}."


def check_copies(images: ImageList, own: Split, digests: Sequence[bytes]) -> Iterator[str]:
    """Yield what to check in images of the same bytes: between queries and other splits, and of different labels."""
    sets, names = copies_among(np.arange(len(digests)), digests), images.names
    queries, train = set(own.query.tolist()), {*own.train.tolist(), *own.validation.tolist()}
    splits = {"gallery": set(own.gallery.tolist()), "train": train}
    for split, members in splits.items():
        if split == "train" and members == splits["gallery"]:
            continue
        both = [([i for i in one if i in queries], [i for i in one if i in members]) for one in sets]
        if found := [(query, others) for query, others in both if query and others]:
            count, example = sum(len(query) for query, _ in found), some(names[one[0]] for one in found[0])
            what = f"{count:,} of {counted(len(queries), 'query', 'queries')}"
            yield f"{what} copied, byte for byte, in {split}, where they find themselves: {example}."
    labels = [{images.labels[i] for i in one if images.labels[i]} for one in sets]
    if torn := [one for one, several in zip(sets, labels, strict=True) if len(several) > 1]:
        example = some(names[i] for i in torn[0])
        yield f"{counted(len(torn), 'image')} listed several times, with different labels: {example}."


def check_brightness(pixels: NDArray[np.uint8]) -> Iterator[str]:
    """Yield what to check in the decoded images `[N, size, size, 3]`, by a sample: whether they are blank."""
    sample = np.unique(np.linspace(0, len(pixels) - 1, min(SAMPLE, len(pixels)), dtype=int))
    blank = sum(bool(pixels[i].max() <= DARK or pixels[i].min() >= 255 - DARK) for i in sample)
    if blank >= max(3, len(sample) / 2):
        yield (
            f"{blank:,} of {counted(len(sample), 'image')} looked at are nearly black or white (no value further than "
            f"{DARK} from 0, or from 255): are they masks, transparent, or of another range of values?"
        )


def check_bits(bits: Sequence[int]) -> Iterator[str]:
    """Yield what to check in images of 16 bits a channel: whether most of their range is unused."""
    dark = [own for own in bits if own <= DARK_BITS]
    if len(dark) >= MANY_DARK or len(dark) >= max(3, len(bits) / 2):
        yield (
            f"{len(dark):,} of {counted(len(bits), 'image')} with 16 bits a channel have values of {max(dark)} bits or "
            "less, which is dark: scale them to 16 bits, or state the bits of grey ones (sBIT, MaxSampleValue)."
        )
