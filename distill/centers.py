"""Hash centers: one +-1 word a class, as far apart as the code length allows.

Taken is what fits first: rows of a Hadamard matrix (every distance bits/2), the rows and their complements (at least
bits/2), or seeded sampling under a sinking threshold (the sampler of CSCH and OrthoHash).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gallery.codes import check_bits
from gallery.errors import InputError

Centers = NDArray[np.int8]
SIGNS = np.array([-1, 1], np.int8)
BALANCE_TRIES = 256
SAMPLER_START, SAMPLER_STEP, SAMPLER_TRIES = 0.61, 0.01, 10_000  # CSCH, get_codebook: share of bits, tries a threshold


def hash_centers(classes: int, bits: int, seed: int = 0) -> Centers:
    """Centers `[classes, bits]` of +-1, deterministic in `seed`.

    Which Hadamard rows, and the sign of each, are free: orthogonality survives both.  The most balanced of 256 random
    choices is taken, since a bit that is the same for all classes (Sylvester's first column) tells nothing.
    """
    check_bits(bits)
    if classes < 2:
        raise InputError("at least two classes", str(classes), "Add pictures of another class.")
    generator = np.random.default_rng(seed)
    if classes > 2**bits:
        raise InputError(f"at most {2**bits} classes for {bits} bits", str(classes), "Use more bits.")
    rows = hadamard(bits)
    if rows is None or classes > 2 * bits:
        return _sampled(classes, bits, generator)
    return min((_choice(rows, classes, generator) for _ in range(BALANCE_TRIES)), key=_imbalance)


def min_distance(centers: Centers) -> int:
    """The smallest Hamming distance between two centers, bits."""
    words = centers.astype(np.int32)
    gram = words @ words.T
    np.fill_diagonal(gram, -words.shape[1])
    return int((words.shape[1] - gram.max()) // 2)


def hadamard(order: int) -> Centers | None:
    """A Hadamard matrix `[order, order]` whose first row is constant, or None where neither construction gives one.

    Sylvester doubling on 1 or on Paley's type I matrix of order q+1, q a prime with q = 3 mod 4 (48 = 47 + 1).
    """
    odd_part = order
    while odd_part % 2 == 0 and odd_part > 2 and not _is_paley(odd_part):
        odd_part //= 2
    if odd_part in (1, 2):
        matrix = np.ones((1, 1), np.int8)
    elif _is_paley(odd_part):
        matrix = _paley(odd_part - 1)
    else:
        return None
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _choice(rows: Centers, classes: int, generator: np.random.Generator) -> Centers:
    words = generator.permutation(rows) * generator.choice(SIGNS, (len(rows), 1))
    return np.concatenate([words, -words])[:classes]


def _imbalance(centers: Centers) -> tuple[int, int]:
    sums = np.abs(centers.sum(0, dtype=int))
    return int(sums.max()), int((sums**2).sum())


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


def _sampled(classes: int, bits: int, generator: np.random.Generator) -> Centers:
    """Accepts random words at least `threshold` bits from all accepted ones; after 10,000 misses it sinks by 1 %."""
    centers = np.zeros((classes, bits), np.int8)
    found, misses, share = 0, 0, SAMPLER_START
    while found < classes:
        word = generator.choice(SIGNS, bits)
        distance = (bits - centers[:found].astype(np.int32) @ word) / 2
        if found == 0 or distance.min() >= share * bits:
            centers[found], found = word, found + 1
        elif (misses := misses + 1) == SAMPLER_TRIES:
            misses, share = 0, share - SAMPLER_STEP
    return centers
