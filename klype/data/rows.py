"""Conversations, rankings and questions from rows of well-known formats."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klype.data.files import UNPACKED, Paths, files_of, names
from klype.data.readers import TABLES, BadRows, ReadOptions, place, read_rows
from klype.errors import KlypeError, UsageError
from klype.values import Question, Ranking

# messages with role (system, user, assistant) and content; the last is an answer
Conversation = list[dict[str, str]]

_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "prompter": "user"}


def read_instructions(paths: Paths, bad: BadRows | None = None, unpacked: int = UNPACKED) -> list[Conversation]:
    """Conversations from rows of these formats, without exact duplicates.

    messages · conversations (ShareGPT: from, value) · instruction, input, output · question, answer (with context) ·
    prompt, completion (or response). A column ``system`` and Alpaca's ``history`` are put before them. Raises
    KlypeError for a row without an answer, naming file and row.
    """
    found: dict[tuple[tuple[str, str], ...], Conversation] = {}
    bad = bad if bad is not None else BadRows()
    for file, number, row in _rows(paths, bad, unpacked):
        conversation = conversation_of(row)
        roles = [m["role"] for m in conversation or () if m["role"] != "system" and m["content"].strip()]
        # an answer counts only after a question
        if conversation is None or "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            bad.add(f"{place(file, number)} has no question with an answer.")
        else:
            found.setdefault(tuple((m["role"], m["content"]) for m in conversation), conversation)
    if not found:
        raise KlypeError(f"There are no instructions in {names(paths)}.", "A row needs a question and an answer.")
    return list(found.values())


def read_preferences(paths: Paths, bad: BadRows | None = None) -> list[Ranking]:
    """Rankings from rows of these formats, without exact duplicates.

    prompt, chosen, rejected (text or messages, with or without the prompt in them) · conversations, chosen, rejected
    (ShareGPT) · instruction, input, chosen, rejected · question or prompt with candidates and order (or candidates
    best first). A system prompt and earlier turns become the question's ``extra["before"]``. Rows of kind "skip" are
    left out. The annotator is the file's name when the row does not name one.
    """
    found: dict[tuple[Any, ...], Ranking] = {}
    bad = bad if bad is not None else BadRows()
    for file, number, row in _rows(paths, bad):
        if row.get("kind") == "skip":
            continue
        ranking = ranking_of(row, str(number), file.name)
        if not isinstance(ranking, str):
            texts = {text.strip() for text in ranking.candidates}
            ranking = "has no two answers to compare" if "" in texts else SAME if len(texts) == 1 else ranking
        if isinstance(ranking, str):
            bad.add(f"{place(file, number)} {ranking}.")
        else:
            before = tuple((m["role"], m["content"]) for m in ranking.question.extra.get("before", ()))
            found.setdefault((before, ranking.question.prompt, ranking.candidates, ranking.order), ranking)
    if not found:
        raise KlypeError(f"There are no preferences in {names(paths)}.", "A row needs a prompt, chosen and rejected.")
    return list(found.values())


def read_questions(paths: Paths, bad: BadRows | None = None) -> list[Question]:
    """Questions from rows with question and, optionally, context, answers (or answer), choices, id (made unique).

    Other columns go into the question's ``extra``, together with the content of a column of that name. Raises
    UsageError, naming file and row, since a file of questions is always one that a user named.
    """
    bad = bad if bad is not None else BadRows()
    return _questions(((place(file, n), n, row) for file, n, row in _rows(paths, bad)), bad, names(paths))


def questions_from(rows: Sequence[str | Mapping[str, Any]]) -> list[Question]:
    """Questions from texts, or from rows as ``read_questions`` reads them. Raises UsageError, naming the place in the
    list."""
    as_rows = (dict(row) if isinstance(row, Mapping) else {"question": row} for row in rows)
    numbered = ((f"Question {number}", number, row) for number, row in enumerate(as_rows, 1))
    return _questions(numbered, BadRows(skip=None), "the list")


def _questions(rows: Iterable[tuple[str, int, dict[str, Any]]], bad: BadRows, source: str) -> list[Question]:
    """Questions from rows, each with its name in messages and its number."""
    try:
        found: dict[str, Question] = {}
        for where, number, row in rows:
            text = row.get("question", row.get("instruction", row.get("prompt")))
            answers, choices = row.get("answers", row.get("answer", [])), row.get("choices") or []
            answers = [answers] if isinstance(answers, str) else answers or []
            context = row.get("context") or row.get("input") or ""
            known = ("question", "context", "answers", "answer", "choices", "id", "extra")
            inner = row["extra"] if isinstance(row.get("extra"), dict) else {}
            extra = said_before(inner | {name: value for name, value in row.items() if name not in known})
            if text is not None and not isinstance(text, str):
                bad.add(f"{where} has a question that is not text.")
            elif text is None or not text.strip():
                bad.add(f"{where} has no question.", 'A row needs "question".')
            elif not isinstance(context, str):
                bad.add(f"{where} has a context that is not text.")
            elif not strings(answers) or not strings(choices):
                bad.add(f"{where} has answers or choices that are not lists of text.")
            elif extra is None:
                bad.add(f"{where} {NO_MESSAGES}.")
            else:
                name = str(row.get("id") or number)
                name = name if name not in found else f"{name}-{number}"
                found[name] = Question(name, text.strip(), context, tuple(answers), tuple(choices), extra)
        if not found:
            raise KlypeError(f"There are no questions in {source}.", 'A row needs "question".')
        return list(found.values())
    except KlypeError as error:
        raise UsageError(error.message, error.hint) from None


def conversation_of(row: Mapping[str, Any]) -> Conversation | None:
    """The messages of a row; None when it has none of the known formats."""
    for name in ("messages", "conversations", "conversation"):
        if name in row:
            found = _messages(row[name])
            return None if found is None else _with_earlier_turns(row, found)
    for question, answers in (
        ("instruction", ("output", "response", "answer")),
        ("question", ("answer", "answers", "response")),
        ("prompt", ("completion", "response", "answer", "output")),
    ):
        asked = row.get(question)
        said = next((row[n] for n in answers if row.get(n)), None)
        said = said[0] if isinstance(said, list) and said and isinstance(said[0], str) else said
        if isinstance(asked, list) or isinstance(said, list):
            found = (_messages(asked) or []) + (_messages(said) or [])
            return _with_earlier_turns(row, found) if found else None
        if isinstance(asked, str) and isinstance(said, str) and asked.strip():
            messages = [{"role": "user", "content": _full_question(row, asked)}, {"role": "assistant", "content": said}]
            return _with_earlier_turns(row, messages)
    return None


def _with_earlier_turns(row: Mapping[str, Any], messages: Conversation) -> Conversation:
    """The messages after the system prompt and the earlier turns that the row has in columns of their own."""
    system, history = row.get("system"), row.get("history") or []
    earlier: Conversation = []
    for turn in history if isinstance(history, list) else []:
        if isinstance(turn, list) and len(turn) == 2 and strings(turn):
            earlier += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    if isinstance(system, str) and system.strip() and messages[:1] != [{"role": "system", "content": system}]:
        earlier.insert(0, {"role": "system", "content": system})
    return [*earlier, *messages]


SAME = "has the same text as chosen and rejected"
NO_MESSAGES = "has something else than messages in before"


def said_before(extra: Mapping[str, Any]) -> dict[str, Any] | None:
    """A question's ``extra`` with messages as its ``before``; None when that is a list of something else. What is not a
    list is of a column that happens to have this name, and is left out."""
    rest = {name: value for name, value in extra.items() if name != "before"}
    before = extra.get("before")
    if not isinstance(before, list) or not before:
        return rest
    messages = _messages(before)
    return None if messages is None else {**rest, "before": messages}


def ranking_of(row: Mapping[str, Any], identity: str, annotator: str) -> Ranking | str:
    """The ranking of a row, or what is wrong with it, in words that follow the row's name."""
    names = ("prompt", "instruction", "question", "conversations", "messages")
    asked = next((row[n] for n in names if row.get(n)), None)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, dict) and isinstance(rejected, dict):
        chosen, rejected = [chosen], [rejected]  # ShareGPT: one message each
    said: Conversation = _messages(asked) or [] if isinstance(asked, list) else []
    if isinstance(chosen, list) and isinstance(rejected, list):
        # what two lists of messages share, and the answer that each of them ends in
        good, poor = _messages(chosen) or [], _messages(rejected) or []
        chosen, rejected = (m[-1]["content"] if m and m[-1]["role"] == "assistant" else None for m in (good, poor))
        said = said or good[:-1]
    before: Conversation = []
    if said and said[-1]["role"] == "user":
        *before, last = said
        asked = last["content"]
    if not isinstance(asked, str) or not asked.strip():
        return "has no prompt"
    order: Any = [0, 1]
    if isinstance(chosen, str) and isinstance(rejected, str):
        candidates = [chosen, rejected]
        if chosen == rejected:
            return SAME
    else:
        candidates = next((row[n] for n in ("candidates", "ranked", "responses", "completions") if row.get(n)), [])
        order = row.get("order") or row.get("ranking")
    if not strings(candidates) or len(candidates) < 2:
        return "has no two answers to compare"
    groups = groups_of(order or list(range(len(candidates))), len(candidates))
    if groups is None:
        return "has an order that does not name each candidate once"
    # of a prompt in hh-rlhf's form ("Human: … Assistant:") the human's words when there is one turn
    turn = re.fullmatch(r"\s*Human: (.*?)\s*Assistant:\s*", asked, re.DOTALL)
    asked = turn.group(1) if turn and "\n\nAssistant:" not in turn.group(1) else asked
    context, text = ("", _full_question(row, asked)) if "context" not in row else (str(row["context"]), asked)
    extra = said_before(row["extra"] if isinstance(row.get("extra"), dict) else {})
    if extra is None:
        return NO_MESSAGES
    before = _with_earlier_turns(row, extra.get("before") or before)
    extra |= {"before": before} if before else {}
    question = Question(str(row.get("id", identity)), text.strip(), context, extra=extra)
    who = str(row.get("annotator") or annotator)
    return Ranking(question, tuple(candidates), groups, who, str(row.get("when") or ""))


def groups_of(order: Any, n: int) -> tuple[tuple[int, ...], ...] | None:
    """An order of ``n`` candidates as groups of tied ones; None if it does not name each of them once."""
    groups = [i if isinstance(i, list) else [i] for i in order] if isinstance(order, list) else []
    named = [i for group in groups for i in group]
    complete = all(type(i) is int for i in named) and sorted(named) == list(range(n))
    return tuple(map(tuple, groups)) if complete else None


def _rows(paths: Paths, bad: BadRows, unpacked: int = UNPACKED) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for file in files_of(paths, TABLES):
        for number, row in read_rows(file, ReadOptions(bad=bad, unpacked=unpacked)):
            yield file, number, row


def _messages(value: Any) -> Conversation | None:
    """Chat or ShareGPT messages with the usual names for roles; None when they are neither."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: Conversation = []
    for message in value if isinstance(value, list) else []:
        if not isinstance(message, dict):
            return None
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        role = _SPEAKERS.get(str(role), role)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            return None
        messages.append({"role": str(role), "content": content})
    return messages or None


def _full_question(row: Mapping[str, Any], asked: str) -> str:
    """The question with the row's context before it or its input after it."""
    if isinstance(row.get("context"), str) and row["context"].strip():
        return f"{row['context'].strip()} {asked.strip()}"
    if isinstance(row.get("input"), str) and row["input"].strip():
        return f"{asked.strip()}\n{row['input'].strip()}"
    return asked.strip()


def strings(value: Any) -> bool:
    """Whether the value is a list or tuple of strings."""
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
