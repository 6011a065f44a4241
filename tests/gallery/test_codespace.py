"""The code space: its identity, its files, and what happens when they are tampered with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallery.codespace import CENTERS, FILE, RULE, CodeSpace, Preprocessing, hash_centers, load, save
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError

ROWS = np.where(np.random.default_rng(0).random((5, 64)) < 0.5, -1, 1).astype(np.int8)


def space_of(centers: np.ndarray = ROWS, **changes: Any) -> CodeSpace:
    space = CodeSpace(64, tuple(f"class {i}" for i in range(len(centers))), "vit_tiny", "ab" * 32,
                      hash_centers(centers), Preprocessing(64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)))  # fmt: skip
    return dataclasses.replace(space, **changes)


@given(st.lists(st.text(max_size=8), max_size=5), st.floats(0, 1), st.integers(1, 16))
def test_json_brings_back_the_same_space(classes: list[str], mean: float, size: int) -> None:
    pre = Preprocessing(size, (mean, 0.1, 1 / 3), (1.0, 1.0, 1.0))
    space = space_of(classes=tuple(classes), bits=size * 8, preprocessing=pre)
    again = CodeSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.id == space.id


def test_files_bring_back_the_same_space(tmp_path: Path) -> None:
    save(tmp_path / "run", space_of(), ROWS)
    space, centers = load(tmp_path / "run")
    assert space == space_of()
    assert centers.dtype == np.int8
    assert np.array_equal(centers, ROWS)


CHANGES = [{"bits": 128}, {"teacher": "vit_b"}, {"teacher_sha256": "00" * 32}, {"centers_sha256": "00" * 32},
           {"bit_rule": "logit >= 0"}, {"bit_order": "big"}, {"arithmetic": "bf16"}, {"golden_sha256": "00" * 32},
           {"preprocessing": Preprocessing(65, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))},
           {"preprocessing": Preprocessing(64, (0.5, 0.4, 0.31), (0.2, 0.2, 0.3))},
           {"preprocessing": Preprocessing(64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), 3)}]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=[" ".join(c) for c in CHANGES])
def test_whatever_decides_compatibility_changes_the_id(change: dict[str, Any]) -> None:
    assert space_of(**change).id != space_of().id


def test_names_of_classes_do_not_decide_compatibility() -> None:
    assert space_of(classes=("a", "b")).id == space_of().id
    assert len(space_of().id) == 16


def edited(tmp_path: Path, **changes: Any) -> Path:
    save(tmp_path, space_of(), ROWS)
    record = json.loads((tmp_path / FILE).read_text())
    record |= changes
    (tmp_path / FILE).write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    return tmp_path


@pytest.mark.parametrize("change", [
    {"id": "0" * 16}, {"id": None}, {"bits": 32}, {"bits": 63}, {"bits": "64"}, {"bits": None}, {"teacher": "other"},
    {"preprocessing": None}, {"preprocessing": []}, {"classes": 5}, {"surprise": 1},
    {"preprocessing": {"size": 3, "rule": RULE}}, {"teacher_sha256": None},
], ids=str)  # fmt: skip
def test_an_edited_code_space_is_corrupt(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        load(edited(tmp_path, **change))


@pytest.mark.parametrize("rule", [1, 3, "2", None, "\x1b[2J" * 99])
def test_a_code_space_of_another_rule_names_both_and_the_fix(tmp_path: Path, rule: object) -> None:
    seen = {"size": 64, "mean": [0.5] * 3, "std": [0.2] * 3, "rule": rule}
    if rule is None:
        seen = {**seen, "resize": "shorter side to size"}
    with pytest.raises(CodeSpaceMismatch, match=f"preprocessed by rule {RULE}: upright") as caught:
        load(edited(tmp_path, preprocessing=seen))
    assert "search it with the version of Twinhash that made it" in caught.value.fix
    assert caught.value.found.isprintable()
    assert len(caught.value.found) < 40


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '{"id": ', "\x00\xff"])
def test_a_damaged_code_space_file_is_corrupt(tmp_path: Path, text: str) -> None:
    save(tmp_path, space_of(), ROWS)
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFile):
        load(tmp_path)


@pytest.mark.parametrize("centers", [
    ROWS[::-1], ROWS[:4], -ROWS, ROWS.reshape(10, 32), ROWS.reshape(-1), np.zeros((5, 63), np.int8), np.int8(3),
], ids=["permuted", "one fewer", "negated", "reshaped", "flat", "63 bits", "a scalar"])  # fmt: skip
def test_other_centers_are_corrupt(tmp_path: Path, centers: np.ndarray) -> None:
    save(tmp_path, space_of(), ROWS)
    np.save(tmp_path / CENTERS, centers)
    with pytest.raises(CorruptFile, match="centers"):
        load(tmp_path)


@pytest.mark.parametrize("missing", [FILE, CENTERS])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    save(tmp_path, space_of(), ROWS)
    (tmp_path / missing).unlink()
    with pytest.raises(CorruptFile, match=missing):
        load(tmp_path)


def test_a_pickle_in_the_place_of_centers_is_never_loaded(tmp_path: Path) -> None:
    save(tmp_path, space_of(), ROWS)
    np.save(tmp_path / CENTERS, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFile):
        load(tmp_path)


def test_an_incompatible_space_says_which_side_is_stale() -> None:
    space_of().check_compatible(space_of().id, "the gallery", "student.onnx")
    with pytest.raises(CodeSpaceMismatch, match=r"student\.onnx is stale") as caught:
        space_of().check_compatible("f" * 16, "the gallery", "student.onnx")
    assert space_of().id in str(caught.value)
    assert "f" * 16 in caught.value.found
    for nothing in (None, ""):
        with pytest.raises(CodeSpaceMismatch, match="found none"):
            space_of().check_compatible(nothing, "the gallery", "student.onnx")


def test_a_length_without_whole_bytes_is_rejected() -> None:
    with pytest.raises(InputError):
        space_of(bits=12)


def test_centers_of_other_values_with_the_same_signs_are_corrupt(tmp_path: Path) -> None:
    """The checksum is over the packed signs."""
    save(tmp_path, space_of(), ROWS)
    np.save(tmp_path / CENTERS, ROWS * 3)
    with pytest.raises(CorruptFile, match="centers"):
        load(tmp_path)
