"""Encode images on many machines, with Ray Data; each worker reads and hashes batches as one process alone does.

Without RAY_ADDRESS in the environment Ray is started on this machine and ended again.  The machines of a cluster need
Twinhash with the extras `train` and `ray`, and the run, the images and the credentials where this machine has them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallery import errors
from gallery.batch_encoder import BatchEncoder, EncodedImage, EncodeJob
from gallery.console import log
from gallery.cores import available_cores
from gallery.errors import InputError, TwinhashError
from gallery.layers import missing_module, require
from gallery.sources.reader import ImageRequest

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = str(Path(__file__).parents[1])
LEAST_CPUS = 4  # logical ones: with two, Ray was seen to wait for ever for a third
OBJECT_STORE = 256 << 20  # bytes: addresses go in and codes come out
FAILED = -1  # in the place of a row: what follows is an error
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class RayEncoder(BatchEncoder):
    """Encodes on the machines of a Ray cluster. loading: seconds in which Ray was started"""

    _blocks: Any = None

    def close(self) -> None:
        """Stop what was not encoded to its end: Ray's threads would outlive Ray, and crash."""
        if self._blocks is not None:
            self._blocks.close()

    def encode(self, requests: Sequence[ImageRequest]) -> Iterator[EncodedImage]:
        """Yield each image, in any order; a batch whose worker was killed is encoded by another one."""
        import pyarrow as pa
        import ray.data

        size = self._job.batch
        parts = [pa.Table.from_pylist([one._asdict() for one in requests[at : at + size]], _requests())
                  for at in range(0, len(requests), size)]  # fmt: skip
        cluster = ray.cluster_resources()
        gpus = int(cluster.get("GPU", 0))
        most = gpus or int(min(cluster.get("CPU", 1), _real_cpus()))
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, len(parts))))
        data = ray.data.from_arrow(parts).map_batches(
            _Worker, batch_size=None, batch_format="pyarrow", compute=pool, fn_constructor_args=(self._job,),
            num_cpus=1, num_gpus=1 if gpus else None,
        )  # fmt: skip
        self._blocks = iter(data.iter_batches(batch_size=None, batch_format="pyarrow"))
        for row in (row for block in self._blocks for row in block.to_pylist()):
            if row["row"] == FAILED:
                raise _error_from(row["reason"])
            yield EncodedImage(**row)


class _Worker:
    """A process of Ray's, which loads the network once."""

    def __init__(self, job: EncodeJob) -> None:
        self._encoder = BatchEncoder(job)

    def __call__(self, block: pa.Table) -> pa.Table:
        import pyarrow as pa

        requests = [ImageRequest(**row) for row in block.to_pylist()]
        try:
            rows = [one._asdict() for one in self._encoder.encode(requests)]
        except TwinhashError as error:  # of which Ray would pass on the traceback alone
            words = [type(error).__name__, error.expected, error.found, error.fix]
            rows = [EncodedImage(FAILED, "", json.dumps(words), None)._asdict()]
        return pa.Table.from_pylist(rows, _encoded())


@contextmanager
def ray_engine(job: EncodeJob) -> Iterator[RayEncoder]:
    """Start Ray, or connect to the cluster at RAY_ADDRESS; raises `MissingBackend` where it is not installed."""
    require("ray")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise missing_module(str(error.name)) from error
    engine, start = RayEncoder(job), time.monotonic()
    here: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {
        "num_cpus": max(LEAST_CPUS, _real_cpus()), "object_store_memory": OBJECT_STORE, "include_dashboard": False,
    }  # fmt: skip
    try:
        with _own_signals(), _silence():
            _start(here)
        ray.data.DataContext.get_current().enable_progress_bars = False
        engine.loading = time.monotonic() - start
        log.info("  Ray: %d CPUs, %d GPUs", *(ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")))
        yield engine
    finally:
        with _silence():
            engine.close()
            ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    import ray

    paths = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    environment = {"env_vars": {"PYTHONPATH": paths}}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=environment)
    except (OSError, RuntimeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        fix = "Check RAY_ADDRESS and the machines of the cluster, or leave out --engine ray."
        raise InputError("Ray to start", lines[0][:300], fix) from error


def _requests() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("row", pa.int64()), ("source", pa.string()), ("known", pa.string())])


def _encoded() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("row", pa.int64()), ("sha256", pa.string()), ("reason", pa.string()), ("code", pa.binary())])


def _real_cpus() -> int:
    """Return the cores of this process, or of a cluster as many as it has."""
    if "RAY_ADDRESS" in os.environ:
        return 1 << 20
    return available_cores()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Ray says as it starts and ends out of the terminal, from Python and C++."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), open(os.devnull, "w") as null:
        warnings.filterwarnings("ignore", message="lancedb fork support")  # a program is started at once
        stderr = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals, of which Ray takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _error_from(text: str) -> TwinhashError:
    """Return the error that a worker met."""
    kind, *words = json.loads(text)
    found: TwinhashError = getattr(errors, kind)(*words)
    return found
