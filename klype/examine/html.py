"""HTML reports: a title, a lead, and sections of texts, tables, pictures and glossaries, in every language.

The reports of runs, examinations, the article and experiments are such documents, rendered by one set of templates to a
single file that loads nothing from the network. What a model or a user wrote is inert in it: all text is escaped,
hidden characters are shown as code points, and the page's content security policy allows only its own scripts and no
connections.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from klype.errors import UsageError
from klype.examine.charts import DARK, LIGHT, PROBABILITY_EDGES, Picture, echarts_script, page_file, step_of
from klype.examine.measures import KNOWN
from klype.examine.run_facts import FigureFacts
from klype.examine.say import NBSP, Say, visible
from klype.words import LANGUAGES


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``kind``: verdict, small, note, quote, heading, or ""; ``mark``: a sign in front (ok, no, within or
    open); ``lead``: first words, in bold."""

    text: str
    kind: str = ""
    mark: str = ""
    lead: str = ""


@dataclass(frozen=True, slots=True)
class RichText:
    """The text of a cell or a name with a sign in front (``mark``, as of ``Text``), a small line ``below``, and a
    tooltip (``title``)."""

    text: str
    below: str = ""
    title: str = ""
    mark: str = ""


Cells = Sequence[str | RichText]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its header. ``kind``: a class of the style sheet; ``numeric``: indices of
    columns of numbers."""

    title: str
    columns: Cells
    rows: Sequence[Cells]
    kind: str = ""
    numeric: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Glossary:
    """Terms with descriptions. ``kind``: meanings, pairs or commands; ``summary``: what it is folded behind, if any."""

    rows: Sequence[tuple[str | RichText, str]]
    kind: str = "meanings"
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Formula:
    """The article's formula with sliders; ``s``: the model's own S, if known."""

    picture: Picture
    s: float | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A macro of ``parts.html.jinja`` (keys, legend, question, stages or temperatures) with its data."""

    macro: str
    data: Any = None


Part = Text | Table | Glossary | Picture | Formula | Block


@dataclass(frozen=True, slots=True)
class Section:
    """A section; ``name``: the target of links. Parts that are None are left out, and so are empty sections."""

    parts: Sequence[Part | None]
    title: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A document in one language. ``contents``: whether there are links to the sections below the lead; ``foot``: the
    beginning of the last line."""

    say: Say
    title: str
    lead: str
    sections: Sequence[Section]
    contents: bool = False
    foot: str = ""

    @property
    def visible_sections(self) -> list[Section]:
        """The sections that are not empty."""
        return [section for section in self.sections if any(section.parts)]

    @property
    def pictures(self) -> dict[str, Picture]:
        """All pictures by id, that of the formula included."""
        parts = [part.picture if isinstance(part, Formula) else part for s in self.sections for part in s.parts]
        return {part.id: part for part in parts if isinstance(part, Picture)}


def texts(paragraphs: Sequence[str], kind: str = "") -> list[Text]:
    return [Text(paragraph, kind) for paragraph in paragraphs]


def measures_of(found: Sequence[Mapping[str, FigureFacts]]) -> list[str]:
    """The names of all measures in ``found``, in the order of the table of measures, then those not in the table."""
    names = {name: None for figures in found for name in figures}
    return [*(name for name in KNOWN if name in names), *(name for name in names if name not in KNOWN)]


def figures(found: Sequence[Mapping[str, FigureFacts]], columns: Cells, say: Say) -> list[Part]:
    """A table with a row per measure and a column per element of ``found``; then, folded, the meanings of the measures
    and their judges."""
    names = measures_of(found)
    if not names:
        return []
    rows: list[Cells] = []
    meanings: list[tuple[str | RichText, str]] = []
    for name in names:
        known, title = KNOWN.get(name), say.measure(name)
        explained, unit = (say.help_text(name), say.unit(known.unit)) if known else ("", "")
        unit = unit if unit.casefold() != title.casefold() else ""
        rows.append([RichText(title, unit, explained), *(_value(one.get(name), name, say) for one in found)])
        if known and explained:
            by = next((say.judge_note(one[name]) for one in found if "judge" in one.get(name, {})), "")
            by = by or (say("exam.by_truth") if known.judge == "truth" else "")
            meanings.append((RichText(title, f"({by})" if by else ""), explained))
    return [
        Table("", [say("column.measure"), *columns], rows, "figures", range(1, 1 + len(columns))),
        Glossary(meanings, summary=say("exam.explained")),
    ]


def _value(figure: FigureFacts | None, name: str, say: Say) -> RichText:
    """A figure as a cell: its interval, or why there is none, on a line of its own, and n as a tooltip."""
    if figure is None:
        return RichText("")
    text = say.figure(figure, name) if figure["value"] is not None else "–"
    value, *rest = re.split(r" (?=[\[(])", text, maxsplit=1)
    # an interval must not wrap; a reason may
    below = "".join(rest).replace(" ", NBSP) if "[" in text else "".join(rest)
    below = " ".join(part for part in (below, say.bounds_note(figure, name)) if part)
    return RichText(value, below, f"n = {say.count(figure['n'])}" if figure.get("n") else "")


def render(page: Callable[[Say], Document], lang: str, title: str = "") -> str:
    """An HTML file with the document in every language, with its style, scripts and the data of its pictures.

    ``page`` makes the document in one language; ``lang`` is the one shown first. ``title``: the window's, by default
    the document's own. Raises UsageError for an unknown language.
    """
    if lang not in LANGUAGES:
        raise UsageError(f"There is no report in “{lang}”.", f"Languages: {', '.join(LANGUAGES)}.")
    environment = Environment(
        loader=PackageLoader("klype.examine", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "step_of": step_of, "notes": _notes}
    by_lang = {code: page(Say(code)) for code in LANGUAGES}
    pictures = {code: {key: asdict(p) for key, p in one.pictures.items()} for code, one in by_lang.items()}
    words = {  # the script fills in n
        code: {"zero": one.say("formula.zero"), "half": one.say("formula.half", n="{n}")}
        for code, one in by_lang.items()
    }
    spoken = {wish: code for code, row in LANGUAGES.items() for wish in (code, *row.also, *row.reads)}
    scripts = [echarts_script(), page_file("formats.js"), page_file("page.js")]
    # escaped, so that the JSON cannot end its script element
    told = {"charts": pictures, "words": words, "spoken": spoken}
    data = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        data = data.replace(char, f"\\u{ord(char):04x}")
    return environment.get_template("document.html.jinja").render(
        lang=lang,
        names={code: row.name for code, row in LANGUAGES.items()},
        documents=list(by_lang.values()),
        title=title or by_lang[lang].title,
        edges=PROBABILITY_EDGES,
        themes={"light": LIGHT, "dark": DARK},
        style=Markup(page_file("page.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        data=Markup(data),
    )


def _notes(answer: Mapping[str, Any], say: Say) -> list[str]:
    """The notes below an answer; the last one names its least likely word, so that colour is not the only sign."""
    found = [say(f"answers.{trait}") for trait in ("polite", "concise") if answer.get(trait)]
    if answer.get("score") is not None:
        found.append(say("answers.score", score=say.number(answer["score"], 1)))
    if answer.get("ended") == "length":
        found.append(say("answers.cut"))
    if tokens := [t for t in answer.get("tokens", []) if t["text"].strip() and step_of(t["p"])]:
        rarest = min(tokens, key=lambda token: token["p"])
        word = visible(rarest["text"].strip())
        return [" · ".join(found), say("answers.least", word=word, p=say.share(rarest["p"]))]
    return [" · ".join(found), ""]
