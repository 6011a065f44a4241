"""Methods by name, and what is said of names and options that are none."""

import inspect

import pytest

from distill.distillers import DISTILLERS
from distill.distillers.base import Distiller
from distill.losses import OBJECTIVES
from distill.losses.base import HashLoss
from gallery.errors import InputError
from tests.distill.losses.factories import task


def test_every_file_is_a_method() -> None:
    assert {"csch", "base"} & set(OBJECTIVES.names()) == {"csch"}
    assert all(issubclass(OBJECTIVES.find(name), HashLoss) for name in OBJECTIVES.names())
    assert all(issubclass(DISTILLERS.find(name), Distiller) for name in DISTILLERS.names())


def test_options_are_numbers_with_a_default() -> None:
    for registry in (OBJECTIVES, DISTILLERS):
        for name in registry.names():
            options = [p for key, p in inspect.signature(registry.find(name)).parameters.items() if key != "task"]
            assert all(isinstance(option.default, float | int | str) for option in options), name
            assert all((registry.find(name).__doc__, inspect.getmodule(registry.find(name)).__doc__)), name


def test_a_name_that_is_none_gets_close_ones() -> None:
    with pytest.raises(InputError, match=r"'cshc'.*Did you mean csch"):
        OBJECTIVES.find("cshc")
    with pytest.raises(InputError, match=r"an objective for --loss; found 'base'"):
        OBJECTIVES.find("base")


def test_an_option_that_is_none_gets_those_there_are() -> None:
    with pytest.raises(InputError, match=r"options of csch in --loss-args; found margins.*scale, margin"):
        OBJECTIVES.make("csch", task(), {"margins": 0.3})
    assert OBJECTIVES.make("csch", task(), {"margin": 0.3}).margin == 0.3
