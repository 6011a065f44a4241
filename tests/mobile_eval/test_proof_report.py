"""The page of a proof holds every number it promises, fetches and runs nothing, and fits a phone."""

from __future__ import annotations

import io
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gallery.results import (
    MARGIN_BINS,
    BitDisagreement,
    EvaluationResults,
    ModelResult,
    RetrievalExample,
    SystemInfo,
    Thresholds,
    Thumbnail,
    WorstQuery,
)
from mobile_eval import plots
from mobile_eval.devices.browser_setup import chromium
from mobile_eval.gate import check
from mobile_eval.proof_report import COUNTED, EMULATED, mark, print_table, smallest, write_html
from tests.mobile_eval.factories import IMAGE, not_run, ran
from tests.mobile_eval.test_report import HOSTILE, URL_ATTRIBUTES, Page

BITS = 16
FLIPS = (0,) * 5 + (3,) + (0,) * 9 + (7,)
PHONES = "no phone's"


class Tables(Page):
    """tables: by label, the heads and the texts of each row's cells; names: aria-labels."""

    def __init__(self, path: Path) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.names: list[str] = []
        self._rows: list[list[str]] = []
        super().__init__(path)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        label = dict(attrs).get("aria-label")
        self.names += [label] if label else []
        if tag == "table":
            self._rows = self.tables.setdefault(self.names[-1], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if {"td", "th"} & set(self.open):
            self._rows[-1][-1] += f"{data} "

    def cells(self, label: str) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[label]]

    def table(self, label: str) -> dict[str, dict[str, str]]:
        """Cells by the first cell of their row, then by the head of their column."""
        heads, *rows = self.cells(label)
        return {row[0]: dict(zip(heads[1:], row[1:], strict=False)) for row in rows}


def there(form: str, device: str, **changes: Any) -> ModelResult:
    """A file held against the host's."""
    listed = tuple(BitDisagreement(query=40 + i, bit=i, logit=0.0123 * (i + 1), host=-0.0456) for i in range(3))
    found = {"host_flips": 6, "host_flips_beyond": 5, "disagreements": listed, "conditions": {"kind": device}}
    return ran(form, device=device, **{**found, **changes})


def proof(label: str = "Ankle boot", **changes: Any) -> EvaluationResults:
    """A proof on five devices, every free text of which is, or holds, `label`."""
    untimed = dict.fromkeys(("load_ms", "first_ms", "p50_ms", "p90_ms", "p99_ms", "samples"))
    bits = ("bits_compared", "bits_flipped", "bit_flip_rate", "flips_beyond_tolerance", "predicted_bit_flip_rate")
    bare = dict.fromkeys((*bits, "map", "map_drop"))
    files = (
        ran(bit_flips=FLIPS, conditions={"cpu": label}, peak_memory_mb=35.04, recall_at_10=0.9712),
        ran("litert-w8a8", bit_flips=(0,) * BITS, bytes=2_310_000, p50_ms=0.5, margins=(2,) * MARGIN_BINS),
        there(
            "onnx-fp32",
            "arm64-cortex-a53",
            **untimed,
            precision="fp16",
            instructions=36_763_297,
            conditions={"profile": label, "loads": "7,645,773"},
        ),
        there(
            "litert-w8a8",
            "arm64-cortex-a53",
            **untimed,
            instructions=13_026_917,
            host_flips=0,
            host_flips_beyond=0,
            disagreements=(),
            worst=(WorstQuery(query=9, flipped=2),),
            conditions={"profile": label, "loads": "4,784,391"},
        ),
        not_run("coreml-fp16", reason=f"MissingBackend: {label} a").model_copy(update={"device": "arm64-cortex-a53"}),
        *(
            not_run(form, reason=f"MissingBackend: no {label} b").model_copy(update={"device": "browser-webgpu"})
            for form in ("onnx-fp32", "litert-w8a8")
        ),
        not_run("onnx-fp32", "failed", f"WorkerFailed: {label} c").model_copy(update={"device": "android"}),
        ran(
            "coreml-fp16",
            device=f"phone {label}",
            **untimed | bare | {"p50_ms": 0.61},
            margins=(),
            worst=(),
            conditions={"units": label},
        ),
    )
    tile = Thumbnail(image=IMAGE, label=label)
    made: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"check {label}",
        "name": f"bundle {label}",
        "code_space": "5e1c0a4f0b8d91c2",
        "bits": BITS,
        "student": f"net {label}",
        "query_set": f"1,000 pictures of {label}",
        "num_queries": 1000,
        "gallery_size": 6001,
        "map": 0.7015,
        "models": files,
        "thresholds": Thresholds(max_p90_latency_ms={"host": 50.5}, max_size_mb=77.5),
        "gate": check(files, Thresholds()),
        "examples": (
            RetrievalExample(query=tile, hits=tuple(tile.model_copy(update={"distance": d}) for d in range(41, 51))),
        ),
        "system": SystemInfo(
            cpu=f"CPU {label}",
            cores=2,
            memory_gb=23.4,
            gpu=None,
            os="Linux",
            python="3.11.2",
            packages={"torch": "2.13"},
        ),
    }
    return EvaluationResults(**{**made, **changes})


def render(made: EvaluationResults, folder: Path) -> Tables:
    write_html(made, folder / "report.html")
    return Tables(folder / "report.html")


def printed(made: EvaluationResults, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(made, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_verdict_comes_first_and_every_sentence_of_it(tmp_path: Path) -> None:
    made = proof()
    body = render(made, tmp_path).body
    assert body.startswith("Twinhash: where it runs bundle Ankle boot ✗ Failed 5 of 9 files ran, on 3 of 5 devices.")
    places = [body.index(sentence) for sentence in (*made.gate.failures, *made.gate.notes)]
    assert len(places) == 4
    assert max(places[0], *places) < body.index("Devices and files")
    passed = proof(models=(ran(),), gate=check((ran(),), Thresholds()))
    assert "✓ Passed 1 of 1 files ran, on 1 of 1 device." in render(passed, tmp_path).body


def test_the_table_of_devices_and_files(tmp_path: Path) -> None:
    page = render(proof(), tmp_path)
    first, *rows = page.cells("Devices and files")
    assert first == ["File", "host", "arm64-cortex-a53", "browser-webgpu", "android", "phone Ankle boot"]
    assert rows == [
        ["onnx-fp32", "✓ 0.019%", "✓ 0.019%", "– skipped 2", "✗ failed 3", "–"],
        ["litert-w8a8", "✓ 0.019%", "✓ 0.019%", "– skipped 2", "–", "–"],
        ["coreml-fp16", "–", "– skipped 1", "–", "–", "✓ timed only"],
    ]
    for place, reason in enumerate(("MissingBackend: Ankle boot a", "MissingBackend: no Ankle boot b"), 1):
        assert f"{place} {reason}" in page.body
    assert re.search("3 .*android.*broke where it should run: WorkerFailed: Ankle boot c", page.body)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {f"#{one}" for one in targets}


def test_each_device_has_its_numbers_and_no_empty_columns(tmp_path: Path) -> None:
    page = render(proof(), tmp_path)
    codes = {
        "Gate": "✓ passed", "bits flipped": "0.019%", "of all bits": "12 of 64,000", "beyond tolerance": "0",
        "predicted": "0.020%", "mAP": "0.7011", "mAP drop": "0.0004", "worst pictures (bits)": "#731 (3)",
    }  # fmt: skip
    assert page.table("Codes, host")["onnx-fp32"] == codes | {"neighbours kept": "97.12%"}
    emulated = page.table("Codes, arm64-cortex-a53")
    assert emulated["onnx-fp32"] == codes | {"other than host (beyond)": "6 (5)"}
    assert emulated["litert-w8a8"]["other than host (beyond)"] == "0 (0)"
    assert emulated["litert-w8a8"]["worst pictures (bits)"] == "#9 (2)"
    assert emulated["coreml-fp16"] == {"Gate": "– skipped", "bits flipped": "MissingBackend: Ankle boot a"}
    assert page.table("Cost, host")["onnx-fp32"] == {
        "size": "8.51 MB", "p50 ms": "2.61", "p90 ms": "3.07", "p99 ms": "4.00", "first ms": "9.0", "load ms": "41.0",
        "peak memory": "35.0 MB", "samples": "200", "threads": "1", "engine": "Engine of onnx",
        "conditions": "cpu Ankle boot",
    }  # fmt: skip
    assert page.table("Cost, arm64-cortex-a53") == {
        form: {"size": "8.51 MB", "ARM instructions": count, "threads": "1", "engine": engine, "conditions": loads}
        for form, count, engine, loads in (
            ("onnx-fp32", "36,763,297", "Engine of onnx", "loads 7,645,773"),
            ("litert-w8a8", "13,026,917", "Engine of litert", "loads 4,784,391"),
        )
    }
    assert page.table("Codes, android") == {"onnx-fp32": {"Gate": "✗ failed", "Why": "WorkerFailed: Ankle boot c"}}
    assert page.table("Cost, phone Ankle boot")["coreml-fp16"]["p50 ms"] == "0.61"
    assert page.table("Cost, phone Ankle boot")["coreml-fp16"]["Gate"] == "✓ passed"
    assert not [label for label in page.tables if "webgpu" in label or label == "Codes, phone Ankle boot"]
    assert "browser-webgpu – skipped: MissingBackend: no Ankle boot b" in page.body
    assert "profile: Ankle boot" in page.body


def test_a_file_that_broke_is_not_hidden_by_those_that_did_not_run(tmp_path: Path) -> None:
    files = (not_run("a", reason="none here"), not_run("b", "failed", "it broke"), not_run("c", reason="none here"))
    made = proof(models=files)
    assert render(made, tmp_path).table("Codes, host") == {
        "a": {"Gate": "– skipped", "Why": "none here"},
        "b": {"Gate": "✗ failed", "Why": "it broke"},
        "c": {"Gate": "– skipped", "Why": "none here"},
    }
    assert "b     failed" in printed(made)


def test_what_a_number_is_not_is_said_where_it_applies(tmp_path: Path) -> None:
    def said(row: ModelResult) -> str:
        return render(proof(models=(row,)), tmp_path).body + printed(proof(models=(row,)), 1000)

    still = {"p50_ms": None, "load_ms": None, "first_ms": None}
    for device in ("host", "browser-wasm-2"):
        assert said(ran(device=device)).count("milliseconds are of this machine (CPU Ankle boot)") == 2
    assert said(ran(device="arm64-cortex-a53")).count(EMULATED) == 2
    assert PHONES in EMULATED
    assert said(ran(device="arm64-cortex-a53", instructions=5, **still)).count(COUNTED) == 2
    for row in (ran(**still), ran(device="android"), not_run()):
        assert not any(sentence in said(row) for sentence in (COUNTED, PHONES))


def test_every_disagreement_with_the_host_is_listed(tmp_path: Path) -> None:
    page = render(proof(), tmp_path)
    heads, *rows = page.cells("Bits that differ from the host's")
    assert heads == ["Picture", "Bit", "Logit there", "On the host"]
    assert rows == [[f"#{40 + i}", str(i), f"+{0.0123 * (i + 1):.4g}", "-0.0456"] for i in range(3)]
    assert "arm64-cortex-a53, onnx-fp32 : 5 of 64,000 bits" in page.body
    assert "and 2 more" in page.body
    assert "6 bits 5 beyond |logit| 0.001" in page.body
    calm = there("onnx-fp32", "android", host_flips=1, host_flips_beyond=0, disagreements=())
    body = render(proof(models=(ran(), calm)), tmp_path).body
    assert "None: every device gave the host's bit" in body
    assert "more" not in body[body.index("None: every device") : body.index("Latency")]
    assert "differ from the host's" not in render(proof(models=(ran(),)), tmp_path).body


def test_bits_ranges_margins_and_the_grid_are_drawn(tmp_path: Path) -> None:
    page = render(proof(), tmp_path)
    assert "onnx-fp32, host: bit 5 in 3, bit 15 in 7 pictures" in page.names
    titles = [text for tag, text in page.texts if tag == "title"]
    assert titles[1:] == ["bit 5: 3", "bit 15: 7"]
    assert "2 bits, most often 15 (7)" in page.body
    assert "No bit flips: litert-w8a8." in page.body
    assert "2.61 · 3.07 · 4.00 ms" in page.body
    assert "0.61 ms is all that is known" in page.body
    assert [name for name in page.names if name.startswith("margins of")] == [
        "margins of litert-w8a8: share of all logits"
    ]
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [IMAGE] * 11
    assert " ".join(f"{d} Ankle boot" for d in range(41, 51)) in page.body
    for text in ("0.7015", "1,000 pictures", "codes of 16 bits", "gallery of 6,001", "50.5 ms", "77.5 MB", "2.31 MB"):
        assert text in page.body, text
    for text in ("5e1c0a4f0b8d91c2", "check Ankle boot", "net Ankle boot", "2026-01-02", "torch 2.13", "23.4 GB"):
        assert text in page.body, text


def test_labels_tell_right_from_wrong_by_more_than_colour(tmp_path: Path) -> None:
    tile = Thumbnail(image=IMAGE, label="cat")
    hits = [tile.model_copy(update={"distance": d, "right": d > 2}) for d in (1, 3)]
    page = render(proof(examples=(RetrievalExample(query=tile, hits=tuple(hits)),)), tmp_path)
    assert "cat ✗ 1 cat ✓ 3 How to read" in page.body
    assert "dashed frame" in page.body
    assert "dashed frame" not in render(proof(), tmp_path).body


def test_hostile_names_are_text_and_nothing_is_fetched_or_run(tmp_path: Path) -> None:
    hostile, tame = render(proof(HOSTILE), tmp_path), render(proof("tame"), tmp_path)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags], "a name made an element"
    assert hostile.body.count(HOSTILE) == tame.body.count("tame") > 20
    assert "<script" not in hostile.source
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in hostile.tags}
    for tag, attributes in hostile.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in URL_ATTRIBUTES & attributes.keys():
            assert re.match("data:image/|#remark-[0-9]+$", attributes[name] or ""), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", hostile.source)
    policy = [attributes["content"] for _, attributes in hostile.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize(
    "changes",
    [
        {"models": ()},
        {"models": (not_run(), not_run("onnx-fp32", reason=""))},
        {"models": (ran(bit_flips=(0,) * BITS, margins=(0,) * MARGIN_BINS, worst=()),)},
        {"models": (ran(bit_flips=(1,) * BITS, bits_compared=None, bits_flipped=None),)},
        {
            "models": (
                ran(map=math.nan, bit_flip_rate=math.nan, p50_ms=math.nan, p90_ms=math.inf, peak_memory_mb=math.nan),
            )
        },
        {"models": (ran(p50_ms=0.0, p99_ms=math.inf), ran("a-fp32", p90_ms=-1.0), ran("b-fp32", device="phone"))},
        {"models": (ran(), ran())},
        {
            "models": (
                there(
                    "litert-w8a8",
                    "browser-wasm-2",
                    recall_at_10=1.0,
                    map_drop=-0.1,
                    p90_ms=1234.5,
                    instructions=136_763_297,
                ),
            )
        },
        {"models": (there("onnx-fp32", "android", host_flips_beyond=None, disagreements=()),)},
        {"examples": (), "map": None, "gallery_size": None},
    ],
)
def test_what_is_missing_or_not_a_number_still_renders(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = proof(**changes)
    assert made.name in render(made, tmp_path).body
    assert max(map(len, printed(made).splitlines())) <= 80


def test_the_terminal_shows_a_table_a_device_in_80_columns() -> None:
    made = proof(thresholds=Thresholds(max_size_mb=1.0))
    lines = printed(made).splitlines()
    assert lines[0] == "FAILED  bundle Ankle boot"
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip().startswith(("onnx-fp32 ", "litert-w8a8 ", "coreml-fp16 "))]
    assert rows == [
        ["onnx-fp32", "8.51", "MB", "0.019%", "97.1%", "0.0004", "3.07", "failed"],
        ["litert-w8a8", "2.31", "MB", "0.019%", "-", "0.0004", "3.07", "failed"],
        ["onnx-fp32", "8.51", "MB", "0.019%", "6", "0.0004", "36.76", "failed"],
        ["litert-w8a8", "8.51", "MB", "0.019%", "0", "0.0004", "13.03", "failed"],
        ["coreml-fp16", "-", "-", "-", "-", "-", "skipped"],
        ["onnx-fp32", "failed"],
        ["coreml-fp16", "8.51", "MB", "0.61", "failed"],
    ]
    assert "  skipped: MissingBackend: no Ankle boot b" in lines
    many = tuple(f"note {i}" for i in range(9))
    assert "note 2\n  - and 6 more notes" in printed(
        made.model_copy(update={"gate": made.gate.model_copy(update={"notes": many})})
    )


def test_names_can_neither_style_nor_steer_the_terminal() -> None:
    text = printed(proof("[red]x[/red]\x1b[2J\x07\nfake PASSED"), 200)
    assert "[red]x[/red]?[2J? fake PASSED" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_the_smallest_file_held_its_limits_wherever_it_ran() -> None:
    files = (ran(bytes=900), ran("litert-w8a8", bytes=10), there("litert-w8a8", "android", bytes=10, map_drop=0.5))
    made = proof(models=files)
    assert smallest(made) == files[0]
    assert [mark(row, made)[1] for row in files] == ["passed", "passed", "failed"]
    assert smallest(proof(models=files[1:])) is None


def test_ranges_lie_on_one_logarithmic_axis() -> None:
    rows = [ran(p50_ms=1.0, p90_ms=10.0, p99_ms=100.0), ran("a", p50_ms=5.0, p90_ms=None, p99_ms=None), not_run()]
    (first, second), ticks = plots.latency_ranges(rows)
    assert 0 < first.p50 < first.p90 < first.p99 < 100
    assert first.p90 - first.p50 == pytest.approx(first.p99 - first.p90, abs=0.2)
    assert second.p50 == second.p90 == second.p99
    assert [text for _, text in ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert [place for place, text in ticks if text in ("1", "10", "100")] == [first.p50, first.p90, first.p99]
    _, ticks = plots.latency_ranges([ran(p50_ms=0.02, p90_ms=30.0, p99_ms=4000.0)])
    assert [text for _, text in ticks] == ["0.1", "1", "10", "100", "1000"]
    assert plots.latency_ranges([not_run()]) == ([], [])


def test_the_darkness_of_a_bit_is_its_share_of_the_pictures_asked_there() -> None:
    few = ran(bits_compared=20 * 4, bit_flips=(0, 2, 0, 1))
    many = ran(bits_compared=1000 * 4, bit_flips=(50, 0, 0, 0))
    (first, second), darkest = plots.bit_strips([few, not_run(), many])
    assert darkest == 0.1
    assert first.cells == ((1, 2, 1.0), (3, 1, 0.5))
    assert first.most == (1, 2, 1.0)
    assert second.cells == ((0, 50, 0.5),)
    (pale,), darkest = plots.bit_strips([ran(bits_compared=4000, bit_flips=(1, 0, 0, 0))])
    assert (pale.cells, darkest) == (((0, 1, 0.02),), plots.LEAST_DARKEST)


def test_margins_are_of_each_file_once_beside_the_first_float_one() -> None:
    rows = [ran("onnx-w8a8", margins=(1, 1)), ran(margins=(3, 1)), ran("litert-fp16", margins=(1, 3)), not_run()]
    rows += [row.model_copy(update={"device": "android", "margins": (9, 0)}) for row in rows[:3]]
    drawn = plots.each_margin(rows)
    assert [[line.name for line in plot.lines] for plot in drawn] == [
        ["onnx-fp32", "onnx-w8a8"],
        ["onnx-fp32", "litert-fp16"],
    ]
    assert drawn[0].y_ticks[-1][1] == "0.75"
    assert plots.each_margin(rows[:1]) == []


@pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed")
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_no_page_scrolls_sideways_light_or_dark(tmp_path: Path) -> None:
    """Screenshots of every size stay in the test's folder, to be looked at."""
    from playwright.sync_api import sync_playwright

    render(proof("Averylongnamewithoutanyspace" * 4), tmp_path)
    place, papers, asked = (tmp_path / "report.html").as_uri(), set(), set()
    measured = "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium(), chromium_sandbox=False
    ) as browser:  # fmt: skip
        page = browser.new_page()
        page.on("request", lambda request: asked.add(request.url))
        page.goto(place)
        for width, scheme in ((390, "light"), (1280, "light"), (390, "dark"), (1280, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
            wide, paper = page.evaluate(measured)
            assert wide == width
            papers.add(paper)
    assert len(papers) == 2
    assert {url for url in asked if not url.startswith("data:")} == {place}
