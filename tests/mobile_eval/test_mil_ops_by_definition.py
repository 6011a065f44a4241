"""Operations of the reference evaluator against their definitions, written out number by number in Python's floats."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobile_eval.runtimes import mil_ops

Numbers = NDArray[np.float64]


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def places(shape: tuple[int, ...]) -> Any:
    return itertools.product(*map(range, shape))


def in_float32(found: torch.Tensor, expected: Numbers) -> None:
    """The same after rounding: what the sums' order changes in float64 is far below."""
    assert tuple(found.shape) == expected.shape
    assert np.array_equal(found.float().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("axes", [[-1], [1], [2, 3], [1, 2, 3], [1, 3]])
@pytest.mark.parametrize("scaled", [True, False])
def test_layer_norm(axes: list[int], scaled: bool) -> None:
    x = random_numbers(2, 3, 4, 5)
    along = [axis % 4 for axis in axes]
    gamma, beta = (random_numbers(*(x.shape[axis] for axis in along), seed=seed) for seed in (1, 2))
    expected = np.empty(x.shape)
    for place in places(tuple(x.shape)):
        others = places(tuple(x.shape[axis] for axis in along))
        group = []
        for other in others:
            full = list(place)
            for axis, index in zip(along, other, strict=True):
                full[axis] = index
            group.append(float(x[tuple(full)]))
        mean = math.fsum(group) / len(group)
        variance = math.fsum((value - mean) ** 2 for value in group) / len(group)
        y = (float(x[place]) - mean) / math.sqrt(variance + 1e-3)
        here = tuple(place[axis] for axis in along)
        expected[place] = y * float(gamma[here]) + float(beta[here]) if scaled else y
    in_float32(mil_ops.layer_norm(x, axes, *((gamma, beta) if scaled else (None, None)), 1e-3), expected)


@pytest.mark.parametrize(("of_x", "of_y"), itertools.product([False, True], repeat=2))
def test_matmul(of_x: bool, of_y: bool) -> None:
    x, y = random_numbers(2, 3, 4, 5), random_numbers(3, 5, 6, seed=1)
    expected = np.empty((2, 3, 4, 6))
    for image, head, row, column in places(expected.shape):
        products = [float(x[image, head, row, k]) * float(y[head, k, column]) for k in range(5)]
        expected[image, head, row, column] = math.fsum(products)
    in_float32(mil_ops.matmul(x.mT if of_x else x, y.mT if of_y else y, of_x, of_y), expected)


def test_softmax() -> None:
    x = 5 * random_numbers(2, 7, 3)
    expected = np.empty(x.shape)
    for i, j, k in places(tuple(x.shape)):
        expected[i, j, k] = math.exp(x[i, j, k]) / math.fsum(math.exp(x[i, other, k]) for other in range(7))
    in_float32(mil_ops.OPS["softmax"](x, axis=1), expected)
    assert torch.equal(mil_ops.OPS["softmax"](x), mil_ops.OPS["softmax"](x, axis=2))


@pytest.mark.parametrize("axis", [1, -1])
def test_concat(axis: int) -> None:
    values = [random_numbers(2, 3, 4, seed=seed) for seed in range(3)]
    joined, mixed = mil_ops.concat(values, axis), mil_ops.concat(values, axis, interleave=True)
    length = values[0].shape[axis]
    for place in places(tuple(joined.shape)):
        part, index = divmod(place[axis], length)
        inside = [*place]
        inside[axis] = index
        assert joined[place] == values[part][tuple(inside)]
        inside[axis], part = divmod(place[axis], 3)
        assert mixed[place] == values[part][tuple(inside)]


def test_concat_repeats_a_constant_for_each_image_but_not_along_the_batch() -> None:
    constant, images = random_numbers(1, 1, 4), random_numbers(3, 2, 4, seed=1)
    joined = mil_ops.concat([constant, images], 1)
    assert all(torch.equal(joined[i], torch.cat([constant[0], images[i]])) for i in range(3))
    assert mil_ops.concat([random_numbers(1, 2, 4), images], 0).shape == (4, 2, 4)


@given(data=st.data(), size=st.integers(1, 6), other=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_slice_by_index(data: st.DataObject, size: int, other: int) -> None:
    """Masks, strides of both signs, negative ends and single indices, as MIL's reference defines them."""
    shape = size, other
    x = random_numbers(*shape)
    squeeze = [data.draw(st.booleans()) for _ in shape]
    masks = [[data.draw(st.booleans()) for _ in shape] for _ in range(2)]
    stride = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    begin = [data.draw(st.integers(-length, length - 1)) for length in shape]
    end = [data.draw(st.integers(-length, length)) for length in shape]
    rows: list[list[int]] = []
    for axis, length in enumerate(shape):
        step = stride[axis]
        first = (0 if step > 0 else length - 1) if masks[0][axis] else begin[axis] % length
        if squeeze[axis]:
            rows.append([0 if masks[0][axis] else first])
            continue
        last = end[axis] + length * (end[axis] < 0)
        last = (length if step > 0 else -1) if masks[1][axis] else last
        rows.append([i for i in (first + step * n for n in range(length)) if (i < last if step > 0 else i > last)])
        rows[-1] = [i for i in rows[-1] if 0 <= i < length]
    found = mil_ops.slice_by_index(x, begin, end, stride, masks[0], masks[1], squeeze)
    assert list(found.shape) == [len(part) for part, single in zip(rows, squeeze, strict=True) if not single]
    assert found.flatten().tolist() == [float(x[i, j]) for i in rows[0] for j in rows[1]]
    if not any(squeeze) and not any(map(any, masks)) and stride == [1, 1]:
        assert torch.equal(found, mil_ops.slice_by_index(x, begin, end))


def test_split_tile_and_stack() -> None:
    x = random_numbers(2, 6, 3)
    for parts, sizes in ((mil_ops.split(x, 1, num_splits=3), [2, 2, 2]), (mil_ops.split(x, 1, None, [1, 5]), [1, 5])):
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        assert [part.shape[1] for part in parts] == sizes
        assert all(
            part[i, j, k] == x[i, start + j, k]
            for part, start in zip(parts, starts, strict=True)
            for i, j, k in places(tuple(part.shape))
        )
    tiled, stacked = mil_ops.OPS["tile"](x, [1, 2, 4]), mil_ops.OPS["stack"]([x, 2 * x], 1)
    assert tiled.shape == (2, 12, 12)
    assert all(tiled[i, j, k] == x[i, j % 6, k % 3] for i, j, k in places(tuple(tiled.shape)))
    assert all(stacked[i, n, j, k] == (n + 1) * x[i, j, k] for i, n, j, k in places((2, 2, 6, 3)))


def test_upsampling() -> None:
    x = random_numbers(1, 2, 3, 4)
    nearest = mil_ops.upsample_nearest_neighbor(x, 2, 3)
    assert nearest.shape == (1, 2, 6, 12)
    assert all(nearest[0, c, i, j] == x[0, c, i // 2, j // 3] for c, i, j in places((2, 6, 12)))
    nearest = mil_ops.upsample_nearest_neighbor(x, 5 / 3, 7 / 4)
    assert nearest.shape == (1, 2, 5, 7)
    assert all(nearest[0, c, i, j] == x[0, c, i * 3 // 5, j * 4 // 7] for c, i, j in places((2, 5, 7)))
    for corners in (True, False):
        expected = np.empty((1, 2, 6, 8))
        for c, i, j in places((2, 6, 8)):
            sides = []
            for place, length in ((i, 3), (j, 4)):
                at = place * (length - 1) / (2 * length - 1) if corners else max((place + 0.5) / 2 - 0.5, 0.0)
                low = min(int(at), length - 1)
                sides.append(((low, 1 - (at - low)), (min(low + 1, length - 1), at - low)))
            expected[0, c, i, j] = math.fsum(float(x[0, c, m, n]) * a * b for m, a in sides[0] for n, b in sides[1])
        found = mil_ops.upsample_bilinear(x, 2, 2, align_corners=corners)
        assert np.abs(found.numpy() - expected).max() < 1e-12


def test_norms_and_squares() -> None:
    x = random_numbers(2, 3, 4)
    expected = np.empty((2, 1, 1))
    for i in range(2):
        expected[i, 0, 0] = math.sqrt(math.fsum(float(x[i, j, k]) ** 2 for j, k in places((3, 4))))
    in_float32(mil_ops.OPS["reduce_l2_norm"](x, axes=[1, 2], keep_dims=True), expected)
    numbers = [float(x[place]) for place in places((2, 3, 4))]
    in_float32(mil_ops.OPS["reduce_mean"](x), np.array(math.fsum(numbers) / 24))
    in_float32(mil_ops.OPS["reduce_sum"](x, keep_dims=True), np.full((1, 1, 1), math.fsum(numbers)))
    squares = mil_ops.OPS["square"](x)
    assert all(float(squares[place]) == float(x[place]) ** 2 for place in places((2, 3, 4)))
    assert all(
        float(root) == math.sqrt(float(value))
        for root, value in zip(mil_ops.OPS["sqrt"](squares).flatten(), squares.flatten(), strict=True)
    )
