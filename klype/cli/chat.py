"""``klype chat``: a conversation, streamed; lines that start with / are commands."""

import codecs
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from klype.cli import options as o
from klype.cli.next_tree_forks import visible
from klype.cli.terminal import Terminal, announce_start, print_table
from klype.errors import KlypeError
from klype.samplers import SAMPLERS
from klype.sources.opening import OpenModel, kind_of
from klype.words import percent, plain, short, words
from klype.words.plain import harmless
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from klype.engine.speculation import Draft
    from klype.text.chat import Message
    from klype.values import Sampling, Step, Trace

MIN_SHOWN = 0.005  # alternatives below this would be printed as 0%


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
    with announce_start(terminal):
        from klype.api.model import load
        from klype.api.prompt_context import introduction, suggestions
        from klype.sources.opening import fit_limit

        if speculate is not None:
            from klype.cli import ask_methods
        opened = load(model, precision, device=device).opened
    fit_limit(opened, opened.prompt([{"role": "user", "content": ""}]), limit)
    draft = None if speculate is None else (speculate, ask_methods.make_draft(opened, speculate))
    talk = ChatSession(terminal, opened, sampling, limit, seed, draft, sure)
    terminal.say("chat.hello", name=kind_of(model).short(model))
    if talk.reading is not None:
        terminal.aside(harmless(introduction(opened, terminal.lang)))
        if tried := suggestions(opened, terminal.lang):
            terminal.aside(harmless("\n  ".join([terminal.words("chat.try"), *tried])))
    for line in input_lines(terminal):
        if not talk.take(line):
            break
    terminal.document(talk.document(), out)


@dataclass
class ChatSession:
    """A conversation: its messages, how answers are drawn, and their traces.

    ``draft``: the name of the draft for speculative decoding, and the draft; ``sure``: whether to say how certain the
    model is of each answer.
    """

    terminal: Terminal
    opened: OpenModel
    sampling: "Sampling"
    limit: int
    seed: int
    draft: "tuple[str, Draft] | None" = None
    sure: bool = False
    messages: "list[Message]" = field(default_factory=list)
    traces: "list[Trace]" = field(default_factory=list)
    guesses: list[dict[str, Any]] = field(default_factory=list)
    certainties: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0
    dropped: int = 0  # messages that no longer fit the window, as the user was last told

    def __post_init__(self) -> None:
        from klype.api.prompt_context import is_single_turn, reading_from

        self.reading, self.alone = reading_from(self.opened), is_single_turn(self.opened)

    def take(self, line: str) -> bool:
        """Handles one line of input, a message or a command. Returns False for /quit."""
        name, _, value = line.partition(" ")
        match name:
            case _ if not line.startswith("/"):
                if line.strip():
                    self.messages.append({"role": "user", "content": line})
                    if self.reading is not None and (warning := self.reading.warning(line, self.terminal.lang)):
                        self.terminal.aside(harmless(warning), underlined=self.reading.unknown_words(line))
                    self._answer()
            case "/quit" | "/exit":
                return False
            case "/help":
                said = Sentences(self.terminal.lang)
                for sampler, row in SAMPLERS.items():
                    now = short(getattr(self.sampling, sampler), self.terminal.lang)
                    typed = f"/{sampler} X".ljust(24)
                    self.terminal.say("chat.sampler", command=typed, about=said(row.help), value=now)
                self.terminal.say("chat.help")
            case _ if name[1:] in SAMPLERS:
                self.set_sampler(name[1:], value.strip())
            case "/again" if self.messages:
                self.messages.pop()
                self._answer()
            case "/probs" if self.traces:
                columns = [self.terminal.words(f"probs.{column}") for column in ("token", "p", "instead")]
                as_bytes = value.strip() == "bytes"
                rows = list(probability_rows(self.traces[-1], self.opened, self.terminal.lang, as_bytes))
                print_table(self.terminal.console, "", columns, rows)
            case "/again" | "/probs":
                self.terminal.say("chat.nothing")
            case "/reset":
                self.messages, self.traces, self.dropped = [], [], 0
                self.terminal.say("chat.forgotten")
            case _:
                self.terminal.say("chat.unknown", command=name)
        return True

    def document(self) -> dict[str, Any]:
        return {
            **({"sure": self.certainties} if self.sure else {}),
            **({"speculation": self.guesses} if self.draft is not None else {}),
            "messages": list(self.messages),
            "tokens": sum(len(trace.steps) for trace in self.traces),
            "passes": sum(trace.passes for trace in self.traces),
            "seconds": sum(trace.seconds for trace in self.traces),
        }

    def _answer(self) -> None:
        from klype.api.model import AnswerStream, Model
        from klype.api.prompt_context import fit, prompt_context, read_of

        if self.draft is not None or self.sure:
            from klype.cli import ask_methods  # other answers do not wait for it
        terminal, model, window = self.terminal, Model(self.opened), self.opened.window
        # a quarter of the window is reserved for the answer, or ``limit`` where that is less
        read = read_of(self.messages, self.alone)
        fitting = fit(read, self.opened.prompt, window, min(self.limit, window // 4))
        if fitting is None:
            self.messages.pop()
            terminal.say("chat.too_long", window=window)
            return
        kept, prompt = fitting
        if not self.alone:
            if (dropped := len(self.messages) - len(kept)) > self.dropped:
                terminal.say("chat.full", window=window, dropped=dropped)
            self.dropped = dropped
        limit = min(self.limit, window - len(prompt))
        request = model.request(tuple(prompt), self.sampling, limit, self.seed)
        # top: alternatives for /probs; first_sample: each answer has its own noise, so that /again gives another one
        request = replace(request, top=3, first_sample=self.answers)
        self.answers += 1
        said = ""
        try:
            pieces = model.write(request)
            if self.draft is not None:
                from klype.engine.speculation import Speculation, passes
                from klype.sources.opening import decode_stream

                counts, token_bytes = Speculation(ask_methods.GAMMA), self.opened.token_bytes
                written = passes(self.opened.engine, request, self.draft[1], counts)
                spoken = ((b"".join(token_bytes(step.token) for step in steps), trace) for steps, trace in written)
                pieces = AnswerStream(model, decode_stream(spoken))
            for piece in pieces:
                said += piece
                terminal.answer(piece, end="")
            assert pieces.answer is not None, "what is written to the end is an answer"
            self.traces.append(pieces.answer.trace)
            terminal.answer("")
            if pieces.answer.ended == "length":
                terminal.say("chat.cut", limit=limit)
            if self.draft is not None:
                self.guesses.append(ask_methods.speculation(self.draft[0], counts))
                if counts.tokens_per_pass is not None:
                    terminal.say("chat.guessed", **ask_methods.with_ratios_written(self.guesses[-1], terminal.lang))
            if self.sure:
                ask = replace(prompt_context(self.opened, self.messages[-1]["content"], False), prompt=tuple(prompt))
                self.certainties.append(ask_methods.sure_of(self.opened, ask, self.traces[-1], limit))
                terminal.lines(ask_methods.sure_lines(self.certainties[-1], terminal.lang))
        except KeyboardInterrupt:
            terminal.answer("")
            terminal.say("chat.stopped")
        self.messages.append({"role": "assistant", "content": said})

    def set_sampler(self, name: str, text: str) -> None:
        terminal, row = self.terminal, SAMPLERS[name]
        try:
            given = float(text.replace(",", "."))
            value = o.check_sampler(name, int(given) if row.whole and given.is_integer() else given)
        except ValueError:
            terminal.say("chat.needs_number", command=f"/{name}", example=f"/{name} {row.slider[1]:g}")
        except KlypeError as error:
            terminal.say("chat.refused", why=Sentences(terminal.lang)(error.message))
        else:
            self.sampling = replace(self.sampling, **{name: value})
            terminal.say("chat.set", what=name, value=short(value, terminal.lang))


def probability_rows(trace: "Trace", opened: OpenModel, lang: str, as_bytes: bool) -> Iterator[tuple[str, str, str]]:
    """The rows of /probs: each token, its probability at temperature 1, and the two most probable alternatives.

    Tokens that together encode one character share a row, unless ``as_bytes``: then each is shown with its bytes.
    """

    def cut(tokens: Sequence[int]) -> bool:
        """Whether they end inside a character."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(b"".join(opened.token_bytes(token) for token in tokens if opened.control_name(token) is None))
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
                f"{visible(opened.token_text(token))} {percent(math.exp(logp), lang)}"
                for token, logp in pairs
                if token != tokens[0] and math.exp(logp) >= MIN_SHOWN and not cut([token])
            ]
        whole = b"".join(map(opened.token_bytes, tokens)).decode("utf-8", "backslashreplace")
        said = whole if len(group) > 1 else opened.token_text(tokens[0])
        said = words(lang)("chat.token_end") if tokens[0] in opened.stop else said
        yield visible(said), percent(math.exp(sum(one.logp for one in group)), lang), ", ".join(others[:2])
        group = []


def input_lines(terminal: Terminal) -> Iterator[str]:
    """The user's lines without line ends: from a prompt with line editing on a terminal, else from stdin."""
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
        except KeyboardInterrupt:  # discards the line, not the conversation
            plain.tell("")
            terminal.say("chat.ends")
