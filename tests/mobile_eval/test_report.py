"""The report of a run and of an evaluation: every number is there, nothing is fetched or run, and it fits a phone."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gallery.results import (
    MARGIN_BINS,
    EvaluationResults,
    ModelResult,
    RetrievalExample,
    Skipped,
    Thresholds,
    Thumbnail,
)
from gallery.training_results import HashCenterSummary, TrainingCurve
from mobile_eval import plots
from mobile_eval.devices.setup import chromium
from mobile_eval.gate import apply, check
from mobile_eval.report import (
    EMULATED_TIMES,
    INSTRUCTIONS,
    print_tables,
    smallest_passing,
    status_mark,
    write_html,
)
from tests.mobile_eval.factories import BITS, IMAGE, evaluation, not_run, open_world, pairs, ran, results, there

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}</title></style>"
PHONE = "a phone"
VOID = {"meta", "img", "br", "link", "input", "hr"}
URL_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction"}


class Page(HTMLParser):
    """Reads a page strictly: what is not closed, or closed twice, is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    @property
    def body(self) -> str:
        return " ".join(" ".join(text.split()) for tag, text in self.texts if tag not in ("style", "title"))


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


def render(run: EvaluationResults, folder: Path) -> Page:
    return Page(write_html(run, folder / "report.html"))


def tables(made: EvaluationResults, folder: Path) -> Tables:
    return Tables(write_html(made, folder / "report.html"))


def printed(run: EvaluationResults, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(run, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_model_and_every_number_is_there(tmp_path: Path) -> None:
    page = render(results(), tmp_path)
    for text in (
        "onnx-fp32",
        "litert-w8a32",
        "coreml-w8a32",
        "8.51 MB",
        "2.31 MB",
        "0.019%",
        "12 of 64,000",
        "1.23%",
        "0.7011",
        "0.6987",
        "0.0004",
        "2.61",
        "3.07",
        "5.19",
        "#731 (3)",
        "Engine of litert",
        "0.020%",
        "teacher → teacher",
        "0.7200",
        "student → gallery",
        "0.7000",
        "0.6933",
        "0.7321",
        "97.2%",
        "85,848,640",
        "4,266,017",
        "1 min 2 s",
        "5,400 train",
        "5e1c0a4f0b8d91c2",
        "2.13.0",
        "5 min 58 s in all",
    ):
        assert text in page.body, text
    assert "✓ Passed" in page.body
    assert "skipped" in page.body
    assert "MissingBackend: Ankle boot" in page.body


def test_the_page_is_self_contained_and_runs_nothing(tmp_path: Path) -> None:
    page = render(results(HOSTILE), tmp_path)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in URL_ATTRIBUTES & attributes.keys():
            assert (attributes[name] or "").startswith("data:image/"), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", page.source)
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    hostile, tame = render(results(HOSTILE), tmp_path), render(results("tame"), tmp_path)
    assert "<script>" not in hostile.source
    assert "49" not in hostile.source.replace("0.49", "")
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags], "a name made an element"
    assert hostile.body.count(HOSTILE) == tame.body.count("tame") > 10


def test_no_name_steers_who_reads_the_page(tmp_path: Path) -> None:
    hostile = "\u202ered\x1b[2J"
    made = results().model_copy(update={"name": hostile, "command": f"run.py --data {hostile}"})
    write_html(made, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("\\u202ered\\x1b[2J") == 3
    assert not {"\u202e", "\x1b"} & set(text)


def test_a_run_is_an_evaluation_on_one_device(tmp_path: Path) -> None:
    run, other = render(results(), tmp_path).body, render(evaluation(), tmp_path).body
    for heading in ("Retrieval", "Quantization", "Training", "Models", "Skipped images"):
        assert f" {heading} " in run
    for heading in ("Training", "Skipped images", "Quantization", "teacher trained alone"):
        assert heading not in other
    assert "teacher → teacher is also the result of the teacher trained alone." in run
    assert "Retrieval examples with most bit flips" in other
    assert "with most bit flips" not in run


def test_what_delegates_take_of_a_model_is_shown_where_it_is_known(tmp_path: Path) -> None:
    rows = tables(evaluation(HOSTILE), tmp_path).cells("Execution providers and delegates")[1:]
    assert rows == [
        ["onnx-fp32", "Core ML NeuralNetwork", "110 of 150 in 41"],
        ["onnx-fp32", "NNAPI", f"ValueError: {HOSTILE}"],
    ]
    assert "delegates" not in render(results(), tmp_path).body


def test_random_weights_are_said_first(tmp_path: Path) -> None:
    run = results()
    assert render(run, tmp_path).body.startswith("⚠ Teacher and student start from RANDOM weights")
    assert printed(run).startswith("WARNING: Teacher and student start from RANDOM weights")
    calm = results(random=False)
    assert "RANDOM" not in render(calm, tmp_path).body + printed(calm)
    assert "alert" not in render(calm, tmp_path).source


def test_each_warning_is_said_once_whether_it_is_fatal_or_not(tmp_path: Path) -> None:
    warnings = {"warnings": ("The teacher is near chance.",), "data_warnings": ("2 queries are copies.",)}
    for strict in (False, True):
        run = apply(results().model_copy(update=warnings), Thresholds(), strict)
        for text in (render(run, tmp_path).body, " ".join(printed(run).split())):
            assert [text.count(said) for said in (*run.alarms, *run.data_warnings)] == [1, 1, 1]
            assert ("--strict: the warnings above are errors" in text) == strict == (not run.gate.passed)


def test_unseen_classes_stand_beside_the_pretrained_features(tmp_path: Path) -> None:
    run = results(open_world=open_world())
    page = tables(run, tmp_path)
    heads, *rows = page.cells("Classes without training labels")
    assert heads[1:] == ["seen@seen", "seen@all", "unseen@unseen", "unseen@all"]
    assert rows == [
        ["teacher \u2192 teacher", "0.9671", "0.9208", "0.5202", "0.2065"],
        ["student \u2192 gallery", "0.9132", "0.8642", "0.5338", "0.1941"],
        ["float cosine", "0.5957", "0.5098", "0.6909", "0.4342"],
        ["ITQ on train (inductive)", "0.6073", "0.5133", "0.6202", "0.3239"],
        ["ITQ on gallery (transductive)", "0.5942", "0.5196", "-", "0.4154"],
    ]
    assert "0.5338 mAP of unseen@unseen; ITQ of the pretrained features, fit on train, 0.6202" in page.body
    shown = [line.split() for line in printed(run).splitlines()]
    assert ["ITQ", "on", "train", "(inductive)", "0.6073", "0.5133", "0.6202", "0.3239"] in shown
    assert max(map(len, printed(run).splitlines())) <= 80
    for text in (page.body, " ".join(printed(run).split())):
        assert "15 classes are in the training set (300 queries, 1,200 gallery images), 6 are not (120 queries" in text
        assert "Transductive: images of these classes, without labels, were trained on: 480 by the student." in text
        assert "Columns are queries@database" in text
        assert "baselines:" not in text
    without = render(results(), tmp_path).body + printed(results())
    assert "nseen" not in without
    assert "without training" not in without


def test_without_labels_there_is_one_protocol(tmp_path: Path) -> None:
    run = results(open_world=open_world(classes=(0, 21), queries=(0, 420), gallery=(0, 1680)))
    page = tables(run, tmp_path)
    heads, *rows = page.cells("Classes without training labels")
    assert heads[1:] == ["all@all"]
    assert rows[1] == ["student \u2192 gallery", "0.1941"]
    assert rows[3] == ["ITQ on train", "0.3239"]
    assert ["float", "cosine", "0.4342"] in [line.split() for line in printed(run).splitlines()]
    for text in (page.body, " ".join(printed(run).split())):
        assert "No labels of the 21 classes were used in training. Transductive" in text
        assert "Unseen classes" not in text


def test_why_baselines_are_missing_is_said_and_is_text(tmp_path: Path) -> None:
    run = results(open_world=open_world(f"of {HOSTILE}"))
    assert HOSTILE in render(run, tmp_path).body
    assert "No further baselines: of <script>" in " ".join(printed(run).split())
    two = run.open_world.rows[:2] if run.open_world else ()
    run = results(open_world=open_world("\u202ered", rows=two))
    page = render(run, tmp_path)
    assert "No baselines: \\u202ered." in page.body
    assert "Columns are" not in page.body + printed(run)


def test_a_failure_is_in_the_banner_and_in_its_row(tmp_path: Path) -> None:
    files = (
        ran(map_drop=0.0312),
        not_run("onnx-int4", status="failed", reason="Fail: INVALID_PROTOBUF"),
        ran("litert-fp32"),
    )
    run = results(models=files, gate=check(files, Thresholds(), pairs()))
    body = render(run, tmp_path).body
    assert "✗ Failed 2 of 3 models ran" in body
    assert "onnx-fp32: mAP drop 0.0312 is above the threshold 0.002" in body
    assert body.count("✗ failed") == 2
    assert body.count("✓ passed") == 1
    assert "INVALID_PROTOBUF" in body
    lines = printed(run).splitlines()
    assert "FAILED" in lines[2]
    ends = [line.split()[-1] for line in lines if line.strip().startswith(("onnx-fp32 ", "onnx-int4 ", "litert-fp32 "))]
    assert ends == ["failed", "failed", "passed"]


def test_right_and_wrong_differ_by_more_than_colour(tmp_path: Path) -> None:
    page = render(results(), tmp_path)
    tiles = re.findall(r'class="tile (right|wrong)">.*?<span[^>]*>(.*?)</span> (\d+)(<br>)?', page.source, re.DOTALL)
    assert [(kind, int(distance)) for kind, _, distance, _ in tiles] == [
        ("right" if d % 3 else "wrong", d) for d in range(10)
    ]
    for kind, mark, _, named in tiles:
        assert mark == ("&#10003;" if kind == "right" else "&#10007;")
        assert bool(named) == (kind == "wrong")
    assert "dashed" in page.source


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": ()},
        {"models": ()},
        {"curves": ()},
        {"examples": (), "skipped": ()},
        {"model_summaries": ()},
        {"seconds": {}},
        {"models": (not_run(),)},
        {"models": (ran(map=math.nan, map_drop=math.nan, bit_flip_rate=math.nan),)},
        {"pairs": pairs(math.nan, math.nan)},
        {"pairs": pairs(0.0, 0.0)},
        {
            "curves": (
                TrainingCurve(stage="s", steps=(), loss=()),
                TrainingCurve(stage="t", steps=(0,), loss=(math.nan,)),
                TrainingCurve(stage="u", steps=(5,), loss=(2.0,), validation=((5, math.nan),)),
            )
        },
    ],
)
def test_what_is_missing_or_not_a_number_still_renders(tmp_path: Path, changes: dict[str, object]) -> None:
    run = results(**changes)
    assert run.name in render(run, tmp_path).body
    assert max(map(len, printed(run).splitlines())) <= 80


def test_tables_fit_80_columns_with_every_name_whole() -> None:
    lines = printed(results(skipped=[Skipped(path="x" * 200, reason="y " * 90)] * 14)).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("coreml-w8a32", "litert-w8a32", "PASSED", "skipped", "0.7011", "2.61", "and 4 more"):
        assert word in text, word
    row = next(line for line in lines if line.strip().startswith("onnx-fp32"))
    assert row.split() == ["onnx-fp32", "8.51", "0.019%", "0.7011", "0.0004", "2.61", "3.07", "passed"]


def test_names_can_neither_style_nor_steer_the_terminal() -> None:
    text = printed(results("[red]x[/red]\x1b[2J\x07\nfake PASSED"))
    assert r"[red]x[/red]\x1b[2J\x07 fake PASSED" in " ".join(text.split())
    assert "\x1b" not in text
    assert "\x07" not in text


def test_the_smallest_model_is_one_that_passed() -> None:
    files = (ran(bytes=900), ran("litert-w8a8", bytes=10, map_drop=0.5), not_run(), ran("litert-fp32", bytes=800))
    assert smallest_passing(results(models=files)) == files[3]
    assert smallest_passing(results(models=files[1:3])) is None


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_no_page_scrolls_sideways(tmp_path: Path, width: int) -> None:
    """Measured by a browser, in a frame: its own window does not go below about 500 pixels."""
    files = (ran(), ran("litert-w8a32", engine="E" * 60), not_run(reason="W" * 300))
    long = "Averylongclassnamewithoutanyspace" * 4
    write_html(results(long, models=files, open_world=open_world(long)), tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(
        f"<iframe id=f src=report.html style='width:{width}px;height:900px;border:0'></iframe><script>onload=()=>{{"
        "const e=f.contentDocument.documentElement;document.title=e.scrollWidth+' of '+e.clientWidth}</script>"
    )
    page = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert f"<title>{width} of {width}</title>" in page, re.findall("<title>.*?</title>", page)


def test_the_center_map_shows_every_entry_and_escapes_names(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    distance = ((0, 8, 6), (8, 0, 7), (6, 7, 0))
    shown = HashCenterSummary(
        classes=("cat", "<b>dog</b>", "cow"), distance=distance, similarity=((1, 0.5, 0), (0.5, 1, 0.25), (0, 0.25, 1)),
        similarity_of="features", construction="auto", assignment="quadratic", correlation=0.31,
    )  # fmt: skip
    page = write_html(results(hash_centers=shown), tmp_path / "r.html").read_text()
    assert "6 to 8 bits between two classes" in page
    assert "0.31" in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    image = Image.open(io.BytesIO(base64.b64decode(plots.heatmap(distance).split(",")[1]))).convert("RGB")
    assert image.size == (3, 3)
    dark = [sum(image.getpixel((x, y))) for y, x in ((0, 1), (1, 2), (0, 2), (0, 0))]
    assert dark == sorted(dark)  # 8, 7, 6, 0 bits: the larger, the darker
    assert len(set(dark)) == 4
    alike = shown.model_copy(update={"distance": ((0, 8), (8, 0)), "correlation": None})
    page = write_html(results(hash_centers=alike), tmp_path / "s.html").read_text()
    assert "every assignment is as good" in page


def test_the_layers_kept_in_float_are_shown_and_names_escaped(tmp_path: Path) -> None:
    page = write_html(results("<b>layer</b>"), tmp_path / "r.html").read_text()
    assert "<b>layer</b>" not in page
    section = page[page.index("Quantization") : page.index("Retrieval examples")]
    assert section.count("kept in float</td>") == 1
    assert "0.310%" in section
    assert "litert-w8a32" in section  # the margins of an 8-bit file beside a float one
    assert "Quantization" not in write_html(results(quantization=None), tmp_path / "s.html").read_text()


def test_the_result_of_the_gate_comes_first_with_every_sentence(tmp_path: Path) -> None:
    made = evaluation()
    body = tables(made, tmp_path).body
    assert body.startswith("Twinhash report bundle Ankle boot ✗ Failed 5 of 9 models ran, on 3 of 5 devices.")
    places = [body.index(sentence) for sentence in (*made.gate.failures, *made.gate.notes)]
    assert len(places) == 4
    assert max(places[0], *places) < body.index("Exported models")
    passed = evaluation(models=(ran(),), gate=check((ran(),), Thresholds()))
    assert "✓ Passed 1 of 1 models ran, on 1 of 1 device." in render(passed, tmp_path).body


def test_the_table_of_models_by_device(tmp_path: Path) -> None:
    page = tables(evaluation(), tmp_path)
    first, *rows = page.cells("Models by device")
    assert first == ["Model", "host", "arm64-cortex-a53", "browser-webgpu", "android", "phone Ankle boot"]
    assert rows == [
        ["onnx-fp32", "✓ 0.019%", "✓ 0.019%", "– skipped 2", "✗ failed 3", "–"],
        ["litert-w8a8", "✓ 0.019%", "✓ 0.019%", "– skipped 2", "–", "–"],
        ["coreml-fp16", "–", "– skipped 1", "–", "–", "✓ timed only"],
    ]
    for place, reason in enumerate(("MissingBackend: Ankle boot a", "MissingBackend: no Ankle boot b"), 1):
        assert f"{place} {reason}" in page.body
    assert re.search("3 .*android.*WorkerFailed: Ankle boot c", page.body)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {f"#{one}" for one in targets}


def test_each_device_has_its_numbers_and_no_empty_columns(tmp_path: Path) -> None:
    page = tables(evaluation(), tmp_path)
    codes = {
        "Result": "✓ passed", "bit flips": "0.019%", "of all bits": "12 of 64,000", "beyond tolerance": "0",
        "predicted": "0.020%", "mAP": "0.7011", "mAP drop": "0.0004", "worst queries (bits)": "#731 (3)",
    }  # fmt: skip
    assert page.table("Bit flips, host")["onnx-fp32"] == codes | {"recall@10": "97.12%"}
    emulated = page.table("Bit flips, arm64-cortex-a53")
    assert emulated["onnx-fp32"] == codes | {"flips vs host": "6", "vs host, beyond": "5"}
    assert emulated["litert-w8a8"]["vs host, beyond"] == "0"
    assert emulated["litert-w8a8"]["worst queries (bits)"] == "#9 (2)"
    assert emulated["coreml-fp16"] == {"Result": "– skipped", "bit flips": "MissingBackend: Ankle boot a"}
    assert page.table("Size and latency, host")["onnx-fp32"] == {
        "size": "8.51 MB", "p50 ms": "2.61", "p90 ms": "3.07", "p99 ms": "4.00", "first ms": "9.0", "load ms": "41.0",
        "peak memory": "35.0 MB", "samples": "200", "threads": "1", "engine": "Engine of onnx",
        "conditions": "cpu Ankle boot",
    }  # fmt: skip
    assert page.table("Size and latency, arm64-cortex-a53") == {
        variant: {"size": "8.51 MB", "instructions (M)": count, "threads": "1", "engine": engine, "conditions": loads}
        for variant, count, engine, loads in (
            ("onnx-fp32", "36.76", "Engine of onnx", "loads 7,645,773"),
            ("litert-w8a8", "13.03", "Engine of litert", "loads 4,784,391"),
        )
    }
    assert page.table("Bit flips, android") == {
        "onnx-fp32": {"Result": "✗ failed", "Reason": "WorkerFailed: Ankle boot c"}
    }
    assert page.table("Size and latency, phone Ankle boot")["coreml-fp16"]["p50 ms"] == "0.61"
    assert page.table("Size and latency, phone Ankle boot")["coreml-fp16"]["Result"] == "✓ passed"
    assert not [label for label in page.tables if "webgpu" in label or label == "Bit flips, phone Ankle boot"]
    assert "browser-webgpu – skipped: MissingBackend: no Ankle boot b" in page.body
    assert "profile: Ankle boot" in page.body


def test_a_failed_model_is_not_hidden_by_skipped_ones(tmp_path: Path) -> None:
    files = (not_run("a", reason="none here"), not_run("b", "failed", "it failed"), not_run("c", reason="none here"))
    made = evaluation(models=files)
    assert tables(made, tmp_path).table("Bit flips, host") == {
        "a": {"Result": "– skipped", "Reason": "none here"},
        "b": {"Result": "✗ failed", "Reason": "it failed"},
        "c": {"Result": "– skipped", "Reason": "none here"},
    }
    assert "b      failed" in printed(made)


def test_caveats_are_given_where_they_apply(tmp_path: Path) -> None:
    def said(row: ModelResult) -> str:
        return tables(evaluation(models=(row,)), tmp_path).body + printed(evaluation(models=(row,)), 1000)

    still = {"p50_ms": None, "load_ms": None, "first_ms": None}
    for device in ("host", "browser-wasm-2t"):
        assert said(ran(device=device)).count("Latencies are of this machine (CPU Ankle boot)") == 2
    assert said(ran(device="arm64-cortex-a53")).count(EMULATED_TIMES) == 2
    assert PHONE in EMULATED_TIMES
    assert said(ran(device="arm64-cortex-a53", instructions=5, **still)).count(INSTRUCTIONS) == 2
    for row in (ran(**still), ran(device="android"), not_run()):
        assert not any(sentence in said(row) for sentence in (INSTRUCTIONS, PHONE))


def test_every_disagreement_with_the_host_is_listed(tmp_path: Path) -> None:
    page = tables(evaluation(), tmp_path)
    heads, *rows = page.cells("Disagreement with the host")
    assert heads == ["Query", "Bit", "Logit", "Logit on the host"]
    assert rows == [[f"#{40 + i}", str(i), f"+{0.0123 * (i + 1):.4g}", "-0.0456"] for i in range(3)]
    assert "arm64-cortex-a53, onnx-fp32 : 5 of 64,000 bits" in page.body
    assert "and 2 more" in page.body
    assert "6 5 beyond |logit| 0.001" in page.body
    calm = there("onnx-fp32", "android", host_flips=1, host_flips_beyond=0, disagreements=())
    body = tables(evaluation(models=(ran(), calm)), tmp_path).body
    assert "None: every device gave the host's bit" in body
    assert "more" not in body[body.index("None: every device") : body.index("Latency")]
    assert "Disagreement with the host" not in tables(evaluation(models=(ran(),)), tmp_path).body


def test_bit_flips_latencies_margins_and_examples_are_shown(tmp_path: Path) -> None:
    page = tables(evaluation(), tmp_path)
    assert "onnx-fp32, host: bit 5 in 3, bit 15 in 7 images" in page.names
    titles = [text for tag, text in page.texts if tag == "title"]
    assert titles[1:] == ["bit 5: 3", "bit 15: 7"]
    assert "2 bits, most often 15 (7)" in page.body
    assert "No bit flips: litert-w8a8." in page.body
    assert "2.61 · 3.07 · 4.00 ms" in page.body
    assert "0.61 ms, only p50 is known" in page.body
    assert [name for name in page.names if name.startswith("margins of")] == [
        "margins of litert-w8a8: share of all logits"
    ]
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [IMAGE] * 11
    assert " ".join(f"{d} Ankle boot" for d in range(41, 51)) in page.body
    for text in ("0.7015", "1,000 queries", "16 bits", "gallery of 6,001", "50.5 ms", "77.5 MB", "2.31 MB"):
        assert text in page.body, text
    for text in ("5e1c0a4f0b8d91c2", "check Ankle boot", "net Ankle boot", "2026-01-02", "torch 2.13", "23.4 GB"):
        assert text in page.body, text


def test_labels_tell_right_from_wrong_by_more_than_colour(tmp_path: Path) -> None:
    tile = Thumbnail(image=IMAGE, label="cat")
    hits = [tile.model_copy(update={"distance": d, "right": d > 2}) for d in (1, 3)]
    page = tables(evaluation(examples=(RetrievalExample(query=tile, hits=tuple(hits)),)), tmp_path)
    assert "cat ✗ 1 cat ✓ 3 How to read" in page.body
    assert "dashed frame" in page.body
    assert "dashed frame" not in tables(evaluation(), tmp_path).body


def test_hostile_names_of_an_evaluation_are_text_and_nothing_is_fetched_or_run(tmp_path: Path) -> None:
    hostile, tame = tables(evaluation(HOSTILE), tmp_path), tables(evaluation("tame"), tmp_path)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags], "a name made an element"
    assert hostile.body.count(HOSTILE) == tame.body.count("tame") > 20
    assert "<script" not in hostile.source
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in hostile.tags}
    for tag, attributes in hostile.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in URL_ATTRIBUTES & attributes.keys():
            assert re.match("data:image/|#note-[0-9]+$", attributes[name] or ""), (tag, attributes)
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
                    "browser-wasm-2t",
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
def test_missing_and_non_finite_values_of_an_evaluation_render(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = evaluation(**changes)
    assert made.name in tables(made, tmp_path).body
    assert max(map(len, printed(made).splitlines())) <= 80


def test_the_terminal_shows_a_table_a_device_in_80_columns() -> None:
    made = evaluation(thresholds=Thresholds(max_size_mb=1.0))
    lines = printed(made).splitlines()
    assert lines[0] == "FAILED  bundle Ankle boot"
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip().startswith(("onnx-fp32 ", "litert-w8a8 ", "coreml-fp16 "))]
    assert rows == [
        ["onnx-fp32", "8.51", "0.019%", "97.1%", "0.7011", "0.0004", "2.61", "3.07", "failed"],
        ["litert-w8a8", "2.31", "0.019%", "-", "0.7011", "0.0004", "0.50", "3.07", "failed"],
        ["onnx-fp32", "8.51", "0.019%", "6", "0.0004", "36.76", "failed"],
        ["litert-w8a8", "8.51", "0.019%", "0", "0.0004", "13.03", "failed"],
        ["coreml-fp16", "-", "-", "-", "-", "-", "skipped"],
        ["onnx-fp32", "failed"],
        ["coreml-fp16", "8.51", "0.61", "failed"],
    ]
    assert "  skipped: MissingBackend: no Ankle boot b" in lines
    many = tuple(f"note {i}" for i in range(9))
    assert "note 2\n  - and 6 more notes" in printed(
        made.model_copy(update={"gate": made.gate.model_copy(update={"notes": many})})
    )


def test_a_size_that_is_not_known_is_no_number_in_the_terminal() -> None:
    text = printed(evaluation(models=(ran(bytes=0), ran("litert-fp32", bytes=8_510_000))), 200)
    cells = {line.split()[0]: line.split()[1] for line in text.splitlines() if "-fp32 " in line}
    assert cells == {"onnx-fp32": "-", "litert-fp32": "8.51"}


def test_names_of_an_evaluation_can_neither_style_nor_steer_the_terminal() -> None:
    text = printed(evaluation("[red]x[/red]\x1b[2J\x07\nfake PASSED"), 200)
    assert r"[red]x[/red]\x1b[2J\x07 fake PASSED" in " ".join(text.split())
    assert "\x1b" not in text
    assert "\x07" not in text


def test_the_smallest_model_passed_wherever_it_ran() -> None:
    files = (ran(bytes=900), ran("litert-w8a8", bytes=10), there("litert-w8a8", "android", bytes=10, map_drop=0.5))
    made = evaluation(models=files)
    assert smallest_passing(made) == files[0]
    assert [status_mark(row, made)[1] for row in files] == ["passed", "passed", "failed"]
    assert smallest_passing(evaluation(models=files[1:])) is None


@pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed")
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_no_page_scrolls_sideways_light_or_dark(tmp_path: Path) -> None:
    """Screenshots of every size stay in the test's folder."""
    from playwright.sync_api import sync_playwright

    tables(evaluation("Averylongnamewithoutanyspace" * 4), tmp_path)
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
