"""The structure that CONTRIBUTING.md requires: short functions and files, and imports that only go down."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("train_fabric", "train_fabric_decoupled", "train_torch")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (*sorted(ROOT.glob("rl/**/*.py")), *(ROOT / f"{name}.py" for name in PROGRAMS))
}
PACKAGE = tuple(module for module in MODULES if module not in PROGRAMS)
MAX_MAIN, MAX_FUNCTION, MAX_FILE = 45, 50, 300  # lines

# From the bottom to the top; packages stand for the modules in them. A module may import its own layer and those below.
LAYERS = (
    ("rl.dist", "rl.compilers", "rl.errors", "rl.reporting", "rl.tree"),
    ("rl.seeding",),
    ("rl.compile",),
    ("rl.envs",),
    ("rl.models",),
    ("rl.returns", "rl.rollout", "rl.collector", "rl.statistics"),
    ("rl.learners",),
    ("rl.optimization",),
    ("rl.config", "rl.keep", "rl.limits"),
    ("rl.run", "rl.exchange"),
    ("rl.session",),
    ("rl.arguments", "rl.spelling"),
    ("rl.help",),
    ("rl.parsing",),
    ("rl.recipes",),
    ("rl.cli",),
    ("rl", "rl.commands", "rl.__main__", *PROGRAMS),
)


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def imports(module: str) -> set[str]:
    """Everything that a module imports, also inside functions and only for type checkers."""
    names = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports are not read here"
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= parts or {node.module}
    return names


def layer(module: str) -> int:
    """The layer of the longest name in `LAYERS` that the module is, or is in."""
    places = {name: height for height, names in enumerate(LAYERS) for name in names}
    fits = [name for name in places if module == name or (module.startswith(f"{name}.") and name != "rl")]
    assert fits, f"{module}: has no layer; add it to LAYERS"
    return places[max(fits, key=len)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_a_short_main(program: str) -> None:
    (main,) = (function for function in functions(program) if function.name == "main")
    assert num_lines(main) <= MAX_MAIN


@pytest.mark.parametrize("modules", [pytest.param(PACKAGE, id="package"), pytest.param(PROGRAMS, id="programs")])
def test_no_function_is_long(modules: tuple[str, ...]) -> None:
    lengths = {f"{m}:{f.lineno} {f.name}": num_lines(f) for m in modules for f in functions(m)}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_no_file_is_long() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_FILE} == {}


def test_no_import_goes_up() -> None:
    edges = ((module, name) for module in MODULES for name in imports(module) & MODULES.keys())
    assert [f"{module} imports {name}" for module, name in edges if layer(name) > layer(module)] == []


def test_no_imports_go_in_a_circle() -> None:
    try:
        TopologicalSorter({module: imports(module) & MODULES.keys() for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_no_module_imports_the_compiler_before_it_compiles() -> None:
    """It takes as long to import as all of torch, and who asks for help would wait for it."""
    first = {m: [n for n in parsed(m).body if isinstance(n, ast.Import | ast.ImportFrom)] for m in MODULES}
    names = {m: [ast.unparse(node).split()[1] for node in nodes] for m, nodes in first.items()}
    assert [m for m in MODULES if any(n.startswith(("torch._dynamo", "torch._inductor")) for n in names[m])] == []


def test_the_package_does_not_know_lightning() -> None:
    assert [m for m in PACKAGE if any(name.split(".")[0].startswith("lightning") for name in imports(m))] == []


def test_the_package_reads_no_variable_of_lightning() -> None:
    """A variable counts as read where its name occurs, except as a key of a dictionary of variables to set."""
    reads = []
    for module in PACKAGE:
        nodes = list(ast.walk(parsed(module)))
        written = {key for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
        names = (node for node in nodes if isinstance(node, ast.Constant) and node not in written)
        reads += [f"{module}:{n.lineno} {n.value}" for n in names if str(n.value).startswith("LT_")]
    assert reads == []
