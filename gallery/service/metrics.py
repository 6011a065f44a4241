"""Measurements in Prometheus's format; of several processes, their sum."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
MAX_SPACES = 20  # different ones that are counted by name

REQUESTS = Counter("twinhash_requests", "Requests", ["route", "status"])
REQUEST_SECONDS = Histogram("twinhash_request_seconds", "Seconds a request", ["route"], buckets=SECONDS)
SEARCH_SECONDS = Histogram("twinhash_search_seconds", "Seconds a search in the index", buckets=SECONDS)
REFUSED = Counter("twinhash_refused_students", "Requests of a code space that is not answered", ["code_space"])
RELOAD_FAILURES = Counter("twinhash_reload_failures", "Published versions that could not be loaded")
ITEMS = Gauge("twinhash_items", "Items of a code space", ["state"], multiprocess_mode="livemin")
VERSION = Gauge("twinhash_version", "Published version that is answered", ["state"], multiprocess_mode="livemin")
PUBLISHED = Gauge("twinhash_published_timestamp_seconds", "When it was published", multiprocess_mode="livemin")
FAILED = Gauge("twinhash_failed_images", "Images that could not be encoded", multiprocess_mode="livemin")

_refused: set[str] = set()


def count_refused(space: str) -> None:
    """Count a request of a code space that is not answered; clients may make up any number of names."""
    if len(_refused) < MAX_SPACES:
        _refused.add(space)
    REFUSED.labels(space if space in _refused else "other").inc()


def exposition() -> bytes:
    """Return all measurements as text."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
