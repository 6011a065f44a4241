"""Centers of codes without classes: k-means in Hamming space, whose means are bitwise majorities (k-majority)."""

import numpy as np
from numpy.typing import NDArray

from distill.hash_centers.constructions import Centers

MOST, ITERATIONS = 64, 25  # clusters, and rounds


def k_majority(signs: NDArray[np.float32], seed: int) -> Centers:
    """Return at most `MOST` different centers of codes, +-1 `[k, bits]`; about the square root of their number.

    signs: +-1 `[n, bits]`.  Grana, Borghesani, Manfredi, Cucchiara, "A Fast Approach for Integrating ORB Descriptors in
    the Bag of Words Model" (SPIE 2013): each code goes to its nearest center, and each center to the majority of its
    codes.  The first ones are drawn as by k-means++ (Arthur & Vassilvitskii 2007), with the Hamming distance for the
    squared one, which it is a quarter of.
    """
    bits, centers = signs.shape[1], _first_centers(signs, min(MOST, int(np.ceil(np.sqrt(len(signs))))), seed)
    nearest = np.full(len(signs), -1)
    for _ in range(ITERATIONS):
        before, nearest = nearest, (signs @ centers.T).argmax(1)
        if np.array_equal(before, nearest):
            break
        sums = np.zeros((len(centers), bits), np.float32)
        np.add.at(sums, nearest, signs)
        filled = np.bincount(nearest, minlength=len(centers)) > 0
        centers[filled] = np.where(sums[filled] > 0, np.float32(1), np.float32(-1))
    return np.unique(centers.astype(np.int8), axis=0)


def _first_centers(signs: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """Draw up to `count` different codes, each with a chance in proportion to its distance to those drawn before."""
    random, bits = np.random.default_rng(seed), signs.shape[1]
    chosen = [int(random.integers(len(signs)))]
    distance = np.full(len(signs), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, (bits - signs @ signs[chosen[-1]]) / 2)
        if not distance.any():
            break
        chosen.append(int(random.choice(len(signs), p=distance / distance.sum())))
    return signs[chosen].copy()
