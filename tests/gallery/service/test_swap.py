"""A newly published version takes its place without a failed request; a damaged one does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gallery.database import code_array
from gallery.store import GalleryStore
from tests.gallery.galleries import write_spaces
from tests.gallery.service.conftest import Items, Running, pairs, serving


def publish_inverted(store: GalleryStore, items: Items, inverted: bool) -> int:
    """Replace every code by its complement, or by itself, and publish: two versions with no result in common."""
    codes = ~items.codes if inverted else items.codes
    store.put(items.space.id, pa.table({"id": items.ids, "code": code_array(codes)}))
    return store.publish(items.space.id).version


def ask_for_a_while(service: Running, items: Items, stop: threading.Event, answers: list[Any]) -> None:
    """Search again and again, and note the status, the version and the results."""
    import httpx

    with httpx.Client(base_url=service.url, timeout=30) as client:
        while not stop.is_set():
            answer = client.post("/search", json=items.ask(items.codes[:3], k=20))
            found = answer.json()
            answers.append((answer.status_code, found.get("version"), [pairs(one) for one in found.get("results", ())]))


@pytest.mark.parametrize("workers", [1, 2])
def test_swap_under_load(tmp_path: Path, workers: int) -> None:
    items = Items(count=3000)
    first = items.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    mirror = Items(count=3000)
    mirror.codes = ~items.codes
    expected = [[one.nearest(code, 20) for code in items.codes[:3]] for one in (items, mirror)]
    inverted: dict[int, bool] = {first: False}
    with serving(tmp_path, tmp_path / "g", "--workers", workers) as service:
        stop, answers = threading.Event(), list[Any]()
        threads = [threading.Thread(target=ask_for_a_while, args=(service, items, stop, answers)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(3):
            version = publish_inverted(store, items, i % 2 == 0)
            inverted[version] = i % 2 == 0
            deadline = time.monotonic() + 30
            while not answers or answers[-1][1] != version:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == set(inverted)
    assert all(found == expected[inverted[version]] for _, version, found in answers)


def test_a_damaged_version_is_not_answered(items: Items, tmp_path: Path) -> None:
    version = items.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    with serving(tmp_path, tmp_path / "g") as service:
        table = store.open_table(items.space.id)
        table.update(f"id = '{items.ids[7]}'", {"code": [0] * 8})
        record = store.spaces()[items.space.id]
        write_spaces(store, [record._replace(version=int(table.version))])
        said = service.wait(lambda said: bool(said["problem"]))
        assert (said["status"], said["version"]) == ("ready", version)
        assert "match their checks" in said["problem"]
        found = service.post("/search", items.ask(items.codes[7:8], k=5)).json()
        assert (found["version"], pairs(found["results"][0])) == (version, items.nearest(items.codes[7], 5))
        assert "twinhash_reload_failures_total 1.0" in service.client.get("/metrics").text
        write_spaces(store, [record])
        assert service.wait(lambda said: not said["problem"])["version"] == version
    assert "is not loaded" in service.log


def test_it_waits_for_a_gallery_that_is_damaged_from_the_start(items: Items, tmp_path: Path) -> None:
    items.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    record = store.spaces()[items.space.id]
    write_spaces(store, [record._replace(rows=499)])
    with serving(tmp_path, tmp_path / "g", patch="", env={"TWINHASH_API_KEYS": "k" * 16}) as service:
        answer = service.client.get("/readyz", headers={"x-api-key": "k" * 16})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "499" in answer.json()["found"]
        assert "499" not in service.client.get("/readyz").text  # nor where the gallery is
        assert str(tmp_path) not in service.client.get("/readyz").text
        assert service.client.get("/healthz").status_code == 200
        write_spaces(store, [record])
        assert service.wait(lambda said: said.get("status") == "ready")["items"] == 500


def test_an_unreachable_store_is_said_and_requests_are_answered(items: Items, tmp_path: Path) -> None:
    items.publish(tmp_path / "g")
    with serving(tmp_path, tmp_path / "g") as service:
        (tmp_path / "g").rename(tmp_path / "away")
        assert service.wait(lambda said: bool(said["problem"]))["status"] == "ready"
        assert service.post("/search", items.ask(items.codes[:1], columns=["price"])).status_code == 200
        (tmp_path / "away").rename(tmp_path / "g")
        service.wait(lambda said: not said["problem"])


def test_what_is_removed_is_gone_after_the_swap(items: Items, tmp_path: Path) -> None:
    items.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    with serving(tmp_path, tmp_path / "g") as service:
        store.remove(items.space.id, items.ids[:250])
        version = store.publish(items.space.id).version
        service.wait(lambda said: said["version"] == version)
        kept = np.arange(500) >= 250
        found = service.post("/search", items.ask(items.codes[:1], k=1000)).json()["results"][0]
        assert pairs(found) == items.nearest(items.codes[0], 1000, kept)
        assert service.post("/search/like", {"id": items.ids[0]}).status_code == 404
