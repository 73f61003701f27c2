"""How the code reads, in figures, for orientation: none of them is a target.

    python -m benchmarks.code_figures                      the packages of this checkout
    python -m benchmarks.code_figures OTHER/data_prep ...  any other folders of Python files

Prints one JSON line. Lines of functions and files count everything between their first and their last; a comment counts
where it has a line of its own, a docstring with all its lines.
"""

import ast
import io
import json
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "pretrain", "launch")
MANY = 6  # parameters of a function that cannot be read at its call
Function = ast.FunctionDef | ast.AsyncFunctionDef


def figures(folders: list[Path]) -> dict[str, Any]:
    """Return the figures of all Python files below the folders."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.stat().st_size]
    sources = {path: path.read_text("utf-8") for path in files}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    lengths = [len(source.splitlines()) for source in sources.values()]
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    bodies = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    arguments = [argument for node in functions for argument in arguments_of(node)]
    lines = sum(lengths)
    return {
        "files": len(files),
        "lines": lines,
        "file_median": median(lengths),
        "file_max": max(lengths),
        "function_median": median(bodies),
        "function_p90": round(quantiles(bodies, n=10)[-1]),
        "function_max": max(bodies),
        "functions": len(functions),
        "functions_of_many_parameters": sum(len(positional(node)) >= MANY for node in functions),
        "comment_lines_percent": percent(sum(map(comment_lines, sources.values())), lines),
        "docstring_lines_percent": percent(sum(map(docstring_lines, trees.values())), lines),
        "unannotated_arguments_percent": percent(sum(each.annotation is None for each in arguments), len(arguments)),
        "bare_tuple_returns": sum(is_tuple(node.returns) for node in functions),
        "dict_str_any": sum(source.count("dict[str, Any]") for source in sources.values()),
        "any_engines": sum(source.count("engine: Any") for source in sources.values()),
        "folder_circles": circles(folders, trees),
    }


def arguments_of(function: Function) -> list[ast.arg]:
    """Return all arguments of a function but self, cls and starred ones."""
    return [*positional(function), *function.args.kwonlyargs]


def positional(function: Function) -> list[ast.arg]:
    """Return the arguments that a call may give without a name, but for self and cls."""
    return [each for each in (*function.args.posonlyargs, *function.args.args) if each.arg not in ("self", "cls")]


def is_tuple(returns: ast.expr | None) -> bool:
    """Whether an annotation is tuple[A, B]: values without names, and not a sequence."""
    if not isinstance(returns, ast.Subscript) or ast.unparse(returns.value) != "tuple":
        return False
    return isinstance(returns.slice, ast.Tuple) and not ast.unparse(returns.slice).endswith("...")


def comment_lines(source: str) -> int:
    """Count the lines that hold a comment and nothing else."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(each.type == tokenize.COMMENT and each.line.strip().startswith("#") for each in tokens)


def docstring_lines(tree: ast.Module) -> int:
    """Count the lines of all docstrings."""
    return sum(
        (first.end_lineno or first.lineno) - first.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        for first in node.body[:1]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )


def circles(folders: list[Path], trees: dict[Path, ast.Module]) -> list[list[str]]:
    """Return the circles of imports, each as its rooms: a folder below a package, or a file at a package's top."""
    packages = {folder.name: folder for folder in folders}
    arrows: dict[str, set[str]] = {}
    for path, tree in trees.items():
        package = next(name for name, folder in packages.items() if path.is_relative_to(folder))
        parts = (package, *path.relative_to(packages[package]).with_suffix("").parts)
        arrows.setdefault(room(parts), set()).update(
            room(module.split(".")) for module in modules_of(tree) if module.split(".")[0] in packages
        )
    reached = {here: reachable(here, arrows) for here in arrows}
    # Two rooms are in one circle if each is reached from the other.
    groups = {frozenset(there for there in reached[here] if here in reached.get(there, ())) for here in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def room(parts: Sequence[str]) -> str:
    """Return package.folder, or package.file of what lies at the top: ("pretrain", "zero", "lamb") -> pretrain.zero."""
    return ".".join(parts[:2])


def reachable(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """Return all rooms that a room stands on, by any way."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def modules_of(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported, `from package import module` as package.module and as package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower())
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def percent(part: int, whole: int) -> float:
    """Return a share in percent, to a tenth."""
    return round(100 * part / max(whole, 1), 1)


if __name__ == "__main__":
    print(json.dumps(figures([Path(name) for name in sys.argv[1:]] or [ROOT / name for name in PACKAGES])))
