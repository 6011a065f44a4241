"""Published versions of a gallery in memory, and the change to a new one while requests are answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.console import log
from gallery.errors import InputError, TwinhashError
from gallery.index import GalleryIndex
from gallery.service import metrics
from gallery.service.errors import ServiceError, bad_request
from gallery.service.filters import rows_where
from gallery.service.schemas import Options
from gallery.store import GalleryStore, SpaceRecord

FILTERS = 16  # whose masks are kept, a byte an item
MAX_BACKOFF = 12  # polls that are left out after failures: to load a damaged million again takes a second
SOURCE = "source"


class Snapshot:
    """One published version, whole: its codes, ids and the owner's columns.

    record: what the gallery says of it; source: the source of each item, where images are shown
    """

    def __init__(self, store: GalleryStore, record: SpaceRecord, with_source: bool) -> None:
        self.record, self.index = record, GalleryIndex(store, record, record.version)
        own = self.index.owner_columns
        wanted = [*own, SOURCE] if with_source else own
        columns = self.index.columns(wanted) if wanted else pa.table({})
        self.source = columns[SOURCE] if with_source else None
        self.columns = pa.table({"labels": self.index.labels, **{name: columns[name] for name in own}})
        self.index.searcher  # noqa: B018 - is built now, not by the first request
        self.rows_where = lru_cache(FILTERS)(self._rows_where)

    def search(self, codes: Codes, options: Options, without: int | None = None) -> list[list[dict[str, Any]]]:
        """Return the results of each code; without: a row that is left out."""
        among = None if options.where is None else self.rows_where(json.dumps(options.where, sort_keys=True))
        start = time.perf_counter()
        found = self.index.search(codes, options.k + (without is not None), among)
        metrics.SEARCH_SECONDS.observe(time.perf_counter() - start)
        if not options.columns and without is None and options.max_distance is None:
            pairs = zip(found.ids.tolist(), found.distances.tolist(), strict=True)
            return [[{"id": i, "distance": d} for i, d in zip(*pair, strict=True)] for pair in pairs]
        return [self._results(*query, options, without) for query in zip(*found, strict=True)]

    def _results(self, distances: Any, ids: Any, rows: Any, options: Options, without: int | None) -> Any:
        kept = np.ones(len(rows), bool) if without is None else rows != without
        if options.max_distance is not None:
            kept &= distances <= options.max_distance
        kept = np.flatnonzero(kept)[: options.k]
        results = [{"id": i, "distance": d} for i, d in zip(ids[kept].tolist(), distances[kept].tolist(), strict=True)]
        if options.columns:
            for result, values in zip(results, self.values(rows[kept], options.columns), strict=True):
                result["columns"] = values
        return results

    def values(self, rows: Sequence[int] | NDArray[np.int64], names: list[str] | None = None) -> list[dict[str, Any]]:
        """Return columns of rows, by default all; raises `ServiceError` for one that is not there."""
        names = self.columns.column_names if names is None else names
        if unknown := set(names) - set(self.columns.column_names):
            expected = f"columns out of {', '.join(self.columns.column_names)}"
            raise bad_request(expected, min(unknown), error="bad_column")
        return list(self.columns.select(names).take(rows).to_pylist())

    def row(self, id: str) -> int:
        """Return the row of an item; raises `ServiceError` where there is none."""
        try:
            return int(self.index.rows_of([id])[0])
        except InputError as error:
            raise ServiceError(404, "no_such_item", (error.expected, error.found, error.fix)) from error

    def _rows_where(self, where: str) -> NDArray[np.bool_]:
        return rows_where(self.columns, json.loads(where))


class Answering(NamedTuple):
    """The code space to use and the one before it; a request takes one `Answering` and is answered from it alone."""

    current: Snapshot
    previous: Snapshot | None

    def of(self, space: str | None) -> Snapshot:
        """Return the snapshot of a code space, by default the current; raises `ServiceError` for any other."""
        for snapshot in self:
            if snapshot and space in (None, snapshot.record.space):
                return snapshot
        metrics.count_refused(str(space))
        expected = " or ".join(f"code space {snapshot.record.space}" for snapshot in self if snapshot)
        fix = "The student is stale or belongs to another gallery: update the app to a bundle of that code space."
        raise ServiceError(409, "code_space_mismatch", (expected, f"code space {space}", fix))


class Snapshots:
    """What is answered now, and a thread that asks the gallery for newly published versions.

    problem: why the newest published version is not answered, empty if it is
    """

    def __init__(self, uri: str, with_source: bool = False) -> None:
        self._uri, self._with_source, self._stop = uri, with_source, threading.Event()
        self._answering: Answering | None = None
        self.problem = "nothing was loaded"
        self._thread: threading.Thread | None = None

    @property
    def loaded(self) -> bool:
        """Whether there is a version to answer from."""
        return self._answering is not None

    @property
    def answering(self) -> Answering:
        """What is answered; raises `ServiceError` as long as nothing could be loaded."""
        if self._answering is None:
            texts = "a published version that is loaded", "none: /readyz says why, with a key", "Try again later."
            raise ServiceError(503, "not_ready", texts, retry_s=2)
        return self._answering

    def start(self, poll_s: float) -> None:
        """Load, and then look for a new version each `poll_s`."""
        self.poll()
        self._thread = threading.Thread(target=self._run, args=(poll_s,), daemon=True, name="snapshots")
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what is being loaded is given up with the process."""
        self._stop.set()

    def _run(self, poll_s: float) -> None:
        failures = 1 if self.problem else 0
        while not self._stop.wait(poll_s * min(1 << failures, MAX_BACKOFF)):
            self.poll()
            failures = failures + 1 if self.problem else 0

    def poll(self) -> None:
        """Load what was newly published; whatever goes wrong, the answers stay as they are."""
        try:
            store = GalleryStore(self._uri)
            serving, previous = store.spaces_in("serving", "previous")
            if serving is None or not serving.version:
                raise LookupError("no published version")
            current = self._load(store, serving)
            older, problem = self._older(store, previous)
            if (self._answering is None or self._answering.current is not current
                    or self._answering.previous is not older):  # fmt: skip
                self._answering = Answering(current, older)
                self._announce(store)
        except Exception as error:  # noqa: BLE001 - of the store, the network, memory: it is tried again
            problem = _say(error)
        if problem and problem != self.problem:
            metrics.RELOAD_FAILURES.inc()
            log.warning("  %s is not loaded: %s", self._uri, problem)
        self.problem = problem

    def _older(self, store: GalleryStore, record: SpaceRecord | None) -> tuple[Snapshot | None, str]:
        if record is None or not record.version:
            return None, ""
        try:
            return self._load(store, record), ""
        except Exception as error:  # noqa: BLE001 - what was loaded of that space is kept
            return self._known(record.space), _say(error)

    def _load(self, store: GalleryStore, record: SpaceRecord) -> Snapshot:
        known = self._known(record.space)
        same = known and (known.record.version, known.record.rows, known.record.sum) == record[2:5]
        return known if known and same else Snapshot(store, record, self._with_source)

    def _known(self, space: str) -> Snapshot | None:
        return next((one for one in self._answering or () if one and one.record.space == space), None)

    def _announce(self, store: GalleryStore) -> None:
        answering = self.answering
        for state, snapshot in zip(("serving", "previous"), answering, strict=True):
            metrics.ITEMS.labels(state).set(len(snapshot.index) if snapshot else 0)
            metrics.VERSION.labels(state).set(snapshot.record.version if snapshot else 0)
        record = answering.current.record
        metrics.PUBLISHED.set(record.since.timestamp())
        metrics.FAILED.set(len(store.failures(record.space)))
        log.info("  answering version %d of %s, %d items", record.version, record.space, len(answering.current.index))


def _say(error: Exception) -> str:
    return str(error) if isinstance(error, TwinhashError | LookupError) else f"{type(error).__name__}: {error}"
