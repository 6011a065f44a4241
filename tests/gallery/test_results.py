from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gallery.errors import CorruptFile
from gallery.results import Thresholds, Thumbnail, load
from gallery.training_results import TrainingCurve
from tests.mobile_eval.factories import IMAGE, open_world, ran, results


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    run = results('Schuh \U0001f45f <&> "quoted"')
    assert load(run.save(tmp_path / "results.json")) == run
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_unseen_classes_are_saved_and_where_there_are_none_nothing_is(tmp_path: Path) -> None:
    run = results(open_world=open_world("expected \U0001f45f"))
    assert load(run.save(tmp_path / "results.json")) == run
    assert '"unseen_unseen": null' in (tmp_path / "results.json").read_text()
    assert "open_world" not in json.loads(results().save(tmp_path / "without.json").read_text())
    assert "open_world" not in results().model_dump()


@pytest.mark.parametrize("damage", [("480", "-480"), ("float cosine", "<b>float</b>"), ("0.5202", '"much"')])
def test_damage_among_the_unseen_classes_is_an_error_by_name(tmp_path: Path, damage: tuple[str, str]) -> None:
    path = results(open_world=open_world()).save(tmp_path / "results.json")
    path.write_text(path.read_text().replace(*damage))
    with pytest.raises(CorruptFile, match=r"open_world\."):
        load(path)


@settings(max_examples=30, deadline=None)
@given(st.text(), st.floats(allow_nan=False))
def test_any_text_and_any_number_survive(tmp_path_factory: pytest.TempPathFactory, text: str, value: float) -> None:
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return  # a lone surrogate is no Unicode text: no UTF-8 file can hold it
    run = results(text, models=(ran(map_drop=value),))
    again = load(run.save(tmp_path_factory.mktemp("any") / "results.json"))
    assert again == run
    assert again.models[0].map_drop == value


def test_not_a_number_stays_one_in_valid_json(tmp_path: Path) -> None:
    path = results(models=(ran(map=math.nan),)).save(tmp_path / "results.json")

    def fail(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=fail)
    assert math.isnan(load(path).models[0].map or 0.0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"schema_version": 2', '"schema_version": 99'),
        lambda text: text.replace('"seed": 7', '"seed": 7, "sede": 8'),
        lambda text: text.replace('"cores": 2', '"cores": "two"'),
        lambda text: text.replace(IMAGE, "http://example.com/spy.png"),
    ],
)
def test_damage_is_an_error_by_name(tmp_path: Path, damage: object) -> None:
    path = results().save(tmp_path / "results.json")
    whole = path.read_text()
    path.write_text(damage(whole))  # type: ignore[operator]
    assert path.read_text() != whole
    with pytest.raises(CorruptFile, match=r"results\.json"):
        load(path)


def test_the_message_names_the_field(tmp_path: Path) -> None:
    path = results().save(tmp_path / "results.json")
    path.write_text(path.read_text().replace('"cores": 2', '"cores": "two"'))
    with pytest.raises(CorruptFile, match=r"system\.cores"):
        load(path)
    with pytest.raises(CorruptFile, match="No such file"):
        load(tmp_path / "absent.json")


def test_records_are_frozen_and_strict_about_keys() -> None:
    with pytest.raises(ValidationError):
        ran().map = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="mapp"):
        ran(mapp=1.0)
    with pytest.raises(ValidationError):
        Thresholds(float={"map_drop": -0.1, "bit_flip_rate": 0.0})


@pytest.mark.parametrize(
    "image",
    [
        "",
        "http://x/y.png",
        "javascript:alert(1)",
        'data:image/png;base64,AA" onerror="x',
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        IMAGE + "\n",
    ],
)
def test_a_thumbnail_is_nothing_but_inline_pixels(image: str) -> None:
    with pytest.raises(ValidationError):
        Thumbnail(image=image, label="x")


def test_a_curve_must_be_aligned() -> None:
    with pytest.raises(ValidationError, match="2 steps, 1 losses"):
        TrainingCurve(stage="s", steps=(1, 2), loss=(1.0,))
    with pytest.raises(ValidationError):
        TrainingCurve(stage="s", steps=(1, 2), loss=(1.0, 2.0), accuracy=(0.5,))


def test_random_weights_are_never_forgotten() -> None:
    assert "Teacher and student start from RANDOM weights" in results(random=True).alarms[0]
    assert results(random=False).alarms == ()


def test_the_kind_of_a_file_decides_its_threshold() -> None:
    thresholds = Thresholds()
    for variant, threshold in (
        ("onnx-fp32", thresholds.float),
        ("coreml-fp16", thresholds.float),
        ("onnx-w8a32", thresholds.quantized),
        ("coreml-palettize6", thresholds.quantized),
    ):
        assert thresholds.of(ran(variant)) is threshold
