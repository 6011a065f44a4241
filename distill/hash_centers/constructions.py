"""Hash centers: one +-1 code a class, as far apart as the code length allows.

`auto` takes the largest minimum distance among Hadamard rows (all at bits/2), the rows with their complements, and good
codes concatenated (`linear_codes.py`).  The rest reproduces the literature: CSQ, CSCH (OrthoHash), MDSHC.
Centers may be complements of each other (distance `bits`), which does no harm.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from distill.hash_centers import linear_codes
from distill.hash_centers.mdshc import admm_centers
from gallery.codes import check_bits
from gallery.errors import InputError

Centers = NDArray[np.int8]
Construction = Literal[
    "auto", "hadamard", "hadamard_pm", "linear", "nordstrom_robinson", "bernoulli", "csch", "mdshc"
]  # fmt: skip
SIGNS = np.array([-1, 1], np.int8)
BLOCK = 256
TRIES, WORK = 256, 2**30  # random choices compared, while classes^2 * bits stays below the work
CSQ_TRIES, MDSHC_SAMPLER = 10_000, 80  # sets of Bernoulli samples; classes from which mdshc starts from the sampler
CSCH_START, CSCH_STEP, CSCH_FLOOR, CSCH_TRIES = 0.61, 0.01, 0.2, 10_000  # get_codebook: shares of bits, tries a share


class ComponentCode(NamedTuple):
    """A code with words of `length` bits, pairwise `distance` apart."""

    length: int
    distance: int
    words: Callable[[], linear_codes.Bits]


def hash_centers(classes: int, bits: int, seed: int = 0, construction: Construction = "auto") -> Centers:
    """Centers `[classes, bits]` of +-1, all different, deterministic in `seed`; the same in every process.

    Raises `InputError` where the construction has no such centers.  Free choices (which words, signs of Hadamard rows)
    go to the set with the largest minimum distance, then to the most balanced bits.
    """
    check_bits(bits)
    if classes < 2:
        raise InputError("at least two classes", str(classes), "Add images of another class.")
    if classes > 2**bits:
        raise InputError(f"at most {2**bits} classes for {bits} bits", str(classes), "Use more bits.")
    if construction not in MAKERS:
        raise InputError(f"a construction of {get_args(Construction)}", construction, "Choose one of them.")
    centers = MAKERS[construction](classes, bits, np.random.default_rng(seed))
    constant = np.flatnonzero(np.abs(centers.sum(0, dtype=int)) == classes)
    centers[np.arange(len(constant)) % classes, constant] *= -1  # one class moves away from the others in each
    if len(np.unique(np.packbits(centers > 0, axis=1), axis=0)) < classes:
        raise _not_constructible(construction, classes, bits, f"two of {classes} centers that agree in all {bits} bits")
    return centers


def min_distance(centers: Centers) -> int:
    """The smallest Hamming distance between two centers, bits; 256 rows at a time (100,000 x 64: 100 MB, a minute)."""
    words, bits = centers.astype(np.float32), centers.shape[1]
    closest = -bits
    for start in range(0, len(words), BLOCK):
        gram = words[start : start + BLOCK] @ words[start:].T
        np.fill_diagonal(gram, -bits)
        closest = max(closest, int(gram.max()))
    return (bits - closest) // 2


def hadamard(order: int) -> Centers | None:
    """A Hadamard matrix `[order, order]`, first row and column constant, or None where neither construction gives one.

    Sylvester doubling on 1 or on Paley's type I matrix of order q+1, q a prime with q = 3 mod 4 (48 = 47 + 1).
    """
    odd_part = order
    while odd_part % 2 == 0 and odd_part > 2 and not _is_paley(odd_part):
        odd_part //= 2
    if odd_part > 2 and not _is_paley(odd_part):
        return None
    matrix = _paley(odd_part - 1) if odd_part > 2 else np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _auto(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """The first of the best: equidistant Hadamard rows before others of their distance."""
    rows = hadamard(bits) if classes <= 2 * bits else None
    pieces = [*_hadamard_component_codes(classes, bits), *_kerdock_component_codes(classes)]
    pieces += _linear_component_codes(classes, bits)
    centers = _concatenate_codes(pieces, classes, bits, generator)
    if rows is None or min_distance(centers) > bits // 2:
        return centers
    return _hadamard_rows(classes, bits, generator, signs=2 if classes > bits else 1)


def _hadamard_rows(classes: int, bits: int, generator: np.random.Generator, signs: int) -> Centers:
    """Rows in random order, each times a random sign; with `signs` 2, then their complements."""
    rows = hadamard(bits)
    if rows is None or classes > signs * bits:
        most, name = 0 if rows is None else signs * bits, "hadamard" + "_pm" * (signs - 1)
        raise _not_constructible(name, classes, bits, f"{most} words of a matrix of order {bits}")

    def choice() -> Centers:
        words = generator.permutation(rows) * generator.choice(SIGNS, (bits, 1))
        return np.concatenate([words, -words])[:classes]

    return _best_of(choice, classes, bits)


def _linear(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    return _concatenate_codes(list(_linear_component_codes(classes, bits)), classes, bits, generator)


def _nordstrom_robinson(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """Nordstrom and Robinson's 256 words of 16 bits, distance 6, repeated; 4096 words of 64 bits of its kin."""
    pieces = [piece for piece in _kerdock_component_codes(classes) if bits % piece.length == 0]
    if not pieces:
        raise _not_constructible("nordstrom_robinson", classes, bits, "256 words of 16 n bits, 4096 of 64 n")
    return _concatenate_codes(pieces, classes, bits, generator)


def _hadamard_component_codes(classes: int, bits: int) -> Iterator[ComponentCode]:
    """From order m: 2m words of m bits, m of m - 1, m/2 of m - 2, all at distance m/2 (Levenshtein)."""
    for order in range(4, bits + 5, 4):
        if classes > 2 * order or (matrix := hadamard(order)) is None:
            continue
        rows = (matrix > 0).astype(np.uint8)
        for words in (np.concatenate([rows, 1 - rows]), rows[:, 1:], rows[rows[:, 1] == 1, 2:]):
            if classes <= len(words):
                yield ComponentCode(words.shape[1], order // 2, partial(np.copy, words))


def _kerdock_component_codes(classes: int) -> Iterator[ComponentCode]:
    for m in (3, 5):
        if classes <= 4 ** (m + 1):
            yield ComponentCode(2 ** (m + 1), 2**m - 2 ** (m // 2), partial(linear_codes.kerdock, m))


def _linear_component_codes(classes: int, bits: int) -> Iterator[ComponentCode]:
    """Every stored code with enough words, BCH codes, and a BCH code shortened to all the bits."""
    dimension = (classes - 1).bit_length()
    generators = [linear_codes.stored(*key) for key in linear_codes.COLUMNS if key[1] >= dimension]
    for m in linear_codes.FEEDBACK:
        excess = max(0, 2**m - bits)
        if 2**m < 2 * bits and dimension + excess <= 2**m:
            generators.append(linear_codes.shortened(linear_codes.bch(m)[: dimension + excess], excess))
    for code in generators:
        yield ComponentCode(code.shape[1], linear_codes.min_weight(code), partial(linear_codes.span, code))


def _concatenate_codes(pieces: list[ComponentCode], classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """Words of several codes joined: lengths and distances add up; the best sum by dynamic programming.

    The last piece may be cut (a bit of distance for each bit of length); balanced random columns fill what is left.
    """
    best: list[tuple[int, int, list[ComponentCode]]] = [(0, 0, [])]  # at each length: distance, -pieces, pieces
    for length in range(1, bits + 1):
        best.append(best[-1])
        for piece in pieces:
            distance, _, parts = best[max(0, length - piece.length)]
            gain = piece.distance - max(0, piece.length - length)
            best[length] = max(best[length], (distance + gain, -len(parts) - 1, [*parts, piece]), key=lambda b: b[:2])
    codes = [piece.words() for piece in best[bits][2]]

    def choice() -> Centers:
        columns = [words[generator.permutation(len(words))[:classes]] for words in codes]
        filler = generator.permuted(np.tile(np.arange(classes) % 2, (bits, 1)), axis=1).T.astype(np.uint8)
        return SIGNS[np.concatenate([*columns, filler], axis=1)[:, :bits]]

    return _best_of(choice, classes, bits)


def _bernoulli(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """CSQ: half of each word, at random, is -1; the best of up to 10,000 sets (CSQ stops at distance 20 of 64)."""
    half = np.repeat(SIGNS, bits // 2)
    return _best_of(lambda: generator.permuted(np.tile(half, (classes, 1)), axis=1), classes, bits, CSQ_TRIES)


def _csch(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """CSCH and OrthoHash, get_codebook: accepts random codes a share of the bits or more from all taken before.

    The share sinks by .01 after 10,000 misses, and .2 is the end.
    """
    centers = np.zeros((classes, bits), np.float32)
    found, misses, share = 0, 0, CSCH_START
    while found < classes:
        words = generator.choice(SIGNS, (BLOCK, bits)).astype(np.float32)
        overlap = (words @ centers[:found].T).max(1, initial=-bits)
        at = 0
        while at < BLOCK and found < classes:
            fits = np.flatnonzero(bits - overlap[at:] >= 2 * share * bits)
            step = int(fits[0]) if len(fits) else BLOCK - at
            if misses + step >= CSCH_TRIES:
                at, misses, share = at + CSCH_TRIES - misses, 0, share - CSCH_STEP
                if share < CSCH_FLOOR:
                    raise _not_constructible("csch", classes, bits, f"{found} words at .2 of the bits")
                continue
            at, misses = at + step, misses + step
            if len(fits):
                centers[found], found = words[at], found + 1
                overlap, at = np.maximum(overlap, words @ words[at]), at + 1
    return generator.permutation(centers.astype(np.int8))


def _mdshc(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """ADMM from CSQ's centers: Hadamard rows and complements if there are enough, else Bernoulli samples.

    From 80 classes on CSCH's sampler where its centers are further apart: from Bernoulli's ADMM stops short.
    """
    if hadamard(bits) is not None and classes <= 2 * bits:
        start = _hadamard_rows(classes, bits, generator, signs=2)
    else:
        start = _bernoulli(classes, bits, generator)
        if classes >= MDSHC_SAMPLER:
            with suppress(InputError):  # the sampler has too few centers
                start = max(start, _csch(classes, bits, generator), key=min_distance)
    return admm_centers(start, generator)


def _best_of(choice: Callable[[], Centers], classes: int, bits: int, tries: int = TRIES) -> Centers:
    """The choice of largest minimum distance, then of least imbalance; only one where comparing is expensive."""
    tries = min(tries, WORK // (classes**2 * bits))
    if tries < 2:
        return choice()

    def badness(centers: Centers) -> tuple[int, ...]:
        imbalance = np.abs(centers.sum(0, dtype=int))
        return -min_distance(centers), int(imbalance.max()), int((imbalance**2).sum())

    return min((choice() for _ in range(tries)), key=badness)


def _not_constructible(construction: str, classes: int, bits: int, found: str) -> InputError:
    wanted = f"{classes} different centers of {bits} bits by {construction}"
    return InputError(wanted, found, "Use construction auto, or more bits.")


def _is_paley(order: int) -> bool:
    q = order - 1
    return q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1))


def _paley(q: int) -> Centers:
    residues = np.zeros(q, np.int8) - 1
    residues[np.arange(1, q) ** 2 % q] = 1
    index = np.arange(q)
    matrix = np.ones((q + 1, q + 1), np.int8)
    matrix[1:, 1:] = residues[(index[:, None] - index) % q]
    matrix[index + 1, index + 1] = -1
    return matrix


MAKERS: dict[str, Callable[[int, int, np.random.Generator], Centers]] = {
    "auto": _auto, "hadamard": partial(_hadamard_rows, signs=1), "hadamard_pm": partial(_hadamard_rows, signs=2),
    "linear": _linear, "nordstrom_robinson": _nordstrom_robinson, "bernoulli": _bernoulli, "csch": _csch,
    "mdshc": _mdshc,
}  # fmt: skip
