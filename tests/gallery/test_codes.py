"""Packing and distance against pure Python twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gallery.codes import check_bits, hamming, pack, unpack, words
from gallery.errors import InputError

LENGTHS = st.sampled_from([8, 16, 24, 32, 48, 64, 72, 128])
LOGITS = st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1e-38, -1e-38, float("inf"), float("-inf")])


@st.composite
def logits(draw: st.DrawFn, bits: int | None = None) -> np.ndarray:
    rows, bits = draw(st.integers(0, 5)), bits or draw(LENGTHS)
    return draw(arrays(np.float32, (rows, bits), elements=LOGITS))


def slow_pack(row: list[float]) -> bytes:
    return bytes(sum((row[byte * 8 + bit] > 0) << bit for bit in range(8)) for byte in range(len(row) // 8))


@given(logits())
def test_packing_follows_the_contract_bit_by_bit(values: np.ndarray) -> None:
    packed = pack(values)
    assert packed.dtype == np.uint8
    assert packed.shape == (len(values), values.shape[1] // 8)
    assert [row.tobytes() for row in packed] == [slow_pack(row) for row in values.tolist()]


@given(logits())
def test_unpack_inverts_pack(values: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(values)), values > 0)
    assert np.array_equal(pack(unpack(pack(values))), pack(values))


@given(logits(64))
def test_a_64_bit_code_is_one_little_endian_word(values: np.ndarray) -> None:
    expected = [int.from_bytes(slow_pack(row), "little") for row in values.tolist()]
    assert words(pack(values))[:, 0].tolist() == expected


@given(st.data())
def test_hamming_counts_differing_bits(data: st.DataObject) -> None:
    bits = data.draw(LENGTHS)
    left, right = data.draw(logits(bits)), data.draw(logits(bits))
    expected = [[sum((a > 0) != (b > 0) for a, b in zip(q, g, strict=True)) for g in right.tolist()]
                for q in left.tolist()]  # fmt: skip
    distance = hamming(pack(left), pack(right))
    assert distance.dtype == np.uint16
    assert distance.shape == (len(left), len(right))
    assert distance.tolist() == expected


def test_distances_beyond_255_bits_do_not_wrap() -> None:
    assert hamming(np.zeros((1, 64), np.uint8), np.full((1, 64), 255, np.uint8)).item() == 512


def test_a_view_with_strides_is_packed_like_its_copy() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(4, 16)[::2, ::2]
    assert np.array_equal(hamming(codes, codes), hamming(codes.copy(), codes.copy()))
    assert np.array_equal(unpack(codes), unpack(codes.copy()))


@pytest.mark.parametrize("bits", [0, -8, 1, 7, 12, 63])
def test_code_lengths_that_fill_no_whole_bytes_are_rejected(bits: int) -> None:
    with pytest.raises(InputError, match="whole bytes"):
        check_bits(bits)


@pytest.mark.parametrize("wrong", [np.zeros(12), np.zeros((3, 7)), np.float32(1.0)])
def test_logits_of_a_wrong_length_are_rejected(wrong: np.ndarray) -> None:
    with pytest.raises(InputError):
        pack(wrong)


@pytest.mark.parametrize("wrong", [np.zeros((2, 8), np.int8), np.zeros((2, 64)), np.zeros((2, 8), bool)])
def test_unpacked_codes_are_rejected(wrong: np.ndarray) -> None:
    good = np.zeros((2, 8), np.uint8)
    for call in (lambda: hamming(wrong, good), lambda: hamming(good, wrong), lambda: unpack(wrong)):
        with pytest.raises(InputError, match="packed uint8"):
            call()


@pytest.mark.parametrize("other", [7, 9, 16])
def test_codes_of_two_lengths_are_rejected(other: int) -> None:
    with pytest.raises(InputError, match="one length"):
        hamming(np.zeros((2, 8), np.uint8), np.zeros((2, other), np.uint8))


def test_one_code_alone_is_rejected_with_the_way_out() -> None:
    with pytest.raises(InputError, match="None"):
        hamming(np.zeros(8, np.uint8), np.zeros((2, 8), np.uint8))
