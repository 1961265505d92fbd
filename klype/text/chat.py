"""Messages to token ids through a chat template, so that no user's text can become a control token.

The template is rendered with a placeholder for each message. Control tokens may be in what it writes itself; the
messages, which it never sees, are put in place of the placeholders and encoded as ordinary text, whatever they spell.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from klype.errors import KlypeError
from klype.text.sandbox import OUTPUT, render, render_apart
from klype.text.tokenizer import Tokenizer, valid_unicode

# role (system, user, assistant …) and content
Message = Mapping[str, str]

# klype's own: <|begin|><|user|> question<|end|><|assistant|> answer<|end|>
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# the most rendered role sequences that are kept: a server meets new ones all the time
KEPT = 256
_PAD = "\u205f"  # white space that a template that trims messages strips from a placeholder, too
_SLOT = re.compile(f"({_PAD}?)klypeSlot([0-9]{{1,9}})End({_PAD}?)")


class Chat:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        """``template`` replaces the tokenizer's own. Raises KlypeError when there is none."""
        text = template if template is not None else tokenizer.template
        if text is None:
            raise KlypeError("This model has no chat template.", "Use --raw to give it plain text.")
        if _SLOT.search(text):
            raise KlypeError("The chat template holds a placeholder of klype's own.", "Use --raw to go without it.")
        self.tokenizer, self.template = tokenizer, text
        self._rendered: dict[tuple[tuple[str, ...], bool], str | KlypeError] = {}
        self._control = tokenizer.control_ids()
        names = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._swallowing = tokenizer.strips_right()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer begins."""
        ids, _ = self._encode(self._parts(messages, True))
        return ids

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of a whole conversation, and for each 1 if it is to be learnt (answers and their ends), else 0."""
        return self._encode(self._parts(messages, False))

    def omits(self, messages: Sequence[Message]) -> bool:
        """Whether the template leaves out a message, as some do with a system prompt."""
        return {part.message for part in self._parts(messages, False)} - {None} != set(range(len(messages)))

    def is_ready(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt of these roles needs no child process: the template is klype's, or was rendered before."""
        return self.template == TEMPLATE or (tuple(message["role"] for message in messages), True) in self._rendered

    def _parts(self, messages: Sequence[Message], prompt: bool) -> "list[_Segment]":
        """Segments of the rendered text, with the messages' contents in place of the placeholders."""
        for message in messages:
            role = message.get("role")
            if not isinstance(role, str) or not re.fullmatch(r"[a-z_]{1,32}", role):
                raise KlypeError(f"A message has the role {role!r}.", "Use system, user or assistant.")
            if not isinstance(message.get("content"), str):
                raise KlypeError(f"A {role}'s message has no text.", 'Give it as "content".')
        if not messages:
            raise KlypeError("A conversation needs at least one message.", "Give a question.")
        roles = tuple(message["role"] for message in messages)
        contents = [valid_unicode(message["content"]) for message in messages]
        answers = [i for i, role in enumerate(roles) if role == "assistant" and not prompt]
        rendered, befores = self._render(roles, prompt), [self._render(roles[:i], True) for i in answers if i > 0]
        borders = [len(before) for before in befores if rendered.startswith(before)]  # where prompts would have ended
        slots = [(slot, int(slot.group(2))) for slot in _SLOT.finditer(rendered)]
        if any(message >= len(contents) for _, message in slots):
            raise KlypeError("The chat template writes a placeholder of klype's own.", "Use --raw to go without it.")
        if sum(len(contents[message]) for _, message in slots) > OUTPUT + 2 * sum(map(len, contents)):
            raise KlypeError("The chat template repeats the messages too often.", "Use --raw to go without it.")
        if len(roles) - 1 not in {message for _, message in slots}:
            raise KlypeError("The chat template leaves out the last message.", "Use --raw to go without it.")
        parts, at = list[_Segment](), 0

        def own(stop: int) -> None:
            """Adds the template's text up to a placeholder, cut where a prompt would have ended."""
            cut = next((border for border in borders if at <= border <= stop), None)
            parts.append(_Segment(rendered[at : stop if cut is None else cut], None, False, False))
            if cut is not None:
                parts.append(_Segment(rendered[cut:stop], None, True, True))

        for slot, place in slots:
            own(slot.start())
            content = contents[place]
            content = content if slot.group(1) else content.lstrip()
            content = content if slot.group(3) else content.rstrip()
            parts.append(_Segment(content, place, place in answers, False))
            at = slot.end()
        own(len(rendered))
        return parts

    def _render(self, roles: tuple[str, ...], prompt: bool) -> str:
        """The template rendered with placeholders: a function of the roles alone, so it is cached, errors included."""
        known = self._rendered.get((roles, prompt))
        if known is None:
            name = self.tokenizer.name
            variables = {
                "messages": [{"role": r, "content": f"{_PAD}klypeSlot{i}End{_PAD}"} for i, r in enumerate(roles)],
                "add_generation_prompt": prompt,
                "bos_token": name(self.tokenizer.begin) or "",
                "eos_token": name(self.tokenizer.end) or "",
                "pad_token": name(self.tokenizer.pad) or "",
                "tools": None,
                "documents": None,
            }
            job = {"template": self.template, "variables": variables}
            try:
                known = render(job) if self.template == TEMPLATE else render_apart(job)
            except KlypeError as error:
                known = error
            if len(self._rendered) >= KEPT:
                self._rendered.clear()
            self._rendered[roles, prompt] = known
        if isinstance(known, KlypeError):
            raise KlypeError(known.message, known.hint)
        return known

    def _encode(self, parts: "Sequence[_Segment]") -> tuple[list[int], list[int]]:
        """Encodes the text between control tokens; a token is learnt when any of its characters is."""
        ids: list[int] = []
        learnt: list[int] = []
        run: list[str] = []  # of text that belongs together
        wanted = bytearray()  # 1 for each of its characters that is to be learnt
        open_answer = False  # an answer has been said and its end token has not come yet

        def say(text: str, learn: bool) -> None:
            run.append(text)
            wanted.extend(bytes([learn]) * len(text))

        def flush() -> None:
            text = "".join(run)
            if 1 in wanted:
                tokens, offsets = self.tokenizer.encode_with_offsets(text, first=not ids)
                learnt.extend(int(any(wanted[a : max(b, a + 1)])) for a, b in offsets)
            else:
                tokens = self.tokenizer.encode(text, first=not ids) if text else []
                learnt.extend([0] * len(tokens))
            ids.extend(tokens)
            run.clear()
            wanted.clear()

        for part in parts:
            if part.breaks:
                flush()
            if part.message is not None:
                say(part.text, part.learnt)
                open_answer = part.learnt
                continue
            at, own = 0, part.text
            for match in self._split.finditer(own):
                between = own[at : match.start()]
                say(between, part.learnt)
                flush()
                ids.append(self._control[match.group()])
                open_answer = open_answer and not between.strip()
                learnt.append(int(open_answer))
                open_answer, at = False, match.end()
                if ids[-1] in self._swallowing:
                    at = len(own) - len(own[at:].lstrip())
            say(own[at:], part.learnt)
            open_answer = open_answer and not own[at:].strip()
        flush()
        return ids, learnt


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment of the rendered text: the template's own (``message`` None) or the content of a message."""

    text: str
    message: int | None
    learnt: bool
    breaks: bool  # a prompt ends right before it, so that no token may cross this border
