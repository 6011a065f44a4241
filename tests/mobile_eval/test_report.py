from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gallery.results import RunResults, Skipped, Thresholds, TrainingCurve
from mobile_eval import formatting, plots
from mobile_eval.gate import check
from mobile_eval.report import print_tables, smallest, write_html
from tests.mobile_eval.factories import cells, not_run, ran, results

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}</title></style>"
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


def render(run: RunResults, folder: Path) -> Page:
    return Page(write_html(run, folder / "report.html"))


def printed(run: RunResults, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(run, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_file_and_every_number_is_there(tmp_path: Path) -> None:
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


def test_random_weights_are_the_first_words(tmp_path: Path) -> None:
    run = results()
    assert render(run, tmp_path).body.startswith("⚠ Teacher and student start from RANDOM weights")
    assert printed(run).startswith("WARNING: Teacher and student start from RANDOM weights")
    calm = results(random=False)
    assert "RANDOM" not in render(calm, tmp_path).body + printed(calm)
    assert "alert" not in render(calm, tmp_path).source


def test_a_failure_is_said_on_the_banner_and_on_its_row(tmp_path: Path) -> None:
    files = (
        ran(map_drop=0.0312),
        not_run("onnx-int4", status="failed", reason="Fail: INVALID_PROTOBUF"),
        ran("litert-fp32"),
    )
    run = results(models=files, gate=check(files, Thresholds(), cells()))
    body = render(run, tmp_path).body
    assert "✗ Failed 2 of 3 files" in body
    assert "onnx-fp32: mAP drop 0.0312 is over the limit 0.002" in body
    assert body.count("✗ failed") == 2
    assert body.count("✓ passed") == 1
    assert "INVALID_PROTOBUF" in body
    lines = printed(run).splitlines()
    assert "FAILED" in lines[2]
    ends = [line.split()[-1] for line in lines if line.strip().startswith(("onnx-fp32 ", "onnx-int4 ", "litert-fp32 "))]
    assert ends == ["FAIL", "FAIL", "pass"]


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
        {"pairs": cells(math.nan, math.nan)},
        {"pairs": cells(0.0, 0.0)},
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
    assert row.split() == ["onnx-fp32", "8.51", "MB", "0.019%", "0.7011", "0.0004", "2.61", "3.07", "pass"]


def test_names_can_neither_style_nor_steer_the_terminal() -> None:
    text = printed(results("[red]x[/red]\x1b[2J\x07\nfake PASSED"))
    assert "[red]x[/red]?[2J? fake PASSED" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_the_smallest_file_is_one_that_passed() -> None:
    files = (ran(bytes=900), ran("litert-w8a8", bytes=10, map_drop=0.5), not_run(), ran("litert-fp32", bytes=800))
    assert smallest(results(models=files)) == files[3]
    assert smallest(results(models=files[1:3])) is None


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_no_page_scrolls_sideways(tmp_path: Path, width: int) -> None:
    """Measured by a browser, in a frame: its own window does not go below about 500 pixels."""
    files = (ran(), ran("litert-w8a32", engine="E" * 60), not_run(reason="W" * 300))
    write_html(results("Averylongclassnamewithoutanyspace" * 4, models=files), tmp_path / "report.html")
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


def test_words() -> None:
    assert [formatting.percent(v) for v in (None, 0.0, 0.00019, 0.0123, math.nan)] == [
        "-",
        "0%",
        "0.019%",
        "1.23%",
        "nan%",
    ]
    assert [formatting.size(v) for v in (0, 999, 8_512_345)] == ["-", "1.0 kB", "8.51 MB"]
    assert [formatting.duration(v) for v in (0.04, 9.94, 59.4, 59.6, 356.2)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min 0 s",
        "5 min 56 s",
    ]
    assert formatting.number(None, 4) == formatting.count(None) == "-"
    assert formatting.count(64000) == "64,000"


def test_a_long_curve_is_thinned_to_means_and_its_plot_stays_inside() -> None:
    steps = tuple(range(10_000))
    values = tuple(math.sin(s) + (math.nan if s == 17 else 0) for s in steps)
    thinned = plots.thin(steps, values)
    assert len(thinned) <= plots.MAX_POINTS
    stretch = math.ceil(9999 / plots.MAX_POINTS)
    assert thinned[3][1] == pytest.approx(np.mean(values[3 * stretch + 1 : 4 * stretch + 1]))
    for plot in plots.of_curve(
        TrainingCurve(
            stage="s",
            steps=steps,
            loss=values,
            accuracy=tuple(abs(math.cos(s)) for s in steps),
            validation=((10, 0.0), (9999, 1.0)),
        )
    ):
        for line in plot.lines:
            points = [tuple(map(float, pair.split(","))) for pair in line.points.split()]
            assert len(points) > 1
            assert all(plots.LEFT <= x <= plots.WIDTH - plots.RIGHT for x, _ in points)
            assert all(plots.TOP <= y <= plots.HEIGHT - plots.BOTTOM for _, y in points)


def test_the_center_map_shows_every_entry_and_escapes_names(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    from gallery.results import HashCenterSummary

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
    assert "no assignment could be better" in page


def test_the_layers_taken_back_are_shown_and_names_escaped(tmp_path: Path) -> None:
    page = write_html(results("<b>layer</b>"), tmp_path / "r.html").read_text()
    assert "<b>layer</b>" not in page
    section = page[page.index("8-bit layers") : page.index("What a search returns")]
    assert section.count("taken back</td>") == 1
    assert "0.310%" in section
    assert "litert-w8a32" in section  # the margins of an 8-bit file beside a float one
    assert "8-bit layers" not in write_html(results(quantization=None), tmp_path / "s.html").read_text()


def test_the_plot_of_margins_is_of_one_float_file_and_one_8_bit_file() -> None:
    made = {"onnx-fp32": (3, 1), "onnx-w8a32": (1, 1), "litert-w8a8": (1, 3)}
    rows = [ran(form, margins=margins) for form, margins in made.items()]
    plot = plots.of_margins(rows)
    assert plot is not None
    assert [(line.name, line.kind) for line in plot.lines] == [("onnx-fp32", "training"), ("litert-w8a8", "validation")]
    assert plot.y_ticks[-1][1] == "0.75"
    assert plots.of_margins(rows[:1]) is None
    assert plots.of_margins(()) is None
