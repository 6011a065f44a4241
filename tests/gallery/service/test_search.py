"""Answers are those of a comparison with all items; what cannot be answered is an error of one form."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gallery.codes import pack
from gallery.store import GalleryStore
from tests.gallery.galleries import write_spaces
from tests.gallery.service.conftest import Items, Running, check_error, pairs, serving

STALE = "0123456789abcdef"
IMAGE = {"image": ("a.png", b"no image", "image/png")}


@pytest.mark.parametrize("k", [1, 10, 600])
@pytest.mark.parametrize("count", [1, 256])
def test_results_are_the_nearest_by_distance_and_id(service: Running, items: Items, k: int, count: int) -> None:
    rng = np.random.default_rng(count)
    codes = np.concatenate([items.codes[:3], pack(rng.standard_normal((253, 64)))])[:count]
    answer = service.post("/search", items.ask(codes, k=k))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["code_space"], "update" in found) == (items.space.id, False)
    assert [pairs(one) for one in found["results"]] == [items.nearest(code, k) for code in codes]


def test_codes_may_be_base64_and_distances_limited(service: Running, items: Items) -> None:
    code = items.codes[5]
    body = items.ask(code[None], k=100, max_distance=3)
    hexadecimal = service.post("/search", body).json()
    body["codes"] = [base64.b64encode(code.tobytes()).decode()]
    assert service.post("/search", body).json() == hexadecimal
    assert pairs(hexadecimal["results"][0]) == [one for one in items.nearest(code, 100) if one[1] <= 3]


def known(items: Items, name: str) -> NDArray[Any]:
    return np.array(items.table[name].to_pylist(), object)


FILTERS: list[tuple[dict[str, Any], Callable[[Items], Any]]] = [
    ({"price": {"lt": 10}}, lambda items: known(items, "price") < 10),
    ({"price": {"ge": 20.5, "le": 70}}, lambda items: (known(items, "price") >= 20.5) & (known(items, "price") <= 70)),
    ({"brand": "a"}, lambda items: known(items, "brand") == "a"),
    ({"brand": ["a", "b"], "stock": {"gt": 25}},
     lambda items: np.isin(known(items, "brand").astype(str), ["a", "b"]) & (known(items, "stock") > 25)),
    ({"brand": {"ne": "a"}}, lambda items: np.isin(known(items, "brand").astype(str), ["b", "c"])),
    ({"new": True}, lambda items: known(items, "new") == True),  # noqa: E712 - an array
    ({"stock": {"in": [1, 2, 3]}}, lambda items: np.isin(known(items, "stock").astype(int), [1, 2, 3])),
    ({"stock": {"lt": 9.5}}, lambda items: known(items, "stock") < 9.5),
    ({"labels": ["class 1", "class 2"]},
     lambda items: np.array([bool(one) and one[0] in ("class 1", "class 2") for one in known(items, "labels")])),
    ({"since": {"lt": "2001-09-09T01:46:40"}},
     lambda items: known(items, "since") < datetime(2001, 9, 9, 1, 46, 40)),
    ({"price": {"lt": -1}}, lambda items: np.zeros(500, bool)),
]  # fmt: skip


@pytest.mark.parametrize(("where", "kept"), FILTERS, ids=[json.dumps(where) for where, _ in FILTERS])
def test_filters(service: Running, items: Items, where: dict[str, Any], kept: Callable[[Items], Any]) -> None:
    answer = service.post("/search", items.ask(items.codes[:2], k=50, where=where))
    assert answer.status_code == 200, answer.text
    mask = np.asarray(kept(items), bool)
    expected = [items.nearest(code, 50, mask) for code in items.codes[:2]]
    assert [pairs(one) for one in answer.json()["results"]] == expected


def test_columns_and_items(service: Running, items: Items) -> None:
    columns = ["price", "labels", "since", "brand"]
    found = service.post("/search", items.ask(items.codes[:1], k=5, columns=columns)).json()["results"][0]
    for one in found:
        row = items.table.slice(items.ids.index(one["id"]), 1).to_pylist()[0]
        assert list(one["columns"]) == columns
        assert (one["columns"]["price"], one["columns"]["labels"]) == (row["price"], row["labels"])
        got = service.client.get(f"/items/{quote(one['id'], safe='')}").json()
        assert (got["id"], bytes.fromhex(got["code"]), got["columns"]["stock"]) == (
            one["id"], bytes(row["code"]), row["stock"])  # fmt: skip


@pytest.mark.parametrize("row", [0, 250, 499])
def test_items_like_one_are_without_it(service: Running, items: Items, row: int) -> None:
    others = np.arange(500) != row
    body = {"id": items.ids[row], "k": 20}
    assert pairs(service.post("/search/like", body).json()["results"][0]) == items.nearest(items.codes[row], 20, others)
    cheap = known(items, "price") < 50
    found = service.post("/search/like", {**body, "where": {"price": {"lt": 50}}}).json()["results"][0]
    assert pairs(found) == items.nearest(items.codes[row], 20, others & cheap.astype(bool))


def test_what_an_app_asks_before_an_update(service: Running, items: Items) -> None:
    found = service.client.get("/codespace").json()
    current = found["current"]
    assert (current["code_space"], current["items"], current["bits"]) == (items.space.id, 500, 64)
    assert current["preprocessing"]["size"] == 32
    assert found["previous"] is None
    assert not current["image_search"]
    assert service.client.get("/healthz").json() == {"status": "alive"}
    assert service.client.get("/readyz").json()["items"] == 500
    paths = service.client.get("/openapi.json").json()["paths"]
    assert {"/search", "/search/image", "/search/like", "/items/{id}", "/codespace", "/readyz"} <= set(paths)
    measured = service.client.get("/metrics").text
    assert 'twinhash_items{state="serving"} 500.0' in measured
    assert "twinhash_search_seconds_count" in measured


def test_a_stale_student_is_refused_on_every_route(service: Running, items: Items) -> None:
    answers = [
        service.post("/search", items.ask(items.codes[:1]) | {"code_space": STALE}),
        service.post("/search/like", {"id": items.ids[0], "code_space": STALE}),
        service.post("/search/image", files=IMAGE, data={"code_space": STALE}),
        service.client.get(f"/items/{quote(items.ids[0], safe='')}", params={"code_space": STALE}),
        service.client.get(f"/thumbnails/{quote(items.ids[0], safe='')}", params={"code_space": STALE}),
    ]
    for answer in answers:
        error = check_error(answer, 409)
        assert error["error"] == "code_space_mismatch"
        assert items.space.id in error["expected"]
        assert STALE in error["found"]
        assert "update the app" in error["fix"]
    assert f'twinhash_refused_students_total{{code_space="{STALE}"}} 5.0' in service.client.get("/metrics").text


def test_students_of_two_spaces_are_answered_each_from_its_own(tmp_path: Path) -> None:
    old, new = Items(64, 300, 1), Items(32, 300, 2)
    old.publish(tmp_path / "g")
    version = new.publish(tmp_path / "g")
    store = GalleryStore(tmp_path / "g")
    known = store.spaces()
    states = {old.space.id: "previous", new.space.id: "serving"}
    write_spaces(store, [record._replace(state=states[name]) for name, record in known.items()])
    with serving(tmp_path, tmp_path / "g") as service:
        for items in (old, new):
            found = service.post("/search", items.ask(items.codes[:2], k=30)).json()
            assert [pairs(one) for one in found["results"]] == [items.nearest(code, 30) for code in items.codes[:2]]
            assert found.get("update") == (None if items is new else new.space.id)
        spaces = service.client.get("/codespace").json()
        assert (spaces["current"]["code_space"], spaces["current"]["version"]) == (new.space.id, version)
        assert spaces["previous"]["code_space"] == old.space.id
        write_spaces(store, [store.spaces()[old.space.id]._replace(state="retired")])
        deadline = time.monotonic() + 20
        while service.post("/search", old.ask(old.codes[:1])).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        check_error(service.post("/search", old.ask(old.codes[:1])), 409)


SENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["code_space", "codes", "k", "where", "max_distance", "columns", "id", "more"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, SENT, max_size=3), st.sampled_from(["/search", "/search/like"]))
def test_no_json_makes_the_service_fail(service: Running, items: Items, changed: dict[str, Any], path: str) -> None:
    body = items.ask(items.codes[:1]) if path == "/search" else {"id": items.ids[0]}
    answer = service.client.post(
        path, content=json.dumps(body | changed), headers={"content-type": "application/json"})  # fmt: skip
    if answer.status_code != 200:
        check_error(answer, 400, 404, 409, 422)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["price", "brand", "stock", "new", "since", "labels", "source", "id", "check"]),
    SENT | st.dictionaries(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne", "in", "or"]), SENT, max_size=2),
)
def test_no_filter_makes_the_service_fail(service: Running, items: Items, name: str, condition: Any) -> None:
    content = json.dumps(items.ask(items.codes[:1], where={name: condition}))
    answer = service.client.post("/search", content=content, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        check_error(answer, 400)


BODIES = {
    "not a number": (b'{"k": NaN}', "bad_json"), "infinite": (b'{"k": Infinity}', "bad_json"),
    "huge": (b'{"k": ' + b"9" * 5000 + b"}", "bad_json"), "deep": (b"[" * 100_000, "bad_json"),
    "deep objects": (b'{"where":' * 20_000 + b"1" + b"}" * 20_000, "bad_json"),
    "twice": (b'{"id": "a", "id": "b"}', "bad_json"), "no JSON": (b"\xff\xfe", "bad_json"), "empty": (b"", "bad_json"),
    "half a code point": (b'{"id": "\\ud800"}', "bad_request"), "a list": (b"[1]", "bad_request"),
    "null": (b"null", "bad_request"), "zero byte": (b'{"id": "\\u0000"}', "no_such_item"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_refused(service: Running, name: str) -> None:
    body, error = BODIES[name]
    answer = service.client.post("/search/like", content=body, headers={"content-type": "application/json"})
    assert check_error(answer, 400, 404, 422)["error"] == error


@pytest.mark.parametrize("path", ["/items/..%2F..%2Fetc%2Fpasswd", "/items/%00", "/items/%ff", "/items/", "/items/%2e",
                                  "/thumbnails/%2Fetc%2Fpasswd", "/thumbnails/..%2F..%2Fetc%2Fpasswd", "/nothing",
                                  "/items/" + "a" * 5000, "/static/../app.py", "/x//", "/%0d%0aX: y"])  # fmt: skip
def test_ids_are_looked_up_and_no_path(service: Running, path: str) -> None:
    check_error(service.client.get(path), 404)


def test_other_methods_and_types_are_refused(service: Running, items: Items) -> None:
    check_error(service.client.put("/search", content=b"{}"), 405)
    check_error(service.client.get("/search"), 405)
    check_error(service.client.post("/search", content=json.dumps(items.ask(items.codes[:1]))), 415)
    check_error(service.post("/search/image", {"image": ""}), 415)
    assert (
        check_error(service.post("/search", items.ask(items.codes[:1], columns=["sha256"])), 400)["error"]
        == "bad_column"
    )
    for codes in ([], ["00"], ["z" * 16], ["\u0661" * 16], [""]):
        check_error(service.post("/search", items.ask(items.codes[:0]) | {"codes": codes}), 422)
