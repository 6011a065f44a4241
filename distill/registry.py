"""Methods by name: the files of a folder, each loaded when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any

from gallery.errors import InputError


class Registry:
    """The methods of a package.

    what: one of them in words; option: that names one; not_methods: modules that are none
    """

    def __init__(self, package: str, what: str, option: str, not_methods: Collection[str]) -> None:
        self.package, self.what, self.option, self.not_methods = package, what, option, not_methods

    def names(self) -> tuple[str, ...]:
        """All methods, in alphabetical order; nothing is loaded."""
        found = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        return tuple(module.name for module in found if module.name not in self.not_methods)

    def check(self, name: str) -> None:
        """Raises `InputError`, with close matches, for a name that is no method's."""
        if name in (names := self.names()):
            return
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else f"Choose one of {', '.join(names)}."
        raise InputError(f"{self.what} for {self.option}", repr(name), hint)

    def find(self, name: str) -> Any:
        """The class of a method."""
        self.check(name)
        return importlib.import_module(f"{self.package}.{name}").METHOD

    def make(self, name: str, task: Any, options: Mapping[str, float]) -> Any:
        """A method for a task; raises `InputError` for an option that it does not have."""
        method = self.find(name)
        known = [key for key in inspect.signature(method).parameters if key != "task"]
        if wrong := sorted(set(options) - set(known)):
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise InputError(f"options of {name} in {self.option}-args", ", ".join(wrong), has)
        return method(task, **options)
