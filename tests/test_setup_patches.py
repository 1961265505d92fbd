"""Time, network, randomness and sizes are passed in: tests hardly ever replace a part of what they test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
MOST = 20
"""Places. Whoever needs one more finds an argument, or a real way to bring the condition about."""
WAYS = ("setattr", "delattr", "setitem", "delitem", "setenv", "delenv", "syspath_prepend", "chdir", "putenv")


def patches(tree: ast.AST) -> Iterator[str]:
    """Where something of another module, of the environment or the working folder is replaced, in whatever way."""
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            foreign |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if any(name.name.startswith("unittest") for name in names):
                yield ast.unparse(node)
            case ast.ImportFrom(module=str(module)) if module.startswith(("unittest", "mock")):
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr=way)) if way in WAYS:
                yield ast.unparse(node)
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[part, *_]) if _root(part) in foreign:
                yield ast.unparse(node)
            case ast.Attribute() | ast.Subscript(value=ast.Attribute()) if not isinstance(node.ctx, ast.Load):
                if _root(node) in foreign:
                    yield ast.unparse(node)


def _root(node: ast.expr) -> str:
    """The name that an attribute or an item is one of, at whatever depth."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_tests_replace_nothing_of_what_they_test() -> None:
    found = [
        f"{file.name}: {place}"
        for file in sorted(TESTS.glob("*.py"))
        for place in patches(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert len(found) <= MOST, "\n".join(found)


def test_every_way_to_replace_is_counted() -> None:
    ways = (
        "monkeypatch.setattr(native, 'BLOCK', 32)",
        "patch.setenv('PATH', '')",
        "contextlib.chdir(folder)",
        "import native\nnative.BLOCK = 32",
        "from klype.model import prepacked\nprepacked.rows['a'] = 32",
        "import os\ndel os.environ['PATH']",
        "import klype.door as door\nsetattr(door, 'WAIT_S', 0)",
        "from unittest import mock",
        "import unittest.mock",
    )
    assert [len([*patches(ast.parse(way))]) for way in ways] == [1] * len(ways)
    assert not [*patches(ast.parse("import os\nself.clock = os.times\nrows[0] = os.environ | {}"))]
