"""Latency at batch size 1 on the machine where this runs: a desktop's is no estimate of a phone's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

SAMPLES, MAX_SECONDS, WARM_UPS, THREADS = 200, 10.0, 10, 1
Run = Callable[[NDArray[np.uint8]], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image, batch size 1.  first_ms: of the first call, which may allocate and compile."""

    first_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples: int

    @classmethod
    def of(cls, first: float, taken: Sequence[float]) -> Self:
        """Summarise the milliseconds of the first call and of those after the warm-up."""
        p50, p90, p99 = (float(value) for value in np.percentile(taken, (50, 90, 99)))
        return cls(first_ms=first, p50_ms=p50, p90_ms=p90, p99_ms=p99, samples=len(taken))


def measure(run: Run, image: NDArray[np.uint8], samples: int = SAMPLES, max_seconds: float = MAX_SECONDS) -> Latency:
    """Time `run` on one image `[1, S, S, 3]`: the first call, the warm-up, then `samples` calls.

    Warm-up and sampling each stop after `max_seconds`, but never before one call.
    """
    _, first = timed(lambda: run(image))
    _sample(run, image, WARM_UPS, max_seconds)
    return Latency.of(first, _sample(run, image, samples, max_seconds))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `call`, and its milliseconds."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1e6


def _sample(run: Run, image: NDArray[np.uint8], count: int, max_seconds: float) -> list[float]:
    taken: list[float] = []
    end = time.perf_counter() + max_seconds
    while not taken or (len(taken) < count and time.perf_counter() < end):
        taken.append(timed(lambda: run(image))[1])
    return taken
