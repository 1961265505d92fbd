"""Words thrown at the command line at random: an exit code and a sentence, never a traceback, nothing started."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klype.cli import exits
from klype.cli.main import call

COMMANDS = ["run", "train", "rank", "chat", "ask", "next", "runs", "config", "list", "compare", "schema", "--", ""]
FLAGS = [
    "--minutes",
    "--text",
    "--out",
    "--seed",
    "--steps",
    "--size",
    "--set",
    "--lang",
    "--json",
    "--top",
    "--help",
    "--recipe",
]
odd = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
words = (
    st.sampled_from(COMMANDS) | st.sampled_from(FLAGS) | st.sampled_from(["0", "-1", "nan", "1e999", "nb", "a=b"]) | odd
)


@pytest.mark.soak
@settings(max_examples=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(words, max_size=7))
def test_no_words_break_the_command_line(argv: list[str], home: Path, elsewhere: Path) -> None:
    """A last option keeps whatever these words spell from starting: a run or a stage of no minutes."""
    starts = {"run", "train", "rank"} & set(argv)
    assert exits.exit_code(call, [*argv, "--minutes=0"] if starts else argv) in (0, 1, 2)
    bugs = sorted((home / "errors").glob("*"))
    assert not bugs, bugs[0].read_text(encoding="utf-8")
