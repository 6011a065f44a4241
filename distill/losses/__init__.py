"""The losses of teachers, a file each: `@register_loss("<file name>")` on a `HashLoss`.

A file put here is a loss: `--loss <its name>` trains by it, and `benchmarks/run.py losses` compares it.
"""

from distill.registry import Registry

LOSSES = Registry(__name__, "a loss", "--loss", helpers={"base", "asymmetric"})
register_loss = LOSSES.register
