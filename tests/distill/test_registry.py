"""Methods by name, and what is said of names and options that are none."""

import inspect

import pytest

from distill.distillers import DISTILLERS
from distill.distillers.base import Distiller
from distill.losses import LOSSES
from distill.losses.base import HashLoss
from gallery.errors import InputError
from tests.distill.losses.factories import make_context


def test_every_file_is_a_method() -> None:
    assert {"csch", "base"} & set(LOSSES.names()) == {"csch"}
    assert all(issubclass(LOSSES.find(name), HashLoss) for name in LOSSES.names())
    assert all(issubclass(DISTILLERS.find(name), Distiller) for name in DISTILLERS.names())


def test_options_are_typed_with_a_default() -> None:
    for registry in (LOSSES, DISTILLERS):
        for name in registry.names():
            options = registry.find(name).options_type().model_dump().values()
            assert all(isinstance(option, float | int | str) for option in options), name
            assert all((registry.find(name).__doc__, inspect.getmodule(registry.find(name)).__doc__)), name


def test_a_name_that_is_none_gets_close_ones() -> None:
    with pytest.raises(InputError, match=r"'cshc'.*Did you mean csch"):
        LOSSES.find("cshc")
    with pytest.raises(InputError, match=r"a loss for --loss; found 'base'"):
        LOSSES.find("base")


def test_an_option_that_is_none_gets_those_there_are() -> None:
    with pytest.raises(InputError, match=r"options of csch in --loss-args; found margins 0.3.*scale \(float\), margin"):
        LOSSES.build("csch", make_context(), {"margins": 0.3})
    assert LOSSES.build("csch", make_context(), {"margin": "0.3"}).margin == 0.3


@pytest.mark.parametrize(("key", "value"), [("k", "2.5"), ("k", "0"), ("signs", "maybe"), ("tau", "cold")])
def test_an_ill_typed_option_is_named_with_its_type(key: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"options of rop in --distiller-args; found {key} {value}.*k \(int\)"):
        DISTILLERS.parse("rop", {key: value})


def test_words_of_the_command_line_become_the_types_declared() -> None:
    args = DISTILLERS.parse("rop", {"k": "3", "signs": "false", "tau": "1e-2"})
    assert (args.k, args.signs, args.tau) == (3, False, 0.01)
    assert DISTILLERS.parse("csch", {"instance_loss": "raw"}).instance_loss == "raw"
    with pytest.raises(InputError, match="instance_loss round"):
        DISTILLERS.parse("csch", {"instance_loss": "round"})
