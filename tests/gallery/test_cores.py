"""Work that is shared among cores comes back in order, is begun only a little ahead, and ends with its first error."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gallery.cores import available_cores, map_ahead


def test_results_come_in_order_and_little_is_begun_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))  # the first of three is done first
        return -number

    found = map_ahead(work, items())
    assert [next(found) for _ in range(50)] == [-number for number in range(50)]
    found.close()  # type: ignore[attr-defined]
    assert len(taken) <= 51 + 4 * available_cores()
    assert list(map_ahead(work, range(7))) == [-number for number in range(7)]
    assert list(map_ahead(work, [])) == []


def test_an_error_comes_at_its_place() -> None:
    found = map_ahead(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
