"""The gallery of record: equal to a dictionary, whoever writes to it, is killed, or damages it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import ledger
from gallery.database import code_array, table_name
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.index import TRAINING, create_gallery, open_gallery
from gallery.ledger import RECOUNT
from gallery.store import GalleryStore
from tests.gallery.galleries import ID, SPACE, centers_of, numbered, rows, space_of, write_spaces

TABLE = table_name(ID)
OWN = pa.schema([("price", pa.float64()), ("brand", pa.string())])
ODD_IDS = [
    "it's",
    "''",
    '"; DROP TABLE spaces; --',
    "' OR '1'='1",
    "\U0001f431\u202e",
    "a\\'b",
    "%_",
    "x" * 4096,
    "--",
    "/*",
]


def read(store: GalleryStore, columns: Sequence[str] = ("id", "code")) -> dict[str, Any]:
    """All rows by id, none twice."""
    found = store.read(store.open_table(ID), columns).to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row.pop("id"): row for row in found}


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    made = GalleryStore(tmp_path / "g", create=True)
    made.add_space(SPACE, centers_of(64), OWN)
    return made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers are soon taken for dead."""
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.3)


def sound(store: GalleryStore) -> int:
    found = store.verify(ID)
    assert not found.problem
    assert found.found == found.expected
    return found.found.rows


STEP = st.tuples(st.sampled_from(["put", "put", "remove", "compact"]), st.lists(st.integers(0, 30), max_size=20))


@settings(deadline=None, max_examples=8)
@given(st.lists(STEP, max_size=6))
def test_it_is_a_dictionary_by_id(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    store, known = GalleryStore(tmp_path_factory.mktemp("x") / "g", create=True), dict[str, Any]()
    store.add_space(SPACE, centers_of(64))
    for seed, (what, numbers) in enumerate(steps):
        ids = [f"it's {i}" for i in sorted(set(numbers))]
        if what == "compact":
            store.compact(ID, timedelta(days=1))
        elif what == "remove":
            assert store.remove(ID, ids).removed == len(known.keys() & set(ids))
            known = {id: row for id, row in known.items() if id not in ids}
        else:
            done = store.put(ID, rows(ids, seed))
            assert (done.added, done.replaced) == (len(set(ids) - known.keys()), len(known.keys() & set(ids)))
            known |= {row.pop("id"): row for row in rows(ids, seed).to_pylist()}
        assert read(store) == known
        assert sound(store) == len(known)


def test_what_is_not_said_of_an_item_stays(store: GalleryStore) -> None:
    store.put(ID, rows(["a", "b"], price=[1.0, 2.0], source=["x", "y"], labels=[["k"], None]))
    before = read(store, store.open_table(ID).schema.names)
    store.put(ID, pa.table({"id": ["b"], "price": [3.0]}))
    store.put(ID, rows(["c"], 1, brand=["new"]))
    after = read(store, store.open_table(ID).schema.names)
    assert after["a"] == before["a"]
    assert after["b"] == before["b"] | {"price": 3.0}, "also when it was encoded"
    assert (after["c"]["brand"], after["c"]["price"]) == ("new", None)
    assert sound(store) == 3


@pytest.mark.parametrize(("wrong", "says"), [
    (pa.table({"id": ["new"], "price": [1.0]}), "a code for each new item"),
    (rows(["a"], color=["red"]), "columns of the gallery"), (rows(["a"], price=["cheap"]), "values of the types"),
    (rows(["a"], labels=["no list"]), "values of the types"), (rows(["a"], labels=[[None]]), "labels that are text"),
    (rows(["a", "a"]), "one item for each id"), (rows(["a\n"]), "ids of 1 to"),
    (pa.table({"id": ["a"], "code": code_array(np.zeros((1, 4), np.uint8))}), "values of the types"),
    (pa.table({"id": ["a"], "code": [[None] * 8]}), "a code for each"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_errors_and_leave_nothing(store: GalleryStore, wrong: pa.Table, says: str) -> None:
    with pytest.raises(InputError, match=says):
        store.put(ID, wrong)
    assert sound(store) == len(store.ledger(ID)) == 0


@pytest.mark.parametrize(
    "name", ["id", "CODE", "check", "_rowid", "1st", "a b", "a;b", "a" * 65, "caf\u00e9", "", "Distance"]
)
def test_a_column_of_another_name_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="Rename the column"):
        GalleryStore(tmp_path, create=True).add_space(SPACE, centers_of(64), pa.schema([(name, pa.string())]))


def test_a_gallery_needs_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none/g", "a\0b", ""):
        with pytest.raises(InputError, match="a folder for the gallery"):
            GalleryStore(name, create=True)


def test_ids_are_text_and_nothing_else(store: GalleryStore) -> None:
    ids = [*ODD_IDS, *numbered(20)]
    store.put(ID, rows(ids))
    assert read(store).keys() == set(ids)
    for id in ODD_IDS:
        assert store.rows_of(store.open_table(ID), pa.chunked_array([[id]]), [])["id"].to_pylist() == [id]
        assert store.remove(ID, [id]).removed == 1
    assert read(store).keys() == set(numbered(20))
    store.fail(ID, [{"id": id, "source": id, "etag": "", "reason": id} for id in ODD_IDS])
    store.forget_failures(ID, ODD_IDS[1:])
    assert store.failures(ID)["id"].to_pylist() == ODD_IDS[:1]
    store.forget_failures(ID, ["never noted"])
    assert store.remove(ID, ["no text: \udcff", "", "\0"]).removed == 0
    assert sound(store) == 20


def test_a_failure_is_noted_once(store: GalleryStore) -> None:
    for reason in ("truncated", "missing"):
        store.fail(ID, [{"id": "a", "source": "a.jpg", "etag": "1-2", "reason": reason}])
    store.fail(ID, [])
    assert [row["reason"] for row in store.failures(ID).to_pylist()] == ["missing"]
    assert not len(store.failures("another space"))


def test_readers_are_given_published_versions_alone(store: GalleryStore) -> None:
    with pytest.raises(InputError, match="a published version"):
        open_gallery(store.uri)
    store.put(ID, rows(numbered(10)))
    published = store.publish(ID)
    store.remove(ID, numbered(5))
    assert len(open_gallery(store.uri, SPACE)) == published.rows == 10
    assert (store.space_in("serving"), store.space_in("previous")) == (published, None)
    again = store.publish(ID, "kept")
    assert len(open_gallery(store.uri)) == again.rows == 5
    assert store.publish(ID, "kept")[:5] == again[:5], "nothing new"
    assert len(open_gallery(store.uri, None, "kept")) == 5
    assert len(open_gallery(store.uri, ID, published.version)) == 10


def test_two_code_spaces_and_a_change_of_the_one_that_is_served(store: GalleryStore) -> None:
    other = space_of(64, "another teacher")
    store.put(ID, rows(["a"]))
    store.publish(ID)
    store.add_space(other, centers_of(64))
    store.put(other.id, rows(["a", "b"]))
    assert store.publish(other.id).state == "building"
    assert store.find_space().space == ID
    with pytest.raises(CodeSpaceMismatch):
        store.find_space("f" * 16)
    with pytest.raises(InputError, match="code space"):
        store.open_table("nothing'; --")
    swapped = {"serving": store.spaces()[other.id], "previous": store.spaces()[ID]}
    write_spaces(store, [one._replace(state=state) for state, one in swapped.items()])  # type: ignore[arg-type]
    assert store.find_space().space == other.id
    assert len(open_gallery(store.uri)) == 2
    assert store.publish(ID).state == "previous", "publishing leaves the state as it is"
    assert store.add_space(other, centers_of(64)) == store.spaces()[other.id], "it is known"
    assert len(store.spaces()) == 2


EDITS: dict[str, Callable[[Any], Any]] = {
    "a bit flipped": lambda table: table.update("id = '000003.jpg'", {"code": [1] * 8}),
    "another label": lambda table: table.update("id = '000003.jpg'", values_sql={"labels": "['x']"}),
    "a row lost": lambda table: table.delete("id = '000003.jpg'"),
    "a row doubled": lambda table: table.add(table.search().limit(1).to_arrow()),
    "one for another": lambda table: (table.delete("id = '000003.jpg'"), table.add(table.search().limit(1).to_arrow())),
    "another id": lambda table: table.update("id = '000003.jpg'", {"id": "other"}),
}


@pytest.mark.parametrize("how", EDITS)
def test_what_happened_behind_its_back_is_found_and_not_published(store: GalleryStore, how: str) -> None:
    store.put(ID, rows(numbered(50)))
    before = store.publish(ID)
    EDITS[how](lancedb.connect(store.uri).open_table(TABLE))
    found = store.verify(ID)
    assert found.problem
    assert ("000003.jpg" in found.damaged) == (how in ("a bit flipped", "another label"))
    assert bool(found.repeated) == (how in ("a row doubled", "one for another"))
    with pytest.raises(CorruptFile, match="a sound table"):
        store.publish(ID)
    assert store.find_space() == before
    assert len(open_gallery(store.uri)) == 50, "readers keep what was published"


def test_another_order_is_no_damage(store: GalleryStore) -> None:
    store.put(ID, rows(numbered(50)))
    table = lancedb.connect(store.uri).open_table(TABLE)
    all_of_them = table.to_arrow()
    table.delete("true")
    table.add(all_of_them.take(np.random.default_rng(0).permutation(50)))
    assert sound(store) == 50


@pytest.mark.filterwarnings("ignore:optimize")
def test_compacting_keeps_the_published_and_the_training_version(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (50, 8), np.uint8)
    create_gallery(tmp_path / "g", SPACE, centers_of(64), codes, numbered(50), [None] * 50)
    store = GalleryStore(tmp_path / "g")
    store.remove(ID, numbered(10))
    assert not store.compact(ID, timedelta(0)), "what is not published is left alone"
    assert len(open_gallery(store.uri)) == 50
    store.publish(ID)
    assert not store.compact(ID, timedelta(0)), "the training version is kept, and all that is newer"
    assert len(open_gallery(store.uri)) == 40
    assert len(open_gallery(store.uri, version=TRAINING)) == 50
    assert sound(store) == 40


@pytest.mark.filterwarnings("ignore:optimize")
def test_compacting_forgets_what_is_old(store: GalleryStore) -> None:
    for seed in range(12):
        store.put(ID, rows(numbered(30)[seed:], seed))
        store.publish(ID)
    before, files = read(store), len(list(Path(store.uri).rglob("*.lance")))
    assert store.compact(ID, timedelta(0))
    assert len(list(Path(store.uri).rglob("*.lance"))) < files / 2
    assert read(store) == before
    assert len(open_gallery(store.uri)) == sound(store) == 30


# Writers in processes of their own

PRELUDE = """
import os, signal, sys
import numpy as np, pyarrow as pa
from gallery.ledger import Ledger
from gallery.store import GalleryStore
from tests.gallery.galleries import ID, rows
store = GalleryStore({uri!r})
"""


def writer(store: GalleryStore, code: str, **options: Any) -> subprocess.Popen[str]:
    text = PRELUDE.format(uri=store.uri) + code
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", text], cwd=root, stdout=pipe, stderr=pipe, text=True, **options)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    return out


MANY = """
number = int(sys.argv[1]) if len(sys.argv) > 1 else {number}
for turn in range(5):
    ids = [f"it's {{i}}" for i in range(60 * turn, 60 * turn + 300)]
    store.put(ID, rows(ids, number))
    store.remove(ID, ids[number * 10 : number * 10 + 10])
    store.put(ID, rows([f"own {{number}} {{turn}}"], number))
    if turn == 3:
        store.publish(ID)
"""


def test_four_writers_lose_and_double_nothing(store: GalleryStore) -> None:
    for one in [writer(store, MANY.format(number=number)) for number in range(4)]:
        finished(one)
    found, lines = read(store), store.ledger(ID).to_pylist()
    assert sum(id.startswith("own") for id in found) == 20
    assert sound(store) == len(found) == sum(line["added"] - line["removed"] for line in lines)
    assert all(line["version"] for line in lines)
    assert not any(line["op"] == RECOUNT for line in lines), "nobody was taken for dead"
    last = [f"it's {i}" for i in range(280, 540)]  # of the last turn; who removed first may have been put again
    assert 220 <= len(found.keys() & set(last)) <= 260
    codes = [{id: row["code"] for id, row in zip(last, rows(last, n).to_pylist(), strict=True)} for n in range(4)]
    assert codes
    record = store.publish(ID)
    assert len(open_gallery(store.uri)) == record.rows == len(found)


KILLED_AFTER = {
    "the line": "Ledger.begin = (lambda begin: lambda *a: (begin(*a), os.kill(os.getpid(), 9)))(Ledger.begin)",
    "the rows": "Ledger.end = lambda *a: os.kill(os.getpid(), 9)",
    "all": "Ledger.end = (lambda end: lambda *a: (end(*a), os.kill(os.getpid(), 9)))(Ledger.end)",
}
DEEDS = {
    "put": "store.put(ID, rows(['000001.jpg', 'new'], 5))",
    "remove": "store.remove(ID, ['000001.jpg', '000002.jpg', 'nobody'])",
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("deed", "point"), [("put", "the line"), ("put", "the rows"), ("put", "all"), ("remove", "the rows")]
)
def test_a_writer_that_is_killed_between_two_commits(store: GalleryStore, deed: str, point: str) -> None:
    store.put(ID, rows(numbered(50)))
    store.publish(ID)
    finished(writer(store, f"{KILLED_AFTER[point]}\n{DEEDS[deed]}"), -signal.SIGKILL)
    expected = 50 if point == "the line" else 51 if deed == "put" else 48
    assert len(open_gallery(store.uri)) == 50
    store.put(ID, rows(["another"], 6))  # others go on
    assert sound(store) == expected + 1
    assert (RECOUNT in store.ledger(ID)["op"].to_pylist()) == (point == "the rows")
    assert store.publish(ID).rows == len(read(store)) == expected + 1
    EDITS["a row lost"](lancedb.connect(store.uri).open_table(TABLE))
    late = ledger.LONGEST_COMMIT
    ledger.LONGEST_COMMIT = timedelta(0)
    try:
        assert store.verify(ID).problem or point == "the line", "a line of the dead does not excuse damage for ever"
    finally:
        ledger.LONGEST_COMMIT = late


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("point", ["the line", "all"])
def test_who_notes_what_a_killed_writer_did_may_be_killed_too(store: GalleryStore, point: str) -> None:
    store.put(ID, rows(numbered(50)))
    finished(writer(store, f"{KILLED_AFTER['the rows']}\n{DEEDS['put']}"), -signal.SIGKILL)
    code = f"from gallery import ledger\nledger.PATIENCE_S = 0.1\n{KILLED_AFTER[point]}\nstore.verify(ID)"
    finished(writer(store, code), -signal.SIGKILL)
    assert sound(store) == 51
    assert store.publish(ID).rows == 51


@pytest.mark.usefixtures("hasty")
def test_several_may_note_at_once_what_a_killed_writer_did(store: GalleryStore) -> None:
    store.put(ID, rows(numbered(50)))
    finished(writer(store, f"{KILLED_AFTER['the rows']}\n{DEEDS['put']}"), -signal.SIGKILL)
    threads = [threading.Thread(target=GalleryStore(store.uri).publish, args=(ID,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.ledger(ID)["op"].to_pylist().count(RECOUNT) >= 1
    assert sound(store) == store.find_space().rows == 51


def test_compacting_among_writers_is_tried_again_and_loses_nothing(store: GalleryStore) -> None:
    stop = threading.Event()

    def write() -> None:
        own, turn = GalleryStore(store.uri), 0
        while not stop.is_set():
            own.put(ID, rows(numbered(300)[turn % 200 :], turn))
            own.remove(ID, numbered(turn % 30))
            turn += 7

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            try:
                store.compact(ID, timedelta(days=1))
            except InputError as error:
                assert "Run it again" in str(error)  # noqa: PT017 - it may fail, and then says this
    finally:
        stop.set()
        thread.join(60)
    assert sound(store) == len(read(store))


RANDOM = """
import random
turn = {seed}
print("ready", flush=True)
while True:
    turn += 1
    ids = [f"{{i:06d}}.jpg" for i in range(turn % 7 * 40, turn % 7 * 40 + 120)]
    store.put(ID, rows(ids, turn))
    store.remove(ID, ids[:: 1 + turn % 3])
"""


@pytest.mark.usefixtures("hasty")
def test_writers_killed_at_random_moments_lose_and_double_nothing(store: GalleryStore) -> None:
    for seed in range(3):
        pair = [writer(store, RANDOM.format(seed=seed + other)) for other in (0, 3)]
        for one in pair:
            assert one.stdout
            assert one.stdout.readline() == "ready\n"
        time.sleep(random.Random(seed).uniform(0.1, 0.9))
        for one in pair:
            one.kill()
            one.communicate()
        assert sound(store) == len(read(store))
        assert store.publish(ID).rows == len(open_gallery(store.uri))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("waits", ["begin", "end"])
def test_a_slow_writer_that_was_taken_for_dead_is_counted_once(
    store: GalleryStore, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """It sleeps before its rows, or after them; meanwhile another is killed, and what that did is noted."""
    store.put(ID, rows(numbered(50)))
    asleep, wake, step = threading.Event(), threading.Event(), getattr(ledger.Ledger, waits)

    def slow(*arguments: Any) -> Any:
        if waits == "begin":
            found = step(*arguments)
        if threading.current_thread() is thread:
            asleep.set()
            wake.wait(60)
        return found if waits == "begin" else step(*arguments)

    monkeypatch.setattr(ledger.Ledger, waits, slow)
    thread = threading.Thread(target=lambda: store.put(ID, rows(["000001.jpg", "slow"], 9)))
    thread.start()
    assert asleep.wait(60)
    finished(writer(store, f"{KILLED_AFTER['the rows']}\n{DEEDS['remove']}"), -signal.SIGKILL)
    other = GalleryStore(store.uri)
    assert sound(other) == (48 if waits == "begin" else 49)
    other.put(ID, rows(["more"], 3))
    wake.set()
    thread.join(60)
    assert sound(other) == len(read(other)) == (51 if waits == "begin" else 50)


@pytest.mark.usefixtures("hasty")
def test_a_full_disk_is_said_and_nothing_is_lost(store: GalleryStore) -> None:
    """By a real error of write(2), in the middle of a commit."""
    store.put(ID, rows(numbered(50)))
    code = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.put(ID, rows([f"{'x' * 500}{i}" for i in range(5000)]))
except OSError as error:
    print(error.errno, error.filename == store.uri)
"""
    import errno

    assert finished(writer(store, code)).split() == [str(errno.EFBIG), "True"]
    assert sound(store) == 50
    store.put(ID, rows(["more"]))
    assert store.publish(ID).rows == 51


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_gallery_that_may_only_be_read(store: GalleryStore) -> None:
    store.put(ID, rows(numbered(50)))
    store.publish(ID)
    folders = [Path(store.uri), *(path for path in Path(store.uri).rglob("*") if path.is_dir())]
    code = """
from gallery.index import open_gallery
print(len(open_gallery(store.uri)))
try:
    store.put(ID, rows(["new"]))
except OSError as error:
    print(error.errno, error.filename == store.uri)
"""
    for folder in folders:
        folder.chmod(0o555)
    rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    command = [*rights, sys.executable, "-c", PRELUDE.format(uri=store.uri) + code]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.stdout.split() == ["50", "13", "True"], done.stderr
    assert sound(store) == 50
