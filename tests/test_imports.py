"""The import rules of the project, read from the source by ast: nothing is imported, no file is left out.

1. data_prep needs no torch, and never knows pretrain; `datasets` and `mpi4py` only inside the function that needs them.
2. pretrain reads stores, pairs and masks of data_prep, and shares its command line and whole-file helpers.
3. DeepSpeed is named where training happens, and nowhere else in the packages.
4. pretrain/settings stands on nothing of pretrain but itself; folders import in no circle, as files do.
5. Fine-tuning and predicting see a Hugging Face folder only: proof that the export stands alone.
6. __init__.py files are empty; private names stay in their file; no module is called like someone else's.
7. Importing a module does nothing: at its top level it defines, and acts in functions and entry blocks alone.
"""

import ast
import graphlib
import importlib.metadata
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "pretrain")
FOLDERS = (*PACKAGES, "launch", "benchmarks", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

FROM_DATA_PREP = {
    f"data_prep.{name}"
    for name in (
        *(
            "calls",
            "cli",
            "fields",
            "files",
            "untrusted",
            "interpreter",
            "json_types",
            "mapped",
            "safe_output",
            "progress",
            "ranges",
            *("store", "store_manifest", "version"),
        ),
        *("tokens.contract", "tokens.old_tokenizer", "tokens.row_sources", "tokens.tokenizer_folder"),
        *("samples.assemble", "samples.counter_rng", "samples.coverage", "samples.masking", "samples.mixture"),
        *("samples.length_table", "samples.sample_index"),
        "sharding.ranks",
        "rounding",
    )
}
# Advice looks at a corpus before there is a store, with the eyes of shard.py.
READS_TEXT = {
    f"data_prep.{name}"
    for name in (
        *("text.compression", "text.corpus", "text.discovery", "text.languages", "text.sentences", "text.source"),
        *("sharding.plan", "sharding.held_out"),
    )
}
NAMES_DEEPSPEED = {"pretrain.zero.engine", "pretrain.zero.partition"}
# What its engine and optimizers have; torch's optimizers have param_groups and state, too.
OF_DEEPSPEED = set(
    """
    loss_scaler cur_scale min_scale cur_iter last_overflow_iter cur_hysteresis overflow global_steps global_samples
    skipped_steps zero_optimization_stage get_global_grad_norm set_gradient_accumulation_boundary scale_wrt_gas
    fp16_groups bit16_groups ds_tensor ds_numel ds_shape deepspeed_engine zero_optimizer
    """.split()
)
STANDS_ALONE = {
    "pretrain.finetune.command",
    "pretrain.finetune.trainer",
    "pretrain.predict",
    "pretrain.inference.pipeline",
}
SHARED_HELPERS = {
    f"data_prep.{name}"
    for name in ("calls", "cli", "fields", "files", "untrusted", "interpreter", "json_types", "progress", "ranges")
}
TRAINER = {
    f"pretrain.{name}"
    for name in (
        "train",
        "trainer",
        "loop",
        "model",
        "data",
        "settings.config",
        "zero.partition",
        "checkpoints.slices",
        "export.hf_writer",
        "export.proof",
    )
}


class Import(NamedTuple):
    """One imported module, with the name taken from it (empty for `import module`)."""

    module: str
    name: str
    at_top: bool  # not inside a function
    line: int


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_called(call: ast.Call) -> str:
    """The last name of what is called: c of a.b.c(...)."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


@cache
def imports_of(tree: ast.Module) -> list[Import]:
    """Every import, also those inside functions and through importlib.import_module("...")."""
    found: list[Import] = []

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, "", at_top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; name the package"
            found.extend(Import(node.module or "", alias.name, at_top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and name_called(node) in ("import_module", "__import__"):
            assert isinstance(node.args[0], ast.Constant), f"line {node.lineno}: import of a computed name"
            found.append(Import(str(node.args[0].value), "", at_top, node.lineno))
        below = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, below)

    visit(tree, True)
    return found


@cache
def modules_in(path: Path) -> frozenset[str]:
    """The modules a file imports; `from package import module` counts as package.module."""
    return frozenset(module_named(entry) for entry in imports_of(tree_of(path)))


def module_named(entry: Import) -> str:
    inner = f"{entry.module}.{entry.name}"
    return inner if inner in MODULES else entry.module


def top_levels(modules: Collection[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def files_in(package: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(ROOT).parts[0] == package]


def test_the_rules_speak_of_files_that_exist():
    named = FROM_DATA_PREP | READS_TEXT | NAMES_DEEPSPEED | STANDS_ALONE | SHARED_HELPERS | TRAINER
    assert named <= set(MODULES), f"renamed or gone: {sorted(named - set(MODULES))}"


@pytest.mark.parametrize("path", files_in("data_prep"), ids=module_of)
def test_data_prep_needs_no_torch_and_never_knows_pretrain(path):
    assert not top_levels(modules_in(path)) & {"torch", "deepspeed", "pretrain"}
    for entry in imports_of(tree_of(path)):
        if entry.module.split(".")[0] in ("datasets", "mpi4py"):
            assert not entry.at_top, f"line {entry.line}: import {entry.module} inside the function that needs it"


def test_pretrain_reads_only_the_stores_side_of_data_prep():
    for path in files_in("pretrain"):
        ours = {module for module in modules_in(path) if module.split(".")[0] == "data_prep"}
        readable = FROM_DATA_PREP | (READS_TEXT if module_of(path).startswith("pretrain.advice.") else set())
        assert ours <= readable, path


def test_deepspeed_is_named_only_where_training_happens():
    naming = {module_of(path) for path in files_in("pretrain") if "deepspeed" in top_levels(modules_in(path))}
    assert naming <= NAMES_DEEPSPEED


@pytest.mark.parametrize("path", files_in("pretrain"), ids=module_of)
def test_only_the_engine_touches_deepspeeds_attributes(path):
    if module_of(path) in NAMES_DEEPSPEED:
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in OF_DEEPSPEED, f"line {node.lineno}: {ast.unparse(node)}; ask Engine"
        elif isinstance(node, ast.Call) and name_called(node) in ("getattr", "setattr", "hasattr"):
            assert not {ast.unparse(value).strip("'") for value in node.args} & OF_DEEPSPEED, f"line {node.lineno}"
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            assert (name, ast.unparse(node.annotation)) != ("engine", "Any"), f"line {node.lineno}: say Engine"


@pytest.mark.parametrize("module", sorted(STANDS_ALONE))
def test_fine_tuning_needs_nothing_of_the_trainer(module):
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        imported = modules_in(MODULES[current])
        assert "deepspeed" not in top_levels(imported), current
        ours = {name for name in imported if name.split(".")[0] in PACKAGES}
        assert {name for name in ours if name.startswith("data_prep")} <= SHARED_HELPERS, current
        waiting |= {name for name in ours if name.startswith("pretrain.")} - seen
    assert not seen & TRAINER


def test_imports_run_in_no_circle():
    graph = {module: modules_in(path) & set(MODULES) for module, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def folder_of(module: str) -> str:
    """Return the folder of a package in which a file lies, however deep; one right in the package stands for itself."""
    return ".".join(module.split(".")[:2])


def test_folders_import_in_no_circle():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph.setdefault(folder_of(module), set()).update(folder_of(other) for other in modules_in(path) & set(MODULES))
    for folder, imported in graph.items():
        imported.discard(folder)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_what_tests_share_lies_in_no_test():
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    of_tests = {path: {name for name in modules_in(path) if name.startswith("tests.test_")} for path in files}
    assert not {str(path): found for path, found in of_tests.items() if found}


@pytest.mark.parametrize("path", sorted((ROOT / "pretrain/monitor").glob("*.py")), ids=module_of)
def test_a_run_knows_nothing_of_its_report(path):
    assert not {module for module in modules_in(path) if folder_of(module) == "pretrain.report"}


@pytest.mark.parametrize("path", sorted((ROOT / "pretrain/settings").glob("*.py")), ids=module_of)
def test_settings_stand_on_nothing_of_pretrain_but_themselves(path):
    ours = {module for module in modules_in(path) if module.split(".")[0] == "pretrain"}
    assert all(folder_of(module) == "pretrain.settings" for module in ours)


# Modules whose functions act on the process, or beyond it.
ACTS = {"gc", "multiprocessing", "os", "shutil", "signal", "socket", "subprocess", "sys", "threading"}


def is_definition(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module defines something and does nothing."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    calls = [ast.unparse(inner.func) for inner in ast.walk(node.value) if isinstance(inner, ast.Call)]
    return not any(call.split(".")[0] in ACTS for call in calls) and all(
        isinstance(target, ast.Name | ast.Tuple) for target in targets
    )


def test_importing_does_nothing():
    for path in FILES:
        doing = [node for node in tree_of(path).body if not is_definition(node)]
        assert not doing or path in files_in("tests"), f"{path}, line {doing[0].lineno}: {ast.unparse(doing[0])}"


def test_init_files_are_empty():
    assert not [path for path in FILES if path.name == "__init__.py" and path.read_text()]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_private_names_stay_in_their_file():
    assert not {str(path): taken for path in FILES if (taken := private_names_taken(tree_of(path)))}


def private_names_taken(tree: ast.Module) -> list[str]:
    """Private names of our other modules that a module takes, with their lines."""
    taken = []
    ours = {}  # the name here -> the module of ours that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOLDERS:
            for alias in node.names:
                if is_private(alias.name):
                    taken.append(f"line {node.lineno}: {node.module}.{alias.name}")
                if f"{node.module}.{alias.name}" in MODULES:
                    ours[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            ours |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in ours:
            taken.append(f"line {node.lineno}: {ast.unparse(node)}")
    return taken


@cache
def names_of_dependencies() -> set[str]:
    """What one can import from the distributions of constraints.txt, dashes and case apart."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(pinned) > 50
    wanted = {plain(name) for name in pinned}
    importable = importlib.metadata.packages_distributions()
    return wanted | {name for name, sources in importable.items() if wanted & {plain(source) for source in sources}}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def test_no_module_or_folder_borrows_the_name_of_another():
    # Running a file puts its folder first on the import path: data_prep/queue.py would break `import torch`.
    ours = {*FOLDERS, *(path.stem for path in FILES if path.name not in ("__init__.py", "conftest.py"))}
    assert not ours & (sys.stdlib_module_names | names_of_dependencies())


def test_the_checks_see_what_they_should():
    source = """
import deepspeed.comm
from data_prep import store
def late():
    import datasets
    importlib.import_module("mpi4py")
"""
    assert imports_of(ast.parse(source)) == [
        Import("deepspeed.comm", "", True, 2),
        Import("data_prep", "store", True, 3),
        Import("datasets", "", False, 5),
        Import("mpi4py", "", False, 6),
    ]
    assert module_named(Import("data_prep", "store", True, 3)) == "data_prep.store"
