"""Losses and distillers by name: one file per method, loaded on demand."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gallery.errors import InputError

Class = TypeVar("Class", bound=type)


class MethodOptions(BaseModel):
    """The options of a method; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Method:
    """A loss or a distiller: its options are the annotated attributes of its class that have a value."""

    options_type: ClassVar[type[MethodOptions]] = MethodOptions
    options: MethodOptions

    def __init_subclass__(cls) -> None:
        hints: dict[str, Any] = {**inspect.get_annotations(cls, eval_str=True)}
        own = [key for key, hint in hints.items() if key in vars(cls) and get_origin(hint) is not ClassVar]
        fields: dict[str, Any] = {key: (hints[key], vars(cls)[key]) for key in own}
        cls.options_type = create_model(cls.__name__, __base__=cls.options_type, **fields)

    def set_options(self, given: Mapping[str, Any]) -> None:
        """Validate options and make them attributes of the object."""
        self.options = self.options_type(**given)
        vars(self).update(self.options)


class Registry:
    """The methods of a package, whose file `csq.py` registers `csq`; its modules `helpers` are no methods.

    what: the kind of method; option: the flag that names one, whose options `<option>-args` gives
    """

    def __init__(self, package: str, what: str, option: str, helpers: Collection[str]) -> None:
        self.package, self.what, self.option, self.helpers = package, what, option, helpers
        self._classes: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """A decorator of the class of the method `name`."""

        def decorate(cls: Class) -> Class:
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> tuple[str, ...]:
        """All methods, in alphabetical order; nothing is loaded."""
        found = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        return tuple(module.name for module in found if module.name not in self.helpers)

    def find(self, name: str) -> Any:
        """The class of a method; raises `InputError`, with close matches, for a name that is no method's."""
        if name not in (names := self.names()):
            hint = did_you_mean(name, names, f"Choose one of {', '.join(names)}.")
            raise InputError(f"{self.what} for {self.option}", repr(name), hint)
        importlib.import_module(f"{self.package}.{name}")
        return self._classes[name]

    def parse(self, name: str, args: Mapping[str, Any]) -> Any:
        """The options of a method parsed; raises `InputError` for an unknown or ill-typed one."""
        known: type[MethodOptions] = self.find(name).options_type
        try:
            return known(**args)
        except ValidationError as error:
            found = "; ".join(f"{e['loc'][0]} {e['input']} ({e['msg'].lower()})" for e in error.errors())
            fields = [f"{key} ({inspect.formatannotation(f.annotation)})" for key, f in known.model_fields.items()]
            has = f"It has {', '.join(fields)}." if fields else "It has none."
            raise InputError(f"options of {name} in {self.option}-args", found, has) from error

    def build(self, name: str, context: Any, args: Mapping[str, Any]) -> Any:
        """A method for a context; raises what `parse` does."""
        return self.find(name)(context, **dict(self.parse(name, args)))


def did_you_mean(name: str, names: Collection[str], otherwise: str) -> str:
    """A hint with the closest of `names`, or `otherwise`."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {', '.join(close)}?" if close else otherwise
