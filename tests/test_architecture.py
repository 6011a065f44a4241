"""The structure of the source: imports run downhill, no circle, short signatures, short files, every class once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # folder -> folders below it; a run.py may import any
    "gallery": {"gallery"},
    "export": {"export", "gallery"},
    "mobile_eval": {"mobile_eval", "export", "gallery"},
    "distill": {"distill", "gallery"},
    "benchmarks": {"benchmarks", "mobile_eval", "export", "distill", "gallery"},
    "twinhash": {"distill", "mobile_eval", "gallery"},
}
PLUGINS = ("distill/losses/", "distill/distillers/", "mobile_eval/devices/", "mobile_eval/runtimes/", "export/to_")
MIRRORS = {"mobile_eval/runtimes/mil_ops.py"}  # parameters are those of Core ML's MIL operations
MOST_PARAMETERS, LONGEST_PLUGIN, LONGEST_MODULE, LONGEST_FUNCTION = 6, 250, 350, 60


def sources(root: Path) -> dict[str, ast.Module]:
    """Parse every Python file below the source folders, by path relative to `root`."""
    paths = (path for folder in MAY_IMPORT for path in sorted((root / folder).rglob("*.py")))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of the project that a file imports, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= members or {node.module}
    return found & modules


def import_errors(root: Path) -> list[str]:
    """Imports uphill, imports of a run.py, and circles."""
    trees = sources(root)
    modules = {module_name(path) for path in trees}
    graph, errors = {}, []
    for path, tree in trees.items():
        targets = imported(tree, modules) - {module_name(path)}
        graph[module_name(path)] = targets
        folder, script = path.split("/")[0], path.endswith("/run.py")
        errors += [
            f"{path} imports {target}"
            for target in sorted(targets)
            if target.endswith(".run") or (not script and target.split(".")[0] not in MAY_IMPORT[folder])
        ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        errors.append(f"circle: {' -> '.join(error.args[1])}")
    return errors


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def size_errors(root: Path) -> list[str]:
    """Functions with too many parameters or lines, files with too many lines, class names that stand twice."""
    errors, classes = [], defaultdict(list)
    for path, tree in sources(root).items():
        for function in functions(tree):
            given = function.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MOST_PARAMETERS and path not in MIRRORS:
                errors.append(f"{path}: {function.name} has {count} parameters")
            if (lines := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION:
                errors.append(f"{path}: {function.name} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path)
        longest = LONGEST_PLUGIN if path.startswith(PLUGINS) else LONGEST_MODULE
        if (lines := len((root / path).read_text().splitlines())) > longest:
            errors.append(f"{path} has {lines} lines")
    return errors + [f"class {name} in {', '.join(paths)}" for name, paths in classes.items() if len(paths) > 1]


def test_imports_run_downhill_without_a_circle() -> None:
    assert import_errors(ROOT) == []


def test_signatures_and_files_are_short_and_every_class_stands_once() -> None:
    assert size_errors(ROOT) == []


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"gallery__a": "from export import b", "export__b": ""}, "gallery/a.py imports export.b"),
        ({"gallery__a": "def f():\n    import distill.c", "distill__c": ""}, "gallery/a.py imports distill.c"),
        ({"export__run": "", "export__b": "import export.run"}, "export/b.py imports export.run"),
        ({"distill__a": "from distill import b", "distill__b": "import distill.a"}, "circle: "),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, files: dict[str, str], error: str) -> None:
    write(tmp_path, **files)
    assert any(found.startswith(error) for found in import_errors(tmp_path))


def test_a_run_script_may_import_any_folder(tmp_path: Path) -> None:
    write(tmp_path, export__run="import distill.a", distill__a="")
    assert import_errors(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"export__a": "def f(a, b, c, d, e, *, g, h): ..."}, "export/a.py: f has 7 parameters"),
        ({"export__a": "def f():\n" + "    pass\n" * 60}, "export/a.py: f has 61 lines"),
        ({"distill__losses__a": "x = 1\n" * 251}, "distill/losses/a.py has 251 lines"),
        ({"gallery__a": "x = 1\n" * 351}, "gallery/a.py has 351 lines"),
        ({"gallery__a": "class A: ...", "export__b": "class A: ..."}, "class A in gallery/a.py, export/b.py"),
    ],
)
def test_what_is_too_large_or_twice_is_found(tmp_path: Path, files: dict[str, str], error: str) -> None:
    write(tmp_path, **files)
    assert size_errors(tmp_path) == [error]


def test_a_method_with_six_parameters_beside_self_is_fine(tmp_path: Path) -> None:
    write(tmp_path, gallery__a="class A:\n    def f(self, a, b, c, d, e, g): ...")
    assert size_errors(tmp_path) == []
