"""Train, validation, gallery and query, for any set of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill.data.dataset import ImageList
from distill.data.splits import SplitConfig, encode_labels, split
from gallery.errors import InputError


def listing(labels: list[tuple[str, ...]], parts: list[set[str]] | None = None, multi: bool = False) -> ImageList:
    return ImageList(
        name="set",
        names=tuple(f"{i:05d}" for i in range(len(labels))),
        labels=tuple(labels),
        splits=tuple(frozenset(p) for p in parts or [set()] * len(labels)),
        source=None,  # type: ignore[arg-type]
        split_source="given",
        multi=multi,
    )


def splits(
    source: ImageList, seed: int = 0, query: float = 0.2, validation: float = 0.05
) -> tuple[Any, dict[str, Any], str]:
    labels = encode_labels(source)
    own = split(source, labels, SplitConfig(seed, query, validation))
    return labels[1], {part: getattr(own, part) for part in ("train", "validation", "gallery", "query")}, own.protocol


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 5), st.floats(0.05, 0.9), st.floats(0, 0.9)
)
def test_a_sampled_split(counts: list[int], seed: int, query: float, validation: float) -> None:
    assume(max(counts) > 1)
    rows = [(f"c{c}",) for c, count in enumerate(counts) for _ in range(count)]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    labels, parts, _ = splits(listing(rows), seed, query, validation)
    assert all(np.array_equal(part, np.unique(part)) for part in parts.values())
    together = np.concatenate([parts["train"], parts["validation"], parts["query"]])
    assert sorted(together) == list(range(len(rows)))
    assert np.array_equal(parts["gallery"], np.union1d(parts["train"], parts["validation"]))
    for c, name in enumerate(sorted({row[0] for row in rows})):
        members = sum(row == (name,) for row in rows)
        here = {part: int((labels[index] == c).sum()) for part, index in parts.items()}
        if members > 1:
            assert 1 <= here["query"] <= members - 1
            assert abs(here["query"] - members * query) <= 1
        else:
            assert here["query"] == 0
        assert here["train"] >= 1
        assert abs(here["validation"] - here["gallery"] * validation) <= 1 + (here["gallery"] == members == 1)
    assert (len(parts["validation"]) > 0) == (validation > 0 and len(parts["gallery"]) > len(counts))


def test_many_small_classes_give_the_validation_share_in_all() -> None:
    rows = [(f"c{i // 5:04d}",) for i in range(5000)]
    _, parts, told = splits(listing(rows))
    assert len(parts["query"]) == 1000
    assert 140 <= len(parts["validation"]) <= 260  # 200 expected, standard deviation 13
    assert f"{len(parts['validation'])} of train held out for validation by seed 0" in told


def test_the_seed_and_nothing_else_decides() -> None:
    rows = [("ab"[i % 2],) for i in range(200)]
    state = np.random.get_state()[1].copy()
    first, again, other = (splits(listing(rows), seed)[1] for seed in (1, 1, 2))
    assert all(np.array_equal(first[part], again[part]) for part in first)
    assert not np.array_equal(first["query"], other["query"])
    assert not np.array_equal(first["validation"], other["validation"])
    assert np.array_equal(np.random.get_state()[1], state)


def test_a_given_split_is_kept_and_validation_comes_out_of_train() -> None:
    rows = [("ab"[i % 2],) for i in range(100)]
    parts = [
        {"query"} if i < 20 else {"train"} if i < 60 else {"gallery"} if i < 90 else {"train", "gallery"}
        for i in range(100)
    ]
    _, got, told = splits(listing(rows, parts), validation=0.2)
    assert got["query"].tolist() == list(range(20))
    assert got["gallery"].tolist() == list(range(60, 100))
    assert sorted([*got["train"], *got["validation"]]) == [*range(20, 60), *range(90, 100)]
    assert len(got["validation"]) == 10
    assert told.startswith("given: 50 train, 40 gallery, 20 query; 10 of train")
    assert (told.count("."), told[-1]) == (1, ".")


def test_images_held_out_for_validation_are_not_learned() -> None:
    def given(**parts: str) -> ImageList:
        rows = [((label,), {part}) for part, labels in parts.items() for label in labels]
        return listing([labels for labels, _ in rows], [splits for _, splits in rows])

    told = splits(given(train="ab", validation="c", query="ac"))[2]
    assert ", 1 class in gallery or query alone (c), 1 class without a query (b): " in told
    for parts in ({"validation": "ab", "query": "a"}, {"train": "a", "validation": "b", "query": "a"}):
        with pytest.raises(InputError, match="train images"):
            splits(given(**parts))


def test_multi_label_images_are_sampled_together() -> None:
    rows = [("a", "b"), ("b",), ("a",), ("c", "a")] * 10
    labels, parts, _ = splits(listing(rows, multi=True), validation=0.25)
    assert labels.shape == (40, 3)
    assert (len(parts["query"]), len(parts["gallery"])) == (8, 32)
    assert len(parts["validation"]) == 8


def test_a_query_may_be_nothing_else() -> None:
    rows = [("ab"[i % 2],) for i in range(6)]
    with pytest.raises(InputError, match="00004 in gallery, query"):
        splits(listing(rows, [{"train"}] * 4 + [{"query", "gallery"}, {"query"}]))


def test_more_classes_than_images() -> None:
    with pytest.raises(InputError, match=r"3 classes \(a, b, c\), 2 images"):
        splits(listing([("a", "b"), ("c",)], multi=True))
