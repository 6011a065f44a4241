"""What the user should check in the data: a sentence on each thing that changes what a result means."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import ImageList, Split
from distill.data.image_folder import SPLIT_WORDS
from distill.data.names import counted, folded, mixes_alphabets, some
from distill.data.splits import copies_among

DARK_BITS = 14  # 16-bit images without values of more bits are at most a quarter as bright as white
DARK, SAMPLE = 16, 200  # values from 0 or 255 within which an 8-bit image is blank, and images looked at
# How other software writes a value that is missing, bytes, or a list.
VALUE = re.compile(r"(?i:nan|nat|<na>|null|#n/a|\\n)|None|b(['\"]).*\1|[\[(]['\"].*[\])]|\{.*\}")
SCALED = re.compile(r"(.+?)([-_.@ ](\d+x\d*|thumb(nail)?|small|medium|large|preview|scaled))+", re.I)
MANY_DARK = 20  # so many of them are no accident, nor are three that are half of all


def check_classes(before: ImageList, after: ImageList) -> Iterator[str]:
    """Yield what to check in the classes of a list, and of its images that could be read."""
    found, kept = ({label for row in images.labels for label in row} for images in (before, after))
    if lost := sorted(found - kept):
        yield f"{counted(len(lost), 'class', 'classes')} without an image that can be read: {some(lost)}."
    alike = defaultdict[str, list[str]](list)
    for label in sorted(kept):
        alike[folded(label)].append(label)
    if same := [labels for labels in alike.values() if len(labels) > 1]:
        few = "; ".join(some(repr(label) for label in labels) for labels in same[:3])
        many = counted(len(same), "group")
        how = "case, blanks, punctuation, zeros or invisible characters"
        yield f"{many} of classes whose names differ only in {how}: {few}."
    if mixed := [ascii(label) for label in sorted(kept) if mixes_alphabets(label)]:
        yield f"{counted(len(mixed), 'class', 'classes')} with letters of several alphabets in a word: {some(mixed)}."
    if values := [label for label in sorted(kept) if VALUE.fullmatch(label)]:
        yield f"{counted(len(values), 'class', 'classes')} named like a missing value or a list: {some(values)}."
    joined = [label for label in sorted(kept) if re.search("[,|]", label)]
    if after.multi and joined and max(map(len, after.labels)) == 1:
        yield f"No image has several labels, but some hold commas or bars; `;` separates labels: {some(joined)}."
    of_splits = defaultdict[tuple[str, ...], dict[str, str]](dict)
    for label in sorted(kept):
        words = re.findall(r"[^\W\d_]+", label.casefold())
        if roles := [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]:
            of_splits[tuple(word for word in words if word not in SPLIT_WORDS)][roles[0]] = label
    if same_but := [own for own in of_splits.values() if len(own) > 1]:
        few = "; ".join(some(own.values()) for own in same_but[:3])
        yield f"{counted(len(same_but), 'group')} of classes whose names differ only in the name of a split: {few}."


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
