"""Names that look the same are the same, and none of them steers a terminal."""

from __future__ import annotations

from unicodedata import category, normalize

from hypothesis import example, given
from hypothesis import strategies as st

from gallery.names import BLANK, JOINERS, clean_label, folded, mixes_alphabets, some


@given(st.text(max_size=12))
@example("e\u200b\u0301")
@example("\u200d \u200c")
@example("\x1b]0;title\x07")
def test_a_clean_label_is_fit_to_be_shown_and_stays(text: str) -> None:
    label = clean_label(text)
    assert clean_label(label) == label
    assert all(c.isprintable() or c in JOINERS for c in label)
    assert label == label.strip() == normalize("NFC", label)


@given(
    st.text(max_size=12),
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from(["\u200b", "\u202e", "\ufeff", "\u3164", "\ufe0f"]),
)
def test_what_cannot_be_seen_makes_no_other_class(text: str, form: str, hidden: str) -> None:
    seen = "".join(c for c in BLANK.sub("", text) if category(c) != "Cf")
    assert clean_label(normalize(form, seen)) == clean_label(seen)
    assert clean_label(f" {hidden}{hidden.join(seen)}\t{hidden}") == clean_label(seen)


def test_ordinary_labels_stay() -> None:
    for label in (
        "cat",
        "T-shirt/top",
        "\u732b",
        "caf\u00e9",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "a b",
        "C++",
        "1.0",
    ):
        assert clean_label(label) == label


def test_sentences_stay_short() -> None:
    assert some(["a\x1b[2J", "b"]) == "a\\x1b[2J, b"
    assert some(["x" * 300] * 9) == ", ".join(["x" * 80 + "..."] * 5 + ["..."])


def test_names_that_are_spelled_in_several_ways_fold_to_one() -> None:
    several = (
        ("T-shirt", "t_shirt", "t\u2010shirt", "T shirt"), ("men's", "men\u2019s", "MENS"), ("1", "01", "1.0"),
        ('"cat"', "cat.", "Cat", "\u3164cat\u2800"), ("stra\u00dfe", "STRASSE"),
    )  # fmt: skip
    assert [len({folded(name) for name in names}) for names in several] == [1] * len(several)
    others = "C", "C++", "C#", "-1", "1", "+1", "1.5", "15", "10", "100", "a1", "a-1"
    assert len({folded(name) for name in others}) == len(others)


def test_words_of_several_alphabets() -> None:
    assert mixes_alphabets("c\u0430t")
    assert mixes_alphabets("big \u0391udi")
    assert not any(map(mixes_alphabets, ("cat", "\u043a\u043e\u0442", "\u03b1-helix", "\u00b5m", "\u732bcat")))
