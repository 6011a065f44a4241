"""The binary code: `bit = logit > 0`, packed in little bit order, compared by Hamming distance.

64 bits are eight bytes, one little-endian uint64.  Everything that crosses a folder, a file or a wire is packed.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gallery.errors import InputError

BIT_RULE: Final = "logit > 0"
BIT_ORDER: Final = "little"
KEY: Final = "twinhash.metadata"  # under which an exported model says what it is
RULE: Final = 2  # how an image file becomes a network's square input: see `gallery.codespace.RULE_TEXT`
MAX_TEXT: Final = 1000  # characters of one text of such metadata
MAX_MODEL_VERSION: Final = 999_999_999  # also of a release
Codes = NDArray[np.uint8]


def check_bits(bits: int) -> int:
    """Return `bits` if whole bytes can hold them; raises `InputError` otherwise."""
    if bits < 8 or bits % 8:
        raise InputError("a code length that fills whole bytes", f"{bits} bits", "Use 16, 32, 48, 64 or 128 bits.")
    return bits


def pack(logits: ArrayLike) -> Codes:
    """Pack logits or booleans `[..., bits]` into uint8 `[..., bits/8]`; bit j of a code is byte j//8, bit j%8.

    >>> pack([[-1.0, 2.0, 0.0, 1e-9, -3.0, -1.0, -1.0, 5.0]])
    array([[138]], dtype=uint8)
    """
    values = np.asarray(logits)
    check_bits(values.shape[-1] if values.ndim else 1)
    return np.packbits(values > 0, axis=-1, bitorder=BIT_ORDER)


def unpack(codes: Codes) -> NDArray[np.bool_]:
    """Invert `pack`: uint8 `[..., bytes]` to bool `[..., 8*bytes]`."""
    return np.unpackbits(_codes(codes), axis=-1, bitorder=BIT_ORDER).astype(bool)


def hamming(left: Codes, right: Codes) -> NDArray[np.uint16]:
    """Return the distances in bits between packed `[n, bytes]` and `[m, bytes]`, as `[n, m]`."""
    a, b = words(left), words(right)
    if left.shape[1] != right.shape[1]:
        found = f"{left.shape[1]} and {right.shape[1]} bytes"
        raise InputError("codes of one length", found, "Compare codes of one space.")
    distance = np.zeros((len(a), len(b)), np.uint16)
    for w in range(a.shape[1]):  # one 64-bit word at a time keeps the temporaries at n*m*8 bytes
        distance += np.bitwise_count(a[:, w, None] ^ b[None, :, w])
    return distance


def words(codes: Codes) -> NDArray[np.uint64]:
    """View packed `[n, bytes]` as little-endian 64-bit words `[n, ceil(bytes/8)]`, zero-padded."""
    codes = _codes(codes)
    if codes.ndim != 2:
        raise InputError("packed codes [n, bytes]", f"shape {codes.shape}", "Pass one code as codes[None].")
    if codes.shape[1] and codes.shape[1] % 8 == 0:
        return codes.view("<u8")
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view("<u8")


def _codes(codes: Codes) -> Codes:
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim < 1:
        found = f"{codes.dtype} of shape {codes.shape}"
        raise InputError("packed uint8 codes", found, "Pack logits with gallery.codes.pack.")
    return np.ascontiguousarray(codes)
