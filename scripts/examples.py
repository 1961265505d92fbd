"""Types the commands of README and of the tutorials as they are printed, and executes the notebooks of ``examples``:
every one must work.

Usage: .venv/bin/python scripts/examples.py            all of them, in a fresh clone (or: make examples)
       .venv/bin/python scripts/examples.py PAGE …     these pages, in a fresh clone with this checkout's .venv
       … PAGE … --refresh FOLDER                       as they stand, in that folder; pages then show what was printed

A bash at a pseudo-terminal gets each line of a page's ``sh`` blocks with its comment, in order; what `make run` prints
last, and what its report says to go on with, are typed as they stand there. A ``text`` block below a command is what it
prints, and holds what a person replies to it (``you> …``, ``order: …``); half of its lines, but for numbers, have to
come again. A block with a ``title`` is a file of that name. Nothing else is prepared but the files that pages take as
the reader's own (``OWN``). What would take long is typed as ``SHORTER`` says. Norwegian pages must have the same
commands, but for what is quoted. A line that is not known here fails; so does an exit code other than 0, and an output
with one of ``BAD``.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Collection, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import pexpect

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 600
ONCE = (
    "Compiling klype's kernel",
    "Kompilerer klypes kjerne",
    "Exploring answers",
    "Utforsker svar",
    "Starting …",
    "Starter …",
)
"""What is said once, or where it takes long: not on a page."""
BAD = ("Traceback", "bug in klype", "command not found")
READY, NEVER = r"examples\[(\d+)\]> ", r"(?!)"

TUTORIALS = [f"docs/tutorials/{name}.md" for name in ("next-word", "own-text", "rank-align", "own-model", "endpoint")]
HOW_TO = ("data", "rewards", "decoders", "gguf", "train", "scale", "servers", "serve", "studio")
PAGES = ["README.md", *TUTORIALS, *(f"docs/how-to/{name}.md" for name in HOW_TO)]
OWN = {"my-texts/", "my-data/", "book.txt", "questions.jsonl", "ranked.jsonl"}
OWN |= {"path/to/SmolLM2-135M", "path/to/model.gguf", "runs/first"}
"""What pages take as the reader's own; ``prepare`` and ``real_model`` put it there."""
RUN, SERVER = "runs/world-DATE-1", "http://localhost:8000/v1"
FOUND = {RUN, "demo/pretrain", SERVER}
"""What is there: the run of `make run`, the model that comes along, and `klype serve` in a second window."""
OTHERS = re.compile("ask runs/brief|runs/mine")  # models of fewer steps, or of other texts: they say other things
SHORTER = {
    r"^make run$": "make run ARGS='--minutes 0.5'",
    r"^make test$": "make --dry-run test",  # it takes longer than all the rest, and CI has just done it
    r"--minutes \d+(?![\d.])": "--minutes 0.5",
    r"^\S*klype run (?!.*--minutes).*": r"\g<0> --minutes 0.5",
    r"--recipe \w+": r"\g<0> --size tiny --set rank.questions=100 --set examine.questions=40",
    r"^\S*klype align .*": r"\g<0> --steps 4 --force",  # a minute's reward model is a weak one
    r"^\S*klype examine .*": r"\g<0> --most 2 --samples 2 --temperatures 0.7 --limit 8 --minutes 0.1",
}
"""What is typed in another way, and how."""
ENGLISH = {
    "runs/world-DATO-1": RUN,
    "sti/til/": "path/to/",
    "modell.gguf": "model.gguf",
    "mine-tekster/": "my-texts/",
    "mine-data/": "my-data/",
    "bok.txt": "book.txt",
    "sporsmal.jsonl": "questions.jsonl",
    "rangert.jsonl": "ranked.jsonl",
    "kort.py:kort": "brief.py:brief",
    "mine.py:kort": "mine.py:brief",
    "mine.py:hoflig": "mine.py:polite",
    "runs/kort": "runs/brief",
    "runs/begge": "runs/both",
}
"""Norwegian pages' names, and the English ones'."""
STAGES = ("", "/pretrain", "/finetune")
Reply = str | Callable[["Window", str], None]


class Line(NamedTuple):
    """A line of a block; the comment with its sign, and what the page shows below it."""

    command: str
    comment: str = ""
    shows: str = ""


class Driven(NamedTuple):
    """What a command shows when it waits for somebody, and the replies, of which the last is repeated."""

    cue: str
    replies: tuple[Reply, ...]


def visit(window: Window, url: str) -> None:
    """Looks at a page of this machine (anything but 200 is an error), with the key that lies there, then Ctrl-C."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if (key := Path(window.shell.cwd) / "key").exists():
        opener.addheaders.append(("Authorization", f"Bearer {key.read_text(encoding='utf-8').strip()}"))
    opener.open(f"{url}/models" if url.endswith("/v1") else url, timeout=60).close()
    window.shell.sendintr()


ALONE = Driven(NEVER, ("",))
CHAT = Driven("(?:you|du)> ", ("Hei!", "Hvor er Kari?", "/quit"))  # before /quit comes what the line's comment names
RANK = Driven("(?:order|rekkefølge): ", ("1", "21", "1=2", "12", "n", "2", "1", "2=1", "q"))  # the seventh is held out
LISTENS = Driven(r"http://[\w.]+:\d+/(?:v1)?", (visit, ""))  # with --json it says where twice
OTHER = ("make run", "make test", "source .venv/bin/activate", "curl -sf", "python -c", "torchrun --nproc-per-node")
COMMANDS = {
    **dict.fromkeys(OTHER, ALONE),
    **{f"klype {name}": ALONE for name in ("align", "ask", "doctor", "export", "forks", "next", "run", "tree")},
    "klype chat": CHAT,
    "klype examine": Driven(r"\[y/N\]", ("y",)),  # where it would take long
    "klype rank": RANK,
    "klype serve": LISTENS,
    "klype studio": LISTENS,
}
"""By the first two words."""


def lines(text: str) -> list[Line]:
    """The lines of a page's blocks; a command that stands in a comment follows its line."""
    found: list[Line] = []
    for kind, block in re.findall(r"(?ms)^```(sh|text)\n(.*?)^```", text):
        if kind == "text":
            found[-1] = found[-1]._replace(shows=block)
            continue
        for row in filter(str.strip, block.splitlines()):
            command, sign, comment = row.partition(" # ")
            found.append(Line(command.strip(), sign + comment))
            found += [Line(also) for also in re.findall(r"\bklype [a-z]+ .*", comment)]
    return found


def files(text: str) -> dict[str, str]:
    """The files that a page tells its reader to write, by name."""
    return dict(re.findall(r'(?ms)^```\w+ title="([^"]+)"\n(.*?)^```', text))


def unknown(found: Sequence[Line], own: Collection[str] = ()) -> list[str]:
    """A sentence for each command and each file that nothing is known of here; ``own``: the files that pages show."""
    wrong = []
    outs = [run for line in found for run in re.findall(r"--(?:out|gguf) (\S+)", line.command)]
    made = {f"{run}{stage}" for run in outs for stage in STAGES}
    for command in (line.command for line in found):
        words = shlex.split(command)
        if " ".join(words[:2]) not in COMMANDS:
            wrong.append(f"“{command}” is not known: say in COMMANDS of scripts/examples.py how it is typed.")
        given = [re.sub(r"^\w=", "", word) for word in words[2:]]  # a=MODEL: a model by another name
        named = {word for word in given if re.search(r"/|#|\.[a-z]", word) and not re.search(r" |\.example$", word)}
        wrong += [
            f"“{command}”: there is no {name}; say in OWN or FOUND of scripts/examples.py where it comes from."
            for name in sorted(named - OWN - FOUND - made)
            if not name.startswith((f"{SERVER}/", *own))
        ]
    return wrong


def differences(english: list[Line], norwegian: list[Line]) -> list[str]:
    """A sentence for the first command that a page does not share with its Norwegian one, but for what is quoted."""
    here, there = [
        "\n".join(re.sub(r'"[^"]*"', '"…"', line.command) for line in found) for found in (english, norwegian)
    ]
    for name, other in ENGLISH.items():
        there = there.replace(name, other)
    for one, other in zip([*here.split("\n"), "nothing"], [*there.split("\n"), "nothing"], strict=False):
        if one != other:
            return [f"A page has “{one}” where its Norwegian one has “{other}”."]
    return []


class Window:
    """A bash as a person has it before them, in a folder."""

    def __init__(self, folder: Path, environ: dict[str, Any]) -> None:
        self.shell: Any = pexpect.spawn(
            "bash", ["--noprofile", "--norc", "--noediting", "-i"], cwd=str(folder), env=environ, echo=False,
            encoding="utf-8", codec_errors="replace", timeout=PATIENCE_S, dimensions=(50, 84),
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
                shown += f"{reply}\n"
                self.shell.sendline(reply)
        return int(self.shell.match[1]), shown + self.shell.before


def plain(shown: str) -> str:
    """What was shown, as a page has it."""
    rows = [re.sub(r"\x1b\[[\d;?]*\w|^\(\.venv\) ", "", row).rstrip() for row in shown.splitlines()]
    rows = [row for row in rows if not row.startswith(ONCE)]
    return "\n".join(rows).strip("\n") + "\n"


def is_alike(page: str, shown: str) -> bool:
    """Whether half of the lines that a page shows have come again, but for numbers, bars and line breaks."""

    def words(text: str) -> str:
        return " ".join(re.findall(r"[^\W\d_]+", text))

    rows = [words(row) for row in page.splitlines() if words(row)]
    return 2 * sum(row in words(shown) for row in rows) >= len(rows)


class Reading:
    """Pages being read: windows, the run that README made, how many lines went wrong, and what was shown (``told``).

    ``whole``: lines are typed as they stand, however long they take.
    """

    def __init__(self, folder: Path, environ: dict[str, Any], whole: bool = False) -> None:
        self.folder, self.environ, self.window = folder, environ, Window(folder, environ)
        self.run, self.wrong, self.shorter, self.told = RUN, 0, {} if whole else SHORTER, dict[str, str]()

    def page(self, text: str) -> None:
        """Every line, in order; those that ask a server while it runs."""
        found = lines(text)
        for name, content in files(text).items():
            (self.folder / name).write_text(content, encoding="utf-8")
        asking = [line for line in found if SERVER in line.command]
        serving = Line("klype serve demo")
        if asking and serving.command not in [line.command for line in found]:
            found.insert(found.index(asking[0]), serving)
        for line in found:
            if line.command == serving.command and asking:
                second = Window(self.folder, self.environ)
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
        command = line.command.replace(RUN, self.run)
        for pattern, how in self.shorter.items():
            command = re.sub(pattern, how, command)
        made = re.search(r"--out (\S+)", command)
        if not self.shorter and made and (self.folder / made[1]).exists():
            return line.shows
        began = time.monotonic()
        try:
            code, shown = window.type(command + line.comment, driven or driven_by(line))
        except (pexpect.ExceptionPexpect, OSError) as error:
            code, shown = -1, f"{window.shell.before}\n{error}"
        print(f"{time.monotonic() - began:7.1f} s  {command}", flush=True)
        self.told[line.shows] = plain(shown)
        reasons = [f"exit code {code}"] * (code != 0) + [f"“{bad}”" for bad in BAD if bad in shown]
        reasons += ["not what the page shows"] * (not OTHERS.search(command) and not is_alike(line.shows, shown))
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
        lists = re.findall(r'<dl class="commands">.*?</dl>', (self.folder / told[1]).read_text(encoding="utf-8"))
        inside = map(html.unescape, re.findall(r"<code>(.*?)</code>", "".join(lists)))
        for command in dict.fromkeys([told[2], *inside]):
            self.typed(Line(command), self.window)


def driven_by(line: Line) -> Driven:
    """How a line is answered that waits for somebody."""
    words = re.sub(r"^\S*/klype", "klype", line.command).split()
    driven = RANK if "--human" in words else COMMANDS[" ".join(words[:2])]
    if shown := re.findall(rf"(?m)^{driven.cue}(.+)$", line.shows):
        return Driven(driven.cue, tuple(shown))
    named = re.findall(r"/[a-z]+(?: [\d.]+)?", line.comment) if driven is CHAT else []
    return Driven(driven.cue, (*driven.replies[:-1], *named, driven.replies[-1]))


def environment(home: Path, lang: str = "en") -> dict[str, Any]:
    """This process's own, without what its make, its virtual environment and klype's user have put there."""
    left_out = ("MAKE", "MFLAGS", "KLYPE", "PYTHONPATH", "VIRTUAL_ENV", "ARGS", "FAST", "EXTRAS", "RUN", "OMP", "GOMP")
    own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    paths = [path for path in own.get("PATH", "").split(os.pathsep) if not (Path(path) / "klype").exists()]
    ours = {"KLYPE_HOME": str(home), "KLYPE_LANG": lang, "LANG": "C.UTF-8", "TERM": "dumb", "BROWSER": "true"}
    return {**own, **ours, "PATH": os.pathsep.join(paths), "PS1": "examples[$?]> "}


def prepare(folder: Path) -> None:
    """The reader's texts, questions and rankings, as they are when a page is begun: another may have files of these
    names."""
    people, rooms = ("Kari", "Ola", "Anna", "Lars", "Ingrid", "Per"), ("kitchen", "garden", "school", "forest", "town")
    things = {"book": "ei bok", "boat": "en båt", "ball": "en ball", "cake": "ei kake", "lamp": "en lampe"}
    met = [(one, other) for one in people for other in people if one != other]
    facts = [(*pair, rooms[i % 5], [*things][i * 3 % 5]) for i, pair in enumerate(met)]
    told = [f"{a} møtte {b} på vei hjem. Der fant {a} {things[what]}, og {b} ble glad.\n" for a, b, _, what in facts]
    (folder / "my-texts").mkdir(exist_ok=True)
    for i in range(8):
        file = folder / "my-texts" / f"fortelling-{i}.{'md' if i % 2 else 'txt'}"
        file.write_text("\n".join([*told[i:], *told[:i]] * 3), encoding="utf-8")
    book = [f"{a} met {b} in the {room}. There {a} found a {what}, and {b} was glad.\n" for a, b, room, what in facts]
    (folder / "book.txt").write_text("\n".join(book * 12), encoding="utf-8")
    asked = [(f"What did {a} find when {a} met {b}?", f"A {what}.", f"{b}.") for a, b, _, what in facts]
    rows = {
        "questions": [{"question": question, "answers": [good]} for question, good, _ in asked],
        "ranked": [{"prompt": question, "chosen": good, "rejected": poor} for question, good, poor in asked],
    }
    (folder / "my-data").mkdir(exist_ok=True)
    shutil.copy(folder / "book.txt", folder / "my-data")
    for name, found in rows.items():
        for place in (folder, folder / "my-data"):
            (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


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


def pages(names: Sequence[str]) -> dict[str, str]:
    """English pages by name, without what cannot be typed here. Ends this where one has what nobody knows of, or its
    Norwegian one has other commands."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    for name, text in texts.items():
        file = (ROOT / name).with_suffix(".nb.md")
        other = lines(file.read_text(encoding="utf-8")) if file.exists() else lines(text)
        if wrong := [*unknown(lines(text), files(text)), *differences(lines(text), other)]:
            sys.exit("\n".join([f"{name}:", *wrong]))
    return texts


def without_model(text: str) -> str:
    """A page without the lines that need a real model."""
    return re.sub(r"(?m)^klype .*path/to/.*\n", "", text)


def refresh(page: Path, folder: Path, lang: str) -> None:
    """Types a page's commands in full length and writes what they print into it; blocks with “…” stay as they are."""
    text = page.read_text(encoding="utf-8")
    reading = Reading(folder, environment(folder / ".home", lang) | {"PYTHONPATH": str(ROOT)}, whole=True)
    reading.typed(Line("source .venv/bin/activate"), reading.window)
    reading.page(text)
    for old, new in reading.told.items():
        if re.search(r"(?m)^…$", old):
            print(new)
        elif old:
            text = text.replace(f"```text\n{old}```", f"```text\n{new}```")
    page.write_text(text, encoding="utf-8")


def main() -> None:
    began = time.monotonic()
    asked = argparse.ArgumentParser(description="Types the commands of README and of the tutorials.")
    asked.add_argument("pages", nargs="*", default=PAGES)
    asked.add_argument(
        "--refresh", type=Path, metavar="FOLDER", help="type them there, whole, and write what they print"
    )
    given = asked.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, it would be in a window, too
    if given.refresh:
        (given.refresh / ".venv").exists() or (given.refresh / ".venv").symlink_to(ROOT / ".venv")
        for name in given.pages:
            refresh(ROOT / name, given.refresh, "nb" if ".nb." in name else "en")
        return
    texts = pages(given.pages)
    with tempfile.TemporaryDirectory(prefix="klype-examples-") as place:
        folder = Path(place) / "klype"
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        environ = environment(Path(place) / "home")
        reading = Reading(folder, environ | {"PYTHONPATH": str(folder)} if "README.md" not in texts else environ)
        if "README.md" not in texts:
            (folder / ".venv").symlink_to(ROOT / ".venv")
            reading.typed(Line("source .venv/bin/activate"), reading.window)
        if why := real_model(folder):
            if os.environ.get("CI"):
                sys.exit(why)
            print(f"{why} Lines with path/to/ are skipped.")
            texts = {name: without_model(text) for name, text in texts.items()}
        for text in texts.values():
            prepare(folder)
            reading.page(text)
        for notebook in sorted((folder / "examples").glob("*.ipynb")) if texts.keys() == {*PAGES} else ():
            command = f".venv/bin/jupyter-execute --timeout={PATIENCE_S} {notebook.relative_to(folder)}"
            reading.typed(Line(command), reading.window, ALONE)
    print(f"{time.monotonic() - began:7.1f} s in all")
    if reading.wrong:
        sys.exit(f"{reading.wrong} of the lines and notebooks went wrong.")


if __name__ == "__main__":
    main()
