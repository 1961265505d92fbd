"""Progress: the same facts live and plain, nothing flashing where nobody looks."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from klype.cli.exits import wants_json
from klype.cli.terminal import LiveProgress, PlainProgress, Terminal, listener, print_table, to_json
from klype.environment import language, state_folder
from klype.runs.listener import RunListener, SilentListener


def tell(say: RunListener) -> None:
    """A run in small."""
    say.note("a note with [brackets]")
    say.stage_start("pretrain", 100)
    for step in range(1, 101):
        say.step({"step": step, "loss": 3.0 / step, "tokens_per_second": 12345.6, "kl": 0.25})
    say.sample("Hunden drakk\nvann.")
    say.stage_end("done")
    say.stage_start("align", 0)
    say.step({"step": 1, "reward": 0.5})
    say.stage_end()
    say.table("Gates", ["name", "value"], [["kl", "0.12"], ["s", "0.98"]])


class Clock:
    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_plain_lines_come_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    tell(PlainProgress(console, "en", Clock(1.0)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    lines = text.splitlines()
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 80
    assert "a note with [brackets]" in lines
    assert "pretrain: 100 steps" in lines
    assert "  “Hunden drakk vann.”" in lines
    told = [line for line in lines if line.startswith("pretrain ")]
    assert 5 <= len(told) <= 8  # one every 15 s of about 100
    assert told[0].startswith("pretrain 15/100: loss 0.200  12,346 tok/s  kl 0.250, ")
    assert told[0].endswith(" s left")
    assert lines[-3:] == ["name  value", "kl     0.12", "s      0.98"]


def test_time_left_after_a_restart_is_told_by_the_pace_since_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    plain = PlainProgress(console, "en", Clock(1.0))
    plain.stage_start("pretrain", 1000)
    for step in range(901, 951):  # a step a second
        plain.step({"step": step, "loss": 1.0})
    assert isinstance(console.file, io.StringIO)
    last = [line for line in console.file.getvalue().splitlines() if line.startswith("pretrain ")][-1]
    step, left = (int(part) for part in re.findall(r"pretrain (\d+)/1000: .* (\d+) s left", last)[0])
    assert left == 1000 - step


def test_a_line_without_measures_has_no_empty_place_for_them() -> None:
    console = Console(file=io.StringIO(), width=80)
    plain = PlainProgress(console, "en", Clock(1.0))
    plain.stage_start("rank", 1000)
    for step in range(41):
        plain.step({"step": step})
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue().splitlines()[1:]
    assert told
    assert all(re.fullmatch(r"rank \d+/1000: \d+ s left", line) for line in told)


def test_the_live_bar_shows_loss_speed_and_time_left() -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, height=40, color_system=None, legacy_windows=False
    )
    live = LiveProgress(console, "nb")
    with live.progress:
        live.stage_start("pretrain", 100)
        live.step({"step": 40, "loss": 1.5, "tokens_per_second": 23456.0, "kl": 0.25, "right": 0.5})
        assert live.progress.tasks[0].completed == 40
        assert live.progress.tasks[0].fields["numbers"] == "tap 1,500  23\u202f456 tok/s  KL 0,250"
        tell(live)
    assert all(task.completed == task.total for task in live.progress.tasks if task.total)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "«Hunden drakk vann.»" in shown
    assert "100\u00a0%" in shown
    assert "Gates" in shown
    assert "done" in shown


def test_the_parts_of_an_examination_are_told_in_norwegian() -> None:
    console = Console(file=io.StringIO(), width=80)
    plain = PlainProgress(console, "nb", Clock(1.0))
    plain.stage_start("answers 0.7", 200)
    plain.step({"step": 0})
    plain.stage_start("feedback 1.3", 3)
    assert isinstance(console.file, io.StringIO)
    assert re.fullmatch(
        r"svar ved temperatur 0,7: 200 steg\nsvar ved temperatur 0,7: \(\S+ s\)\n"
        r"påtvungne feil ved temperatur 1,3: 3 steg\n",
        console.file.getvalue(),
    )


def test_a_pipe_gets_plain_lines_and_json_keeps_stdout_clean(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=True, lang="en")
    with listener(terminal) as say:
        assert isinstance(say, PlainProgress)
        tell(say)
    terminal.document({"p": 0.5})
    said = capsys.readouterr()
    assert said.out == '{\n  "p": 0.5\n}\n'
    assert "pretrain: 100 steps" in said.err


def test_the_silent_listener_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tell(SilentListener())
    assert capsys.readouterr() == ("", "")


def test_a_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Console(width=80), "T", ["name", "text"], [["a", "word " * 60], ["b", ""]])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_no_document_holds_what_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"p": float("nan")})


def test_the_environment_is_read_by_the_conventions() -> None:
    home = Path.home()
    assert state_folder({}) == home / ".local" / "state" / "klype"
    assert state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/klype")
    assert state_folder({"XDG_STATE_HOME": "/x", "KLYPE_HOME": "/k"}) == Path("/k")
    assert language({}) == "en"
    assert language({"LANG": "nb_NO.UTF-8"}) == "nb"
    assert language({"LANG": "nn_NO.UTF-8", "LC_ALL": "C"}) == "en"
    assert language({"LANG": "en_GB.UTF-8", "KLYPE_LANG": "nb"}) == "nb"
    assert wants_json(["ask", "m", "--json"])
    assert not wants_json(["ask", "m", "--", "--json"])
