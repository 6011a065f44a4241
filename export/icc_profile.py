"""Write ICC profiles of RGB color spaces: golden photographs carry one, as the photos of phones do."""

import struct
from collections.abc import Sequence

# Red, green and blue at full, as XYZ under D50, of sRGB (IEC 61966-2-1) and Display P3 (SMPTE EG 432-1, D65 adapted).
SRGB = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)
DISPLAY_P3 = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
D50 = 0.9642, 1.0, 0.8249
CURVE = 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045  # sRGB's, and Display P3's: exponent, a, b, c, d


def rgb_profile(name: str, primaries: Sequence[Sequence[float]], curve: Sequence[float] = CURVE) -> bytes:
    """Return the ICC profile (ICC.1:2010, version 4.3) of a display with these primaries and this curve.

    primaries: XYZ under D50 of red, green and blue; curve: (a x + b) ** exponent from d on, below it c x
    """
    text = struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", 2 * len(name), 28) + name.encode("utf-16-be")
    parametric = struct.pack(">4s4xHH", b"para", 3, 0) + _fixed(curve)
    body = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + _fixed(D50)}
    for channel, color in zip(b"rgb", primaries, strict=True):
        body |= {bytes([channel]) + b"XYZ": b"XYZ \0\0\0\0" + _fixed(color), bytes([channel]) + b"TRC": parametric}
    table, data, start = struct.pack(">I", len(body)), b"", 128 + 4 + 12 * len(body)
    for tag, value in body.items():
        table += struct.pack(">4sII", tag, start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s6H4s", start + len(data), 0x04300000, b"mntr", b"RGB ", b"XYZ ", 2026, 1, 1, 0, 0, 0,
                       b"acsp") + bytes(28)  # fmt: skip
    return head + _fixed(D50) + bytes(128 - len(head) - 12) + table + data


def _fixed(values: Sequence[float]) -> bytes:
    """Return numbers as s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
