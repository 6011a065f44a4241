"""What teachers are trained by, one file a method: a module whose `METHOD` is its `HashLoss`.

A file put here is a method: `--loss <its name>` trains by it, and `benchmarks/run.py losses` compares it.
"""

from __future__ import annotations

from distill.registry import Registry

OBJECTIVES = Registry(__name__, "an objective", "--loss", not_methods={"base", "asymmetric"})
