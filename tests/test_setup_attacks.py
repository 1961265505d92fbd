"""The table of attacks names tests that exist, and counts what survived."""

from __future__ import annotations

import ast
from pathlib import Path

from attacks import ATTACKS, key_of, table

TESTS = Path(__file__).parent


def test_every_attack_in_the_table_is_a_test() -> None:
    there = {
        f"{file.stem}::{node.name}"
        for file in TESTS.glob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not ATTACKS.keys() - there


def test_the_table_sums_by_row_and_a_failure_survives_nothing() -> None:
    lines = table([("a", 2, True), ("b", 5, True), ("a", 3, False)])
    assert [line.split() for line in lines[1:]] == [["a", "5", "2"], ["b", "5", "5"]]
    assert key_of("tests/test_x.py::test_y[one::two]") == "test_x::test_y"
