"""What students are distilled by, one file a method: a module whose `METHOD` is its `Distiller`.

A file put here is a method: `--distiller <its name>` distils by it, and `benchmarks/run.py distillers` compares it.
"""

from __future__ import annotations

from distill.registry import Registry

DISTILLERS = Registry(__name__, "a distiller", "--distiller", not_methods={"base"})
