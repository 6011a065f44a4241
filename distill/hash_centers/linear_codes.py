"""Good binary codes as generator matrices: extended BCH by formula, the best of other lengths found by annealing.

A generator `[k, n]` of 0/1 spans 2^k words of n bits; their least distance is the least weight of a word but zero,
and is always counted here, never trusted.  Kerdock's codes are linear over Z4 only, and better than any linear one.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]  # of 0 and 1
FEEDBACK = {3: 1, 4: 1, 5: 2, 6: 1, 7: 1}  # x^m + x^b + 1 is primitive
QUATERNARY_FEEDBACK = {3: (1, 3, 2), 5: (1, 2, 1, 0, 0)}  # s[i+m] = sum of these * s[i..]: the lift to Z4 (Graeffe)
# (n, k): the columns of the generator, k bits each, in hexadecimal of equal width
COLUMNS = {
    (24, 7): "06090c0d1517252d383b45464e555657616465666a77797c",
    (24, 12): "00100200500a01502b0570ae15c1802b83005715c66007188008c0ae3b8cc00c60e30fff",
    (32, 7): "0306070e1011141a2325292c2e3031353c3e43464c4e4f5364676b6e7475787c",
    (32, 8): "212324272d2f323f425859939799a0a2a3aaadb1b9c6c8cdd8e4e6edf0f1fdfe",
    (40, 7): "05090a121418191a1b1c252a2c2d2e31333a3b3f41434548494d4e4f5658595e616a6c6e71797d7f",
    (40, 10): (
        "01b02e05705d08208d0940980a10a60b50c10c70fa13114514e16317517f1801881d01f921b22f23024f26827529029b2d02ff336338"
        "34837c3bc3f4"
    ),
    (48, 7): "01020304060a0a0f111316181a1d202127292c2e3335383b3c3e404344484d4f5053545b5c5d6267696b727677797e7f",
    (48, 8): "0811121415161b1e1f2d2e32343d3e41484a4f525868696b6d7071909192979ca1a6a7abbbc1c5d2d5d5d9dce5eaf2f6",
    (48, 10): (
        "00101b05b05d05e08c0950a00b40dc0ec0ed0f10f814e16116f1d11f21f823826c27528729129a2ae2b82d12ea2ed2f22fa2fe30f347"
        "36d37a37c3863893a13a23a93ac3b33c53c7"
    ),
    (48, 11): (
        "07b0910ad0f30f61291ef1f722026a2912d82e52f52fa30032c3483983e24134794914e150850c52753654f58f5975a85ad5c2606626"
        "6706806b06b36bd6cd6ce6dc74e7b17b37e6"
    ),
    (56, 7): (
        "08090b0d151618191a1b1d1f222628292c2d2e30323a3c3e434748494d4f50515354585a5b5c5d5f62646768696b6c6d6e70787a7b7c"
        "7e7f"
    ),
    (56, 9): (
        "00400d01a01d02002e03103203803e04104305505706b06c06e07a08608c08f09409f0ad0c20c40c90db0eb0ef0f00fe10410610a113"
        "12312e12f13d15715816217117417a18b18d18e1a51aa1ac1b41bd1ec1f3"
    ),
    (128, 9): (
        "00100100300500800d00f01101301e02402802a02f03203c04004304704904e05105305505705906006206606806e071074077087088"
        "08b08d09209709d0a00a40a80aa0ac0ae0b30b40b80bc0be0c10c30c50c70c90d50d70dc0df0e40ea0f10f20f60f80fe101103105116"
        "11911c12412612f13513813f14314714914a15315415c15f16016916a17217917d18218518918d18f19319419919a19d19f1a01a41a6"
        "1a81ab1ac1b11b31b41ba1bf1c71c91cf1d01d21d61db1e51e91ec1f01f7"
    ),
    (128, 10): (
        "00403603f04704c05f06207407b07e08908c08e09209309809909c09e0a50b40b50b70b90bb0d90e110311511712212413814a15d167"
        "17217517d17e18018818e1951981bf1cd1ce1e31ec1f81fe20221622823823923a24025225f26326726826a27727b27e281283292298"
        "29929b2a32aa2ab2ac2b22b82bd2bf2c52cd2d02d62d72d92ea2ed2f22f62fc30630b30e31131331f325328330333336342344349350"
        "35735a36837637937e38138439539e3b23b33b53c53d63dd3e23e83f83f9"
    ),
}


@cache
def stored(length: int, dimension: int) -> Bits:
    """The generator `[k, n]` kept in COLUMNS."""
    text, width = COLUMNS[length, dimension], -(-dimension // 4)
    columns = np.array([int(text[at : at + width], 16) for at in range(0, len(text), width)])
    return (columns >> np.arange(dimension)[:, None] & 1).astype(np.uint8)


@cache
def bch(m: int) -> Bits:
    """A basis `[2^m, 2^m]`, m = 3..7, of nested codes of length 2^m: k rows span (part of) an extended BCH code.

    The all-ones row; then for each cyclotomic coset of exponents s, beginning with the last to become a zero of BCH,
    the words Tr(a x^s), x in GF(2^m): shifts of the m-sequence read at every s-th place (MacWilliams & Sloane, ch. 7);
    last a single one, which makes it the whole space.
    """
    order, bits = 2**m - 1, [1] * m
    while len(bits) < order:
        bits.append(bits[-m] ^ bits[FEEDBACK[m] - m])
    trace, rows = np.array(bits, np.uint8), [np.ones(order + 1, np.uint8)]
    for coset in sorted({tuple(sorted({s * 2**j % order for j in range(m)})) for s in range(1, order)}, reverse=True):
        word = next(w for j in range(m) if (w := trace[(j - coset[0] * np.arange(order)) % order]).any())
        rows += [np.append(0, np.roll(word, shift)) for shift in range(len(coset))]
    return np.array([*rows, np.eye(1, order + 1)[0]], np.uint8)


def shortened(generator: Bits, by: int) -> Bits:
    """Of the words that begin with `by` zeros, the rest: `[k - by, n - by]`, no two nearer than before."""
    matrix = generator.copy()
    for column in range(by):
        pivot = column + int(matrix[column:, column].argmax())
        matrix[[column, pivot]] = matrix[[pivot, column]]
        below = column + 1 + np.flatnonzero(matrix[column + 1 :, column])
        matrix[below] ^= matrix[column]
    return matrix[by:, by:]


def span(generator: Bits) -> Bits:
    """All words `[2^k, n]`, zero first."""
    return np.unpackbits(_packed_span(generator), axis=1, count=generator.shape[1])


def min_weight(generator: Bits) -> int:
    """The least distance of the code: the least weight of a sum of rows; 0 if the rows are dependent."""
    return int(np.bitwise_count(_packed_span(generator)).sum(1)[1:].min())


@cache
def kerdock(m: int) -> Bits:
    """Kerdock's 4^(m+1) words of length 2^(m+1), distance 2^m - 2^((m-1)/2); m = 3 is Nordstrom and Robinson's.

    The Gray image (0, 1, 2, 3 to 00, 01, 11, 10) of the code over Z4 spanned by the all-ones word and the shifts of
    a lifted m-sequence (Hammons, Kumar, Calderbank, Sloane & Sole, 1994).
    """
    sequence = [1] + [0] * (m - 1)
    while len(sequence) < 2**m - 1:
        sequence.append(sum(a * s for a, s in zip(QUATERNARY_FEEDBACK[m], sequence[-m:], strict=True)) % 4)
    words = np.zeros((1, 2**m), np.uint8)
    for row in [np.ones(2**m, int), *(np.append(0, np.roll(sequence, shift)) for shift in range(m))]:
        words = np.concatenate([(words + times * row) % 4 for times in range(4)]).astype(np.uint8)
    return np.concatenate([words >> 1, (words >> 1) ^ (words & 1)], axis=1)


def _packed_span(generator: Bits) -> Bits:
    words = np.zeros((1, -(-generator.shape[1] // 8)), np.uint8)
    for row in np.packbits(generator, axis=1):
        words = np.concatenate([words, words ^ row])
    return words
