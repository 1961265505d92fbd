"""The rules of the house, walked over the source: who imports whom, and what no module does."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "klype"
# From the ground up: a room imports only rooms on its own level or on levels before it (docs/architecture.md).
LEVELS = (
    ("errors", "samplers", "values", "durable", "jsons", "child_processes", "option"),
    ("config", "device", "environment", "planner", "words"),
    ("text",),
    ("world",),
    ("model", "hf"),
    ("data",),
    ("engine",),
    ("sources",),
    ("judge",),
    ("answers",),
    ("preferences",),
    ("train",),
    ("examine",),
    ("experiments",),
    ("runs",),
    ("api",),
    ("serve",),
    ("studio",),
    ("cli", "__main__"),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MAY_BE_LONG: dict[str, str] = {}
MAY_ACT = {"hf.py": "importing it is how transformers is told about klype's model type"}
MAY_TAKE_MANY = {
    "api/model.py:forks": "the options of the other methods, and what only forks have",
    "api/model.py:tree": "the same",
}
MAY_PRINT = {
    "words/plain.py": "what is harmless to print is made there",
    "benchmarks/worker.py": "a pipe to another process",
}
MODULES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = sorted((PACKAGE.parent / "benchmarks").rglob("*.py"))
COMMANDS = ("__main__.py", "cures_command.py", "quality_command.py")  # of benchmarks


def name_of(module: Path) -> str:
    """The path inside the package, or that of a benchmark."""
    return str(module.relative_to(PACKAGE if module.is_relative_to(PACKAGE) else PACKAGE.parent))


def room_of(module: Path) -> str:
    if not module.is_relative_to(PACKAGE):
        return "benchmarks"
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every absolute module name that is imported, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_up(module: Path) -> None:
    assert room_of(module) in LEVEL, f"the room {room_of(module)} has no place in LEVELS"
    wrong = []
    for line, name in imports(parse(module)):
        parts = name.split(".")
        known = parts[0] == "klype" and len(parts) > 1 and parts[1] in LEVEL
        if parts[0] == "benchmarks" or (known and LEVEL[parts[1]] > LEVEL[room_of(module)]):
            wrong.append(f"line {line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_environment_command_line_and_device_read_the_environment(module: Path) -> None:
    if room_of(module) in ("cli", "device", "environment"):
        assert room_of(module) in LEVEL
        return
    reads = [
        node.lineno
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb", "putenv")
    ]
    assert not reads


@pytest.mark.parametrize("module", MODULES + BENCHMARKS, ids=name_of)
def test_one_place_prints(module: Path) -> None:
    """What goes to a terminal goes through ``klype.words.plain`` or its console, for it may be a stranger's text."""
    calls = [ast.unparse(node.func) for node in ast.walk(parse(module)) if isinstance(node, ast.Call)]
    prints = [name for name in calls if name in ("print", "Console", "sys.stdout.write", "sys.stderr.write")]
    assert not prints or name_of(module) in MAY_PRINT


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES + BENCHMARKS, ids=name_of)
def test_nothing_happens_at_import(module: Path) -> None:
    done = [f"line {node.lineno}: {ast.unparse(node)[:60]}" for node in parse(module).body if acts(node)]
    assert not done or name_of(module) in MAY_ACT
    assert not [node.lineno for node in ast.walk(parse(module)) if isinstance(node, ast.Global)]


def acts(node: ast.stmt) -> bool:
    """Whether a top-level statement does something: anything but imports, definitions, constants and docstrings."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
            return False
        case ast.Assign() | ast.AnnAssign() | ast.Expr(value=ast.Constant()):
            return False
        case ast.If(test=test):
            return ast.unparse(test) not in ("TYPE_CHECKING", "__name__ == '__main__'")
    return True


@pytest.mark.parametrize("module", MODULES + BENCHMARKS, ids=name_of)
def test_no_pickle_no_foreign_code(module: Path) -> None:
    tree = parse(module)
    pickles = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not [name for _, name in imports(tree) if name.split(".")[0] in pickles]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"line {call.lineno}: {function}"
        assert function not in ("eval", "exec", "hasattr"), where
        assert function != "torch.load" or given.get("weights_only") == "True", where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES + BENCHMARKS, ids=name_of)
def test_files_and_signatures_are_small(module: Path) -> None:
    if name_of(module) not in MAY_BE_LONG:
        assert len(module.read_text(encoding="utf-8").splitlines()) <= 500
    if room_of(module) == "cli" or module.name in COMMANDS:  # a command's parameters are its options
        return
    crowded = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > 6
    ]
    assert not [c for c in crowded if f"{name_of(module)}:{c.split()[-1]}" not in MAY_TAKE_MANY]


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_every_exception_is_still_one() -> None:
    assert all(len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) > 500 for name in MAY_BE_LONG)
    assert all(any(map(acts, parse(PACKAGE / name).body)) for name in MAY_ACT)


def test_the_walk_sees_a_wrong_import() -> None:
    tree = ast.parse("def f():\n    from klype.cli import main\n")
    assert "klype.cli" in [name for _, name in imports(tree)]
    assert LEVEL["cli"] > LEVEL["engine"] > LEVEL["model"] > LEVEL["errors"]


def needed(module: Path, files: Mapping[str, Path]) -> set[str]:
    """The files that a file imports, wherever the import stands: of a package itself only where it is asked for."""
    found = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in files else node.module for name in whole}
    return found & files.keys()


@pytest.mark.slow
def test_no_circles_between_files() -> None:
    """A file is understood by those before it."""
    names = {name_of(module).removesuffix(".py").removesuffix("/__init__"): module for module in MODULES}
    files = {f"klype.{name.replace('/', '.')}": module for name, module in names.items() if name != "__init__"}
    needs = {name: needed(module, files) for name, module in files.items()}

    def reached(name: str) -> set[str]:
        found, todo = set[str](), [name]
        while todo:
            new = needs[todo.pop()] - found
            found |= new
            todo += new
        return found

    everything = {name: reached(name) for name in files}
    circles = {
        frozenset(n for n in found if name in everything[n]) for name, found in everything.items() if name in found
    }
    assert not circles


SAME_NAMES = 10


def test_two_classes_seldom_have_one_name() -> None:
    """A name says which class is meant, wherever it is read. (Commands' options may be called as the library's.)"""
    where: dict[str, list[str]] = {}
    for module in MODULES:
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(name_of(module))
    twice = {name: files for name, files in where.items() if len(files) > 1}
    assert len(twice) <= SAME_NAMES, twice
