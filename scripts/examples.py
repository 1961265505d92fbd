"""Types README's commands as they are printed, in a fresh clone of what is committed, and executes the notebooks of
``examples`` there: every one must work.

Usage: .venv/bin/python scripts/examples.py   (or: make examples)

A bash at a pseudo-terminal gets each line of README's blocks with its comment, in README's order; what `make run`
prints last, and what its report says to go on with, are typed as they stand there. Nothing is prepared in the clone but
the files that README takes as the reader's own (``OWN``): `make run` sets up the rest. What would take long is typed as
``SHORTER`` says. The notebooks are executed last, on the run that is there then. README.nb.md must have the same
commands. A line that is not known here fails; so does an exit code other than 0, and an output with one of ``BAD``.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import pexpect

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 600
BAD = ("Traceback", "bug in klype", "command not found")
READY, NEVER = r"examples\[(\d+)\]> ", r"(?!)"

OWN = {"mine-tekster/", "book.txt", "questions.jsonl", "ranked.jsonl", "path/to/SmolLM2-135M", "path/to/model.gguf"}
"""What README takes as the reader's own; ``prepare`` and ``real_model`` put it there."""
RUN, SERVER = "runs/world-DATE-1", "http://localhost:8000/v1"
FOUND = {RUN, f"{RUN}/pretrain", SERVER, f"{SERVER}#model"}
"""What lines of README have made: the run of `make run`, and `klype serve`, which runs in a second window meanwhile."""
SHORTER = {
    r"^make run$": "make run ARGS='--minutes 0.5'",
    r"^make test$": "make --dry-run test",  # it takes longer than all the rest, and CI has just done it
    r"--minutes \d+(?![\d.])": "--minutes 0.5",
    r"--recipe \w+": r"\g<0> --size tiny --set rank.questions=100 --set examine.questions=40",
    r"^\S*klype align .*": r"\g<0> --steps 4 --force",  # a minute's reward model is a weak one
    r"^\S*klype examine .*": r"\g<0> --most 2 --samples 2 --temperatures 0.7 --limit 8 --minutes 0.1",
}
"""What is typed in another way, and how."""
ENGLISH = {
    "runs/world-DATO-1": RUN,
    "sti/til/": "path/to/",
    "modell.gguf": "model.gguf",
    "#modell": "#model",
    "bok.txt": "book.txt",
    "sporsmal.jsonl": "questions.jsonl",
    "rangert.jsonl": "ranked.jsonl",
}
"""README.nb.md's names, and README's."""
Reply = str | Callable[["Window", str], None]


class Line(NamedTuple):
    """A line of a block; the comment with its sign."""

    command: str
    comment: str = ""


class Driven(NamedTuple):
    """What a command shows when it waits for somebody, and the replies, of which the last is repeated."""

    cue: str
    replies: tuple[Reply, ...]


def visit(window: Window, url: str) -> None:
    """Looks at a page of this machine (anything but 200 is an error), then Ctrl-C."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"{url}/models" if url.endswith("/v1") else url, timeout=60).close()
    window.shell.sendintr()


ALONE = Driven(NEVER, ("",))
CHAT = Driven("you> ", ("Hei!", "Hvor er Kari?", "/quit"))  # before /quit comes what the line's comment names
RANK = Driven("order: ", ("1", "21", "1=2", "12", "n", "2", "1", "2=1", "q"))  # the seventh is held out
LISTENS = Driven(r"http://[\w.]+:\d+/(?:v1)?", (visit,))
COMMANDS = {
    **dict.fromkeys(("make run", "make test", "source .venv/bin/activate"), ALONE),
    **{f"klype {name}": ALONE for name in ("align", "ask", "doctor", "forks", "next", "run", "tree")},
    "klype chat": CHAT,
    "klype examine": Driven(r"\[y/N\]", ("y",)),  # where it would take long
    "klype rank": RANK,
    "klype serve": LISTENS,
    "klype studio": LISTENS,
}
"""By the first two words."""


def lines(text: str) -> list[Line]:
    """The lines of a README's blocks; a command that stands in a comment follows its line."""
    found = []
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", text):
        for row in filter(str.strip, block.splitlines()):
            command, sign, comment = row.partition(" # ")
            found.append(Line(command.strip(), sign + comment))
            found += [Line(also) for also in re.findall(r"\bklype [a-z]+ .*", comment)]
    return found


def unknown(found: Iterable[Line]) -> list[str]:
    """A sentence for each command and each file of README that nothing is known of here."""
    wrong = []
    for command in (line.command for line in found):
        words = shlex.split(command)
        if " ".join(words[:2]) not in COMMANDS:
            wrong.append(f"“{command}” is not known: say in COMMANDS of scripts/examples.py how it is typed.")
        named = {word for word in words[2:] if re.search(r"/|#|\.[a-z]", word) and " " not in word}
        wrong += [
            f"“{command}”: there is no {name}; say in OWN or FOUND of scripts/examples.py where it comes from."
            for name in sorted(named - OWN - FOUND)
        ]
    return wrong


def differences(english: list[Line], norwegian: list[Line]) -> list[str]:
    """A sentence for the first command that the two READMEs do not share."""
    here, there = ["\n".join(line.command for line in found) for found in (english, norwegian)]
    for name, other in ENGLISH.items():
        there = there.replace(name, other)
    for one, other in zip([*here.split("\n"), "nothing"], [*there.split("\n"), "nothing"], strict=False):
        if one != other:
            return [f"README.md has “{one}” where README.nb.md has “{other}”."]
    return []


class Window:
    """A bash as a person has it before them, in a folder."""

    def __init__(self, folder: Path, environ: dict[str, Any]) -> None:
        self.shell: Any = pexpect.spawn(
            "bash", ["--noprofile", "--norc", "--noediting", "-i"], cwd=str(folder), env=environ, echo=False,
            encoding="utf-8", codec_errors="replace", timeout=PATIENCE_S, dimensions=(50, 250),
        )  # fmt: skip
        self.shell.expect(READY)

    def type(self, line: str, driven: Driven = ALONE) -> tuple[int, str]:
        """Its exit code, and all that was shown."""
        self.shell.sendline(line)
        shown, replies = "", chain(driven.replies, repeat(driven.replies[-1]))
        while self.shell.expect([READY, driven.cue]) == 1:
            shown += self.shell.before + self.shell.after
            reply = next(replies)
            if callable(reply):
                reply(self, self.shell.after)
            else:
                self.shell.sendline(reply)
        return int(self.shell.match[1]), shown + self.shell.before


class Reading:
    """README being read: its windows, the run that it made, and how many lines went wrong."""

    def __init__(self, clone: Path, environ: dict[str, Any]) -> None:
        self.clone, self.environ, self.window = clone, environ, Window(clone, environ)
        self.run, self.wrong = RUN, 0

    def whole(self, found: list[Line]) -> None:
        """Every line, in order; those that ask a server when it has begun, which README has further down."""
        asking = [line for line in found if SERVER in line.command]
        for line in found:
            if line.command.startswith("klype serve"):
                second = Window(self.clone, self.environ)
                second.type("source .venv/bin/activate")

                def meanwhile(window: Window, url: str) -> None:
                    for one in asking:
                        self.typed(one, self.window)
                    visit(window, url)

                self.typed(line, second, Driven(LISTENS.cue, (meanwhile,)))
            elif line not in asking:
                shown = self.typed(line, self.window)
                if line.command == "make run":
                    self.go_on(shown)

    def typed(self, line: Line, window: Window, driven: Driven | None = None) -> str:
        """What is shown when a line is typed, which is judged and timed."""
        command = line.command.replace(RUN, self.run).replace("#model", f"#{Path(self.run).name}")
        for pattern, how in SHORTER.items():
            command = re.sub(pattern, how, command)
        began = time.monotonic()
        try:
            code, shown = window.type(command + line.comment, driven or driven_by(line))
        except (pexpect.ExceptionPexpect, OSError) as error:
            code, shown = -1, f"{window.shell.before}\n{error}"
        print(f"{time.monotonic() - began:7.1f} s  {command}", flush=True)
        reasons = [f"exit code {code}"] * (code != 0) + [f"“{bad}”" for bad in BAD if bad in shown]
        if reasons:
            self.wrong += 1
            print("\n".join([f"FAILED ({', '.join(reasons)}):", *shown.splitlines()[-40:]]), flush=True)
        if code < 0:
            sys.exit("A line that does not end ends this.")
        return shown

    def go_on(self, shown: str) -> None:
        """Types what a run prints last, and what its report says to go on with."""
        told = re.search(r"The report: (\S+)\s+Talk to the model: ([^\r\n]+)", shown)
        if told is None:
            sys.exit("The run did not say where its report is and how to go on.")
        self.run = str(Path(told[1]).parent)
        lists = re.findall(r'<dl class="commands">.*?</dl>', (self.clone / told[1]).read_text(encoding="utf-8"))
        inside = map(html.unescape, re.findall(r"<code>(.*?)</code>", "".join(lists)))
        for command in dict.fromkeys([told[2], *inside]):
            self.typed(Line(command), self.window)


def driven_by(line: Line) -> Driven:
    """How a line is answered that waits for somebody."""
    words = re.sub(r"^\S*/klype", "klype", line.command).split()
    driven = RANK if "--human" in words else COMMANDS[" ".join(words[:2])]
    named = re.findall(r"/[a-z]+(?: [\d.]+)?", line.comment) if driven is CHAT else []
    return Driven(driven.cue, (*driven.replies[:-1], *named, driven.replies[-1]))


def environment(home: Path) -> dict[str, Any]:
    """This process's own, without what its make, its virtual environment and klype's user have put there."""
    left_out = ("MAKE", "MFLAGS", "KLYPE", "PYTHONPATH", "VIRTUAL_ENV", "ARGS", "FAST", "EXTRAS", "RUN", "OMP", "GOMP")
    own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    paths = [path for path in own.get("PATH", "").split(os.pathsep) if not (Path(path) / "klype").exists()]
    ours = {"KLYPE_HOME": str(home), "KLYPE_LANG": "en", "LANG": "C.UTF-8", "TERM": "dumb", "BROWSER": "true"}
    return {**own, **ours, "PATH": os.pathsep.join(paths), "PS1": "examples[$?]> "}


def prepare(folder: Path) -> None:
    """The reader's texts, questions and rankings."""
    people, rooms = ("Kari", "Ola", "Anna", "Lars", "Ingrid", "Per"), ("kitchen", "garden", "school", "forest", "town")
    things = {"book": "ei bok", "boat": "en båt", "ball": "en ball", "cake": "ei kake", "lamp": "en lampe"}
    met = [(one, other) for one in people for other in people if one != other]
    facts = [(*pair, rooms[i % 5], [*things][i * 3 % 5]) for i, pair in enumerate(met)]
    told = [f"{a} møtte {b} på vei hjem. Der fant {a} {things[what]}, og {b} ble glad.\n" for a, b, _, what in facts]
    (folder / "mine-tekster").mkdir()
    for i in range(8):
        file = folder / "mine-tekster" / f"fortelling-{i}.{'md' if i % 2 else 'txt'}"
        file.write_text("\n".join([*told[i:], *told[:i]] * 3), encoding="utf-8")
    book = [f"{a} met {b} in the {room}. There {a} found a {what}, and {b} was glad.\n" for a, b, room, what in facts]
    (folder / "book.txt").write_text("\n".join(book * 12), encoding="utf-8")
    asked = [(f"What did {a} find when {a} met {b}?", f"A {what}.", f"{b}.") for a, b, _, what in facts]
    rows = {
        "questions": [{"question": question, "answers": [good]} for question, good, _ in asked],
        "ranked": [{"prompt": question, "chosen": good, "rejected": poor} for question, good, poor in asked],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def real_model(folder: Path) -> str:
    """Puts SmolLM2-135M there, as a file and as a Hugging Face folder; else a sentence that says why not."""
    from benchmarks.generate import packaged_model
    from klype.errors import KlypeError
    from klype.model import checkpoint

    try:
        file = packaged_model()
    except KlypeError as error:
        return error.message
    loaded = checkpoint.load(file)
    checkpoint.save(folder / "path" / "to" / "SmolLM2-135M", loaded.model, loaded.tokenizer, {})
    (folder / "path" / "to" / "model.gguf").symlink_to(file)
    return ""


def main() -> None:
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, it would be in a window, too
    found, norwegian = (lines((ROOT / f"README{of}.md").read_text(encoding="utf-8")) for of in ("", ".nb"))
    if wrong := [*unknown(found), *differences(found, norwegian)]:
        sys.exit("\n".join(wrong))
    with tempfile.TemporaryDirectory(prefix="klype-examples-") as place:
        clone = Path(place) / "klype"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        prepare(clone)
        if why := real_model(clone):
            if os.environ.get("CI"):
                sys.exit(why)
            print(f"{why} README's lines with path/to/ are skipped.")
            found = [line for line in found if "path/to/" not in line.command]
        reading = Reading(clone, environment(Path(place) / "home"))
        reading.whole(found)
        for notebook in sorted((clone / "examples").glob("*.ipynb")):
            command = f".venv/bin/jupyter-execute --timeout={PATIENCE_S} {notebook.relative_to(clone)}"
            reading.typed(Line(command), reading.window, ALONE)
    print(f"{time.monotonic() - began:7.1f} s in all")
    if reading.wrong:
        sys.exit(f"{reading.wrong} of the lines and notebooks went wrong.")


if __name__ == "__main__":
    main()
