"""Students of the served and of the previous code space are answered, through cut-overs and back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from gallery.cutover import cut_over, retire, roll_back
from gallery.store import GalleryStore
from tests.gallery.service.conftest import COLUMNS, Items, Running, check_error, pairs, serving


def ask_for_a_while(service: Running, items: Items, stop: threading.Event, answers: list[Any]) -> None:
    """Search again and again with a student of these items' code space."""
    import httpx

    with httpx.Client(base_url=service.url, timeout=30) as client:
        while not stop.is_set():
            answer = client.post("/search", json=items.ask(items.codes[:1], k=20))
            found = answer.json()
            answers.append((answer.status_code, [pairs(one) for one in found.get("results", ())]))


def test_students_of_both_are_answered_until_one_is_retired(tmp_path: Path) -> None:
    old, new = Items(seed=0), Items(seed=1)
    old.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    store.add_space(new.space, new.centers, COLUMNS)
    store.put(new.space.id, new.table)
    with serving(tmp_path, tmp_path / "g") as service:
        check_error(service.post("/search", new.ask(new.codes[:1])), 409)
        cut_over(store, new.space.id)
        service.wait(lambda said: said["code_space"] == new.space.id)
        stop, answers = threading.Event(), {old.space.id: list[Any](), new.space.id: list[Any]()}
        threads = [threading.Thread(target=ask_for_a_while, args=(service, one, stop, answers[one.space.id]))
                   for one in (old, new)]  # fmt: skip
        for thread in threads:
            thread.start()
        for _ in range(5):
            roll_back(store)
            service.wait(lambda said: said["code_space"] == old.space.id)
            cut_over(store, new.space.id)
            service.wait(lambda said: said["code_space"] == new.space.id)
        stop.set()
        for thread in threads:
            thread.join()
        for items in (old, new):
            assert answers[items.space.id]
            assert all(one == (200, [items.nearest(items.codes[0], 20)]) for one in answers[items.space.id])
        retire(store, old.space.id)
        service.wait(lambda said: service.post("/search", old.ask(old.codes[:1])).status_code == 409)
        assert service.post("/search", new.ask(new.codes[:1])).status_code == 200
