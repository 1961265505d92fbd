"""``report.html`` of an examination: made to be read. One file, both languages, nothing fetched from the net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from klype.answers.tree import Tree
from klype.examine import html
from klype.examine.answer_pictures import flow, pictures
from klype.examine.answer_pictures import tree as tree_picture
from klype.examine.document import drawn
from klype.examine.evidence import OTHER_MANNERS
from klype.examine.html import Block, Entry, Formula, Part, Section, Text, texts
from klype.examine.say import Say, is_share
from klype.words import LANGUAGES

Document = Mapping[str, Any]


def write(folder: Path, document: Document, lang: str = "en") -> Path:
    """Writes ``report.html`` into an existing folder. Errors: an unknown language, an unwritable folder."""
    return html.write(folder / "report.html", render(document, lang))


def render(document: Document, lang: str = "en") -> str:
    return html.render([_page(document, Say(code)) for code in LANGUAGES], lang, document["model"])


def tree_page(tree: Tree, question: str, decode: Callable[[Sequence[int]], str], lang: str) -> str:
    """A page of its own for one tree of answers."""
    one = {
        "question": question,
        "answers": [{"text": a.text, "low": a.low, "high": a.high} for a in tree.answers[:50]],
        "unexplored": tree.unexplored,
        "branches": drawn(tree, decode, 20),
    }
    document, pages = {"trees": [one]}, []
    for say in map(Say, LANGUAGES):
        shown = Section([tree_picture(document, say), flow(document, say)])
        pages.append(html.Document(say, say("exam.tree_title"), say("quote", text=question), [shown]))
    return html.render(pages, lang, question)


def verdict(document: Document, say: Say) -> list[str]:
    """A paragraph in plain words with figures; nothing is said that was not measured."""
    known = document["figures"][document["main"]]
    figures = {k: f for k, f in known.items() if f["value"] is not None}
    t, n = say.plain(float(document["main"])), document["questions"]
    without: dict[str, None] = {}

    def said(name: str) -> str:
        """A figure in a sentence; why it has no interval is said once, at the end."""
        figure = figures[name]
        if figure.get("low") is not None or not figure.get("why"):
            return say.figure(figure, name)
        without[say.why(figure["why"])] = None
        return say.value(figure, name) if is_share(figure, name) else say.plain(figure["value"])

    out = [say("exam.asked" if n != 1 else "exam.asked_one", n=n, t=t)]
    if document.get("skipped"):
        out.insert(0, say("exam.skipped", n=document["skipped"]))
    if "right" in figures:
        out.append(say("exam.right", right=said("right"), judge=say.judge(document["judge"])))
    if "word_for_word" in figures:
        out.append(say("exam.word_for_word", same=said("word_for_word")))
    out[-1] = _ended(out[-1])
    if figures.get("undecided", {}).get("value"):
        out.append(say("exam.undecided", share=said("undecided")))
    if "same_meaning" in figures:
        out.append(say("exam.same", same=said("same_meaning")))
    second = []
    second += feedback(document, say)
    if "fork" in figures:
        second.append(say("exam.forks", share=said("fork"), n=figures["fork"]["n"]))
        if "fork_word" in figures:
            second.append(say("exam.fork_word", word=said("fork_word")))
        second[-1] = _ended(second[-1])
    if "s" in figures:
        second.append(say("exam.s", s=said("s")))
    if known.get("calibration", {}).get("why") == OTHER_MANNERS:
        second.append(say("exam.other_manners"))
    if "best_temperature" in figures:
        second.append(say("exam.best", t=said("best_temperature")))
    if without:
        (second or out).append(say("exam.without", why="; ".join(without)))
    return [" ".join(sentences) for sentences in (out, second) if sentences]


def _ended(said: str) -> str:
    """With a full stop where what it would go on with was not measured."""
    return said if said.endswith(".") else f"{said.rstrip(',;:')}."


def feedback(document: Document, say: Say) -> list[str]:
    """What a wrong word brings beside a right one as rare, errors counted by edit distance: the cautious figure."""
    found = document.get("after_error", {}).get(document["main"])
    if not found or "pairs" not in found:
        return []
    pairs, up = found["pairs"], found["cautious"][0]
    counts = {"n": say.count(pairs["matched"]), "dropped": say.count(pairs["dropped"])}
    if up["value"] is None:
        return [say("exam.rare_few", **counts)]
    low, high = up.get("low"), up.get("high")  # without an interval it may be anything
    key = "rare" if (low or 0) > 0 else "rare_less" if (high or 0) < 0 else "rare_open"
    out = [say(f"exam.{key}", up=say.figure(up), ratio=say.number(pairs["ratio"][1], 1), **counts)]
    further = {name: say.figure(figure) for name, figure in found["further"].items()}
    if "wrong_edits" in further:
        out.append(say("exam.further", m=len(found["cautious"]), **further))
    return out


def measured(document: Document) -> list[str]:
    """The measures that it has figures of, in the table's order."""
    return html.measures_of(list(document["figures"].values()))


def _page(document: Document, say: Say) -> html.Document:
    shown, time, figures = pictures(document, say), document["time"], document["figures"]
    asked = [
        Entry(f"τ = {say.plain(float(t))}", say("exam.asked_each", n=say.count(document["questions"]),
                                                each=1 if t == "0" else document["settings"]["n"]))
        for t in figures
    ]  # fmt: skip
    missing = ", ".join(say.measure(name) for name in document["missing"])
    seconds = say("exam.time", seconds=say.seconds(time["seconds"]), passes=say.count(time["passes"]))
    measured: list[Part | None] = [
        Text(say("exam.figures_how")),
        *html.figures(list(figures.values()), asked, say, document["judge"]),
        Text(say("exam.not_measured", names=missing), "small") if missing else None,
        shown.get("temperatures"),
    ]
    divergence = [shown.get(name) for name in ("survival", "feedback", "calibration", "selective")]
    examples = [Block("question", one) for one in document["examples"]]
    answers: list[Part] = [Text(say("exam.answers_how")), Block("legend"), *examples] if examples else []
    sections = [
        Section(texts(verdict(document, say), "verdict"), say("section.verdict"), "verdict"),
        Section(measured, say("exam.figures"), "figures"),
        Section(divergence, say("section.divergence"), "divergence"),
        Section([shown.get("tree"), shown.get("flow")], say("exam.trees"), "trees"),
        Section(answers, say("exam.answers"), "answers"),
        Section([Formula(shown["formula"], figures[document["main"]].get("s", {}).get("value"))],
                say("exam.formula"), "formula"),
        Section([shown.get("cost"), Text(seconds, "small")], say("section.cost"), "cost"),
    ]  # fmt: skip
    return html.Document(say, say("exam.title"), document["model"], sections, contents=True)
