"""Who has ranked how much, how far they agree with themselves and with each other, and what looks like a habit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from klype.examine.say import Say, visible
from klype.studio.frame import as_data, card, table
from klype.studio.visit import Visit, text_of
from klype.words import Words

MOST = 40
"""Annotators, and pairs of them, that are listed."""


def agreement(visit: Visit, summary: Mapping[str, Any]) -> None:
    """Everything of ``klype rank``'s summary, in words and a table. Nothing at all when nobody has ranked."""
    w, say = visit.words, visit.say
    people = summary["annotators"]
    if not people:
        return
    with card():
        text_of("h2", w("agreement"))
        alpha = summary["alpha"]
        with ui.element("div").classes("r-numbers"):
            for key, shown in (
                ("alpha", _figure(visit, alpha["ordinal"])),
                ("alpha_best", _figure(visit, alpha["nominal"])),
                ("opposed", _share(visit, summary["contradictions"]["opposed_pairs"])),
                ("cyclic", _share(visit, summary["contradictions"]["cyclic_triads"])),
            ):
                with ui.element("div"):
                    text_of("b", shown)
                    text_of("span", w(key))
        columns = [w(f"column_{key}") for key in ("who", "rankings", "none", "skipped", "seconds", "self")]
        rows = []
        for one in people[:MOST]:
            done = one["rankings"] + one["skipped"]
            pace = "–" if not one["seconds"] or not done else say.seconds(one["seconds"] / done)
            numbers = [say.count(one[key]) for key in ("rankings", "none_good", "skipped")]
            rows.append([visible(one["name"]), *numbers, pace, _figure(visit, one["with_oneself"])])
        with ui.element("div").classes("k-scroll") as scroll:
            scroll.props.update({"tabindex": 0, "role": "region", "aria-label": w("agreement")})
            table(columns, rows, numeric=range(1, 6))
        for text in habits(people, w, say):
            text_of("p", text, "k-warn")
        for pair in summary["between"][:MOST]:
            if pair["tau_b"]["value"] is not None:
                a, b = map(visible, pair["annotators"])
                text_of("p", w("between", a=a, b=b, tau=_figure(visit, pair["tau_b"])), "k-small")
        text_of("p", w("how_agreement"), "k-small")
        data = [
            [one["name"], one["by"], one["rankings"], one["none_good"], one["skipped"], one["seconds"],
             *(one["with_oneself"].get(k) for k in ("value", "low", "high", "n"))]
            for one in people
        ]  # fmt: skip
        names = ["annotator", "by", "rankings", "none_good", "skipped", "seconds", "tau_b", "low", "high", "n"]
        as_data(visit, "agreement", names, lambda: data)


def habits(people: Sequence[Mapping[str, Any]], w: Words, say: Say) -> list[str]:
    """Who puts what is shown first on top more often than chance explains, and mostly, in a sentence each."""
    return [
        w("habit", who=visible(one["name"]), **{key: say.count(one["first_shown"][key]) for key in ("times", "of")})
        for one in people
        if one["always_first"]
    ]


def _figure(visit: Visit, figure: Mapping[str, Any]) -> str:
    """Short: why there is none stands in the explanation."""
    if figure.get("value") is None:
        return "–"
    return visit.say.figure(figure)  # type: ignore[arg-type]


def _share(visit: Visit, share: Mapping[str, Any]) -> str:
    return "–" if share["value"] is None else visit.say.share(share["value"])
