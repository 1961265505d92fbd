"""Preferences as JSONL: klype's own ranked lists, which are lossless, and the pairs that other trainers read.

- ranked: question, candidates, order, annotator, when, and what else is known;
- trl: prompt, chosen, rejected, as messages where the question had messages before it;
- sharegpt: conversations, chosen, rejected as messages (from, value);
- alpaca: system, history, instruction, input, chosen, rejected.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from klype import durable
from klype.data.rows import NO_MESSAGES, groups_of, ranking_of, said_before
from klype.errors import KlypeError, UsageError, writing_to
from klype.jsons import parse
from klype.preferences import records
from klype.preferences.annotators import ranks
from klype.preferences.records import Candidate, Entry, RankingItem, by_name
from klype.values import Question, Ranking

Format = Literal["ranked", "trl", "sharegpt", "alpaca"]
FORMATS: tuple[Format, ...] = get_args(Format)
Row = dict[str, Any]


def export(path: Path, entries: Iterable[Entry], form: Format) -> int:
    """Writes the file atomically and returns the number of rows. Raises UsageError where it cannot be written."""
    rows = [row for entry in entries for row in rows_of(entry, form)]
    with writing_to(path, "Choose another file.", UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, "".join(f"{records.dumps(row)}\n" for row in rows))
    return len(rows)


def read(path: Path, annotator: str = "") -> list[Entry]:
    """Reads the entries of a file in any of the formats, recognised by each row's keys; ``annotator``: for rows that
    name none, by default the file's name.

    A last line that is incomplete, as a killed writer leaves it, is ignored. Raises KlypeError for any other bad row,
    naming its line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row: Any = None
        try:
            row = parse(line)
        except ValueError:
            if number == len(lines) > 1:
                break
        known = annotator or path.name
        entry = entry_from(row, str(number), known) if isinstance(row, dict) else "is not a JSON object"
        if isinstance(entry, str):
            raise KlypeError(f"{path} line {number} {entry}.", "Fix or remove the line.")
        found.append(entry)
    return found


def rows_of(entry: Entry, form: Format) -> list[Row]:
    """The rows of an entry: one for a ranked list, else one per ordered pair (ties and skips have none)."""
    if form == "ranked":
        return [ranked_row(entry)]
    if entry.kind == "skip":
        return []
    question, found = entry.asked.question, pairs(entry.ranking())
    said = [*question.extra.get("before", ()), {"role": "user", "content": question.prompt}]
    answer: Callable[[str], Any] = str
    if form == "alpaca":
        row = _alpaca(said) if found else {}
    elif form == "sharegpt":
        row, answer = {"conversations": [_turn(m["role"], m["content"]) for m in said]}, partial(_turn, "assistant")
    elif len(said) == 1:
        row = {"prompt": question.prompt}
    else:
        row, answer = {"prompt": said}, lambda text: [{"role": "assistant", "content": text}]
    return [{**row, "chosen": answer(good), "rejected": answer(poor)} for good, poor in found]


def _turn(role: str, text: str) -> Row:
    return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}


def _alpaca(said: Sequence[Mapping[str, str]]) -> Row:
    """The columns of a conversation: its last message is the instruction, the earlier ones are system and history.
    Raises UsageError where earlier messages are not pairs of question and answer."""
    led = said[0]["role"] == "system"
    earlier = said[led:-1]
    if [message["role"] for message in earlier] != ["user", "assistant"] * (len(earlier) // 2):
        raise UsageError(
            f"Alpaca's format cannot hold the messages before “{said[-1]['content'][:60]}”.",
            "Write them with --format trl or sharegpt.",
        )
    history = [[earlier[i]["content"], earlier[i + 1]["content"]] for i in range(0, len(earlier), 2)]
    row: Row = {"instruction": said[-1]["content"], "input": ""}
    return row | ({"system": said[0]["content"]} if led else {}) | ({"history": history} if history else {})


def pairs(ranking: Ranking) -> list[tuple[str, str]]:
    """Every pair of candidates that the ranking orders, the better one first."""
    places, texts = ranks(ranking), ranking.candidates
    return [(texts[i], texts[j]) for i, better in enumerate(places) for j, worse in enumerate(places) if better < worse]


def ranked_row(entry: Entry) -> Row:
    """A lossless row: the question, the order, the annotator, and every other field that is not at its default."""
    question = entry.asked.question
    row: Row = {"id": question.id, "question": question.question, "context": question.context}
    row["candidates"] = [c.text for c in entry.asked.candidates]
    row |= {"order": [list(group) for group in entry.order], "annotator": entry.annotator, "when": entry.when}
    sources = [_source(c) for c in entry.asked.candidates]
    kept: Row = {"answers": list(question.answers), "choices": list(question.choices), "extra": question.extra}
    kept |= {"sources": sources if any(sources) else [], "again": entry.again}
    kept |= {
        "by": entry.by if entry.by != by_name(entry.annotator) else "",
        "part": entry.asked.part if entry.asked.part != "train" else "",
        "kind": entry.kind if entry.kind != "order" else "",
    }
    kept = {name: value for name, value in kept.items() if value}
    return row | kept | ({} if entry.seconds is None else {"seconds": entry.seconds})


def entry_from(row: Mapping[str, Any], identity: str, annotator: str = "") -> Entry | str:
    """The entry of a row in any format, or what is wrong with it, phrased to follow the row's name."""
    if "candidates" in row and "order" in row and isinstance(row.get("question"), str):
        return _parse_entry(row, identity, annotator)
    found = ranking_of(row, identity, annotator)
    if isinstance(found, str):
        return found
    if "id" not in row:  # the pairs of one question belong together
        texts = [*(m["content"] for m in found.question.extra.get("before", ())), found.question.prompt]
        digest = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        found = replace(found, question=replace(found.question, id=f"p{digest[:8]}"))
    return records.entry_of(found)


def _parse_entry(row: Mapping[str, Any], identity: str, annotator: str) -> Entry | str:
    texts, seconds = row["candidates"], row.get("seconds")
    kind, part = row.get("kind", "order"), row.get("part", "train")
    answers, choices, extra = row.get("answers") or [], row.get("choices") or [], row.get("extra") or {}
    context, who = str(row.get("context") or ""), str(row.get("annotator") or annotator)
    by, plain = row.get("by") or by_name(who), isinstance(texts, list) and all(isinstance(t, str) for t in texts)
    order = groups_of(row["order"], 0 if kind == "skip" and not row["order"] else len(texts) if plain else 0)
    extra = said_before(extra) if (typed := isinstance(extra, dict)) else {}
    for fine, wrong in (
        (plain and texts, "has candidates that are not a list of texts"),
        (row["question"].strip() or context.strip(), "has no question"),
        (kind in records.KINDS and part in records.PARTS, "has a kind or a part that is not known"),
        (order is not None and all(order), "has an order that does not name each candidate once"),
        (typed and isinstance(answers, list) and isinstance(choices, list),
         "has answers, choices or extra of another type"),
        (extra is not None, NO_MESSAGES),
        (by in records.BYS and isinstance(seconds, int | float | None),
         "has a kind of annotator or a time that is not known"),
    ):  # fmt: skip
        if not fine:
            return wrong
    assert order is not None and extra is not None  # noqa: PT018
    candidates = []
    try:
        for text, source in zip(texts, row.get("sources") or [{}] * len(texts), strict=True):
            trace = records.trace_from(source["trace"]) if source.get("trace") else None
            about = str(source.get("model", "")), source.get("temperature"), str(source.get("author", ""))
            candidates.append(Candidate(text, *about, trace))
    except (KeyError, TypeError, ValueError, AttributeError):
        return "has sources that do not fit its candidates"
    question = Question(str(row.get("id", identity)), row["question"], context, tuple(answers), tuple(choices), extra)
    again, when = bool(row.get("again")), str(row.get("when") or "")
    return Entry(RankingItem(question, tuple(candidates), part), order, who, kind, by, when, seconds, again)


def _source(candidate: Candidate) -> Row:
    trace = None if candidate.trace is None else records.trace_row(candidate.trace)
    row = {"model": candidate.model, "author": candidate.author, "trace": trace}
    kept = {name: value for name, value in row.items() if value}
    return kept | ({} if candidate.temperature is None else {"temperature": candidate.temperature})
