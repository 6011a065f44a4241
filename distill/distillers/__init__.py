"""The distillers of students, a file each: `@register_distiller("<file name>")` on a `Distiller`.

A file put here is a distiller: `--distiller <its name>` distills by it, and `benchmarks/run.py distillers` compares it.
"""

from distill.registry import Registry

DISTILLERS = Registry(__name__, "a distiller", "--distiller", helpers={"base"})
register_distiller = DISTILLERS.register
