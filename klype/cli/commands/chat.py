"""``klype chat``: a conversation, streamed; lines that start with / are commands."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from klype.cli import options as o
from klype.cli.progress import starting
from klype.cli.terminal import Terminal
from klype.errors import KlypeError
from klype.samplers import SAMPLERS
from klype.sources.opening import kind_of
from klype.words import plain
from klype.words.plain import harmless
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from klype.cli.beside import Guessing
    from klype.sources.opening import Opened
    from klype.text.chat import Message
    from klype.values import Sampling, Step, Trace


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AnyModel = None,
    limit: o.Limit = 128,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    speculate: o.SpeculateChat = None,
    sure: o.Sure = False,
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Talk to MODEL.

    With --json, messages are read from stdin, a line each, and the conversation is printed at the end.
    """
    model = o.a_model(model) if model else o.default_model(terminal)
    with starting(terminal):
        from klype.api.asking import introduction, suggestions
        from klype.api.model import load
        from klype.sources.opening import room

        opened = load(model, precision, device=device).opened
    room(opened, opened.prompt([{"role": "user", "content": ""}]), limit)
    talk = Talk(terminal, opened, sampling, limit, seed)
    talk.sure = sure
    if speculate is not None:
        from klype.cli.beside import Guessing

        talk.guessing = Guessing(opened, speculate)
    terminal.say("chat.hello", name=kind_of(model).short(model))
    if talk.reading is not None:
        terminal.aside(harmless(introduction(opened, terminal.lang)))
        if tried := suggestions(opened, terminal.lang):
            terminal.aside(harmless("\n  ".join([terminal.words("chat.try"), *tried])))
    for line in _lines(terminal):
        if not talk.take(line):
            break
    terminal.document(talk.document(), out)


class Talk:
    """The conversation's state: what was said, how answers are drawn, and the last answer's trace."""

    def __init__(self, terminal: Terminal, opened: Opened, sampling: Sampling, limit: int, seed: int) -> None:
        from klype.api.asking import is_single_turn, reading_from
        from klype.api.model import Model

        self.terminal = terminal
        self.opened = opened
        self.model = Model(opened)
        self.sampling = sampling
        self.limit = limit
        self.seed = seed
        self.messages: list[Message] = []
        self.traces: list[Trace] = []
        self.sure = False
        self.reading, self.alone = reading_from(opened), is_single_turn(opened)
        self.guessing: Guessing | None = None
        self.guesses: list[dict[str, Any]] = []
        self.certainties: list[dict[str, Any]] = []
        self._told = 0
        self._answers = 0

    def take(self, line: str) -> bool:
        """One line of the user's: a message or a command. False: it was /quit."""
        if not line.startswith("/"):
            if line.strip():
                self.messages.append({"role": "user", "content": line})
                if self.reading is not None and (warning := self.reading.warning(line, self.terminal.lang)):
                    self.terminal.aside(harmless(warning), underlined=self.reading.unknown(line))
                self._answer()
            return True
        name, _, value = line.partition(" ")
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                self._help()
            case _ if name.removeprefix("/") in SAMPLERS:
                self._set(name.removeprefix("/"), value.strip())
            case "/again":
                self._again()
            case "/probs":
                self._probabilities(as_bytes=value.strip() == "bytes")
            case "/reset":
                self.messages, self.traces, self._told = [], [], 0
                self.terminal.say("chat.forgotten")
            case _:
                self.terminal.say("chat.unknown", command=name)
        return True

    def document(self) -> dict[str, Any]:
        certain = {"sure": self.certainties} if self.sure else {}
        guesses = {"speculation": self.guesses} if self.guessing is not None else {}
        return {
            **certain,
            **guesses,
            "messages": list(self.messages),
            "tokens": sum(len(trace.steps) for trace in self.traces),
            "passes": sum(trace.passes for trace in self.traces),
            "seconds": sum(trace.seconds for trace in self.traces),
        }

    def _answer(self) -> None:
        from klype.api.asking import prompt_after
        from klype.api.model import AnswerStream

        window = self.opened.window
        fitting = prompt_after(self.opened, self.messages, min(self.limit, window // 4))
        if fitting is None:
            self.messages.pop()
            self.terminal.say("chat.too_long", window=window)
            return
        kept, prompt = fitting
        if not self.alone:
            self._tell_dropped(len(self.messages) - len(kept))
        limit = min(self.limit, window - len(prompt))
        request = self.model.request(tuple(prompt), self.sampling, limit, self.seed)
        request = replace(request, top=3, first_sample=self._answers)
        self._answers += 1
        said = ""
        try:
            pieces = (
                self.model.write(request)
                if self.guessing is None
                else AnswerStream(self.model, self.guessing.stream(request))
            )
            for piece in pieces:
                said += piece
                self._print(piece)
            assert pieces.answer is not None, "what is written to the end is an answer"
            self.traces.append(pieces.answer.trace)
            self._print("\n")
            if pieces.answer.ended == "length":
                self.terminal.say("chat.cut", limit=limit)
            self._tell_guesses()
            if self.sure:
                self._tell_sure(prompt, pieces.answer.trace, limit)
        except KeyboardInterrupt:
            self._print("\n")
            self.terminal.say("chat.stopped")
        self.messages.append({"role": "assistant", "content": said})

    def _tell_guesses(self) -> None:
        from klype.words import number, percent

        if self.guessing is None:
            return
        found = self.guessing.document()
        self.guesses.append(found)
        if found["tokens_per_pass"] is not None:
            self.terminal.say(
                "chat.guessed",
                draft=found["draft"],
                alpha="–" if found["alpha"] is None else percent(found["alpha"], self.terminal.lang),
                tokens=number(found["tokens_per_pass"], self.terminal.lang, 2),
            )

    def _tell_sure(self, prompt: list[int], trace: Trace, limit: int) -> None:
        from klype.api.asking import asking
        from klype.cli.beside import sure_of, tell_sure

        ask = replace(asking(self.opened, self.messages[-1]["content"], False), prompt=tuple(prompt))
        found = sure_of(self.opened, ask, trace, limit)
        self.certainties.append(found)
        if not self.terminal.as_json:
            tell_sure(self.terminal, found)

    def _tell_dropped(self, dropped: int) -> None:
        if dropped > self._told:
            self.terminal.say("chat.full", window=self.opened.window, dropped=dropped)
        self._told = dropped

    def _again(self) -> None:
        if not self.messages:
            self.terminal.say("chat.nothing")
            return
        self.messages.pop()
        self._answer()

    def _help(self) -> None:
        for name, row in SAMPLERS.items():
            value = self._number(getattr(self.sampling, name))
            about = row.help.get(self.terminal.lang, row.help["en"])
            self.terminal.say("chat.sampler", command=f"/{name} X".ljust(24), about=about, value=value)
        self.terminal.say("chat.help")

    def _set(self, name: str, text: str) -> None:
        try:
            given = float(text.replace(",", "."))
        except ValueError:
            self.terminal.say("chat.needs_number", command=f"/{name}", example=f"/{name} {SAMPLERS[name].slider[1]:g}")
            return
        whole = SAMPLERS[name].whole and given.is_integer()
        try:
            value = o.checked(name, int(given) if whole else given)
        except KlypeError as error:
            self.terminal.say("chat.refused", why=Sentences(self.terminal.lang)(error.message))
            return
        self.sampling = replace(self.sampling, **{name: value})
        self.terminal.say("chat.set", what=name, value=self._number(value))

    def _probabilities(self, as_bytes: bool) -> None:
        from klype.cli.progress import print_table

        if not self.traces:
            self.terminal.say("chat.nothing")
            return
        columns = [self.terminal.words(f"probs.{column}") for column in ("token", "p", "instead")]
        rows = list(_weighed(self.traces[-1], self.opened, self.terminal.lang, as_bytes))
        print_table(self.terminal.console, "", columns, rows)

    def _number(self, value: float) -> str:
        from klype.words import short

        return short(value, self.terminal.lang)

    def _print(self, text: str) -> None:
        if not self.terminal.as_json:
            plain.tell(text, end="")


def _weighed(trace: Trace, opened: Opened, lang: str, as_bytes: bool) -> Iterator[tuple[str, str, str]]:
    """Each token with its probability under the model at τ = 1, and the two most probable others. Tokens that spell one
    character together stand as that, unless ``as_bytes``: each has its line then, and its bytes."""
    import math

    from klype.cli.commands.look import visible
    from klype.words import percent, words

    def cut(tokens: Sequence[int]) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(b"".join(opened.spell(token) for token in tokens if opened.control(token) is None))
        return not as_bytes and bool(decoder.getstate()[0])

    group: list[Step] = []
    for step in trace.steps:
        group.append(step)
        tokens = [one.token for one in group]
        if cut(tokens) and step is not trace.steps[-1]:
            continue
        others, first = [], group[0].distribution
        if first is not None:
            pairs = zip(first.ids.tolist(), first.logp.tolist(), strict=True)
            others = [
                f"{visible(opened.spelled(token))} {percent(math.exp(logp), lang)}"
                for token, logp in pairs
                if token != tokens[0] and math.exp(logp) >= LEAST_SHOWN and not cut([token])
            ]
        whole = b"".join(map(opened.spell, tokens)).decode("utf-8", "backslashreplace")
        said = whole if len(group) > 1 else opened.spelled(tokens[0])
        said = words(lang)("chat.token_end") if tokens[0] in opened.stop else said
        yield visible(said), percent(math.exp(sum(one.logp for one in group)), lang), ", ".join(others[:2])
        group = []


LEAST_SHOWN = 0.005
"""What would read 0% is no alternative worth a word."""


def _lines(terminal: Terminal) -> Iterator[str]:
    """The user's lines, without their ends: with editing where a person types, else as they stand on stdin."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    if sys.platform != "win32":
        import readline  # noqa: F401 — gives input() editing and history
    while True:
        try:
            yield input(f"{terminal.words('chat.you')}> ")
        except EOFError:
            plain.tell("")
            return
        except KeyboardInterrupt:  # what was typed is given up, the conversation is not
            plain.tell("")
            terminal.say("chat.ends")
