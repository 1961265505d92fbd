"""The comparison as a plain SVG picture: bars of tokens per second with their spread, a panel per measurement."""

from __future__ import annotations

from html import escape
from typing import Any

PANELS = (
    ("prefill", "Reading the prompt"),
    ("decode", "One stream"),
    ("n64", "64 samples"),
    ("n256", "256 samples"),
)
WIDTH, LABEL, BAR, ROW, GAP = 760, 180, 470, 22, 44
OURS, THEIRS = "#1f5f8b", "#9a9a9a"


def picture(document: dict[str, Any]) -> str:
    """An SVG document; engines without a figure are left out of a panel."""
    parts: list[str] = []
    y = 34
    for key, title in PANELS:
        rows = [(row["engine"], row[key]) for row in document["rows"] if row[key]["value"] is not None]
        if not rows:
            continue
        rows.sort(key=lambda row: -row[1]["value"])
        parts.append(_text(12, y, f"{title}: tokens a second", weight="bold"))
        longest = max(figure["value"] if figure["high"] is None else figure["high"] for _, figure in rows)
        for engine, figure in rows:
            y += ROW
            parts += _bar(engine, figure, longest, y)
        y += GAP
    machine = document["machine"]
    parts.append(_text(12, y, f"{document['model']}; {machine['processor']}, {machine['threads']} threads"))
    y += 18
    style = "font-family:sans-serif;font-size:13px;background:#fff"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" style="{style}">'
    return "\n".join([head, f"<title>{escape(document['model'])}: generation side by side</title>", *parts, "</svg>\n"])


def _bar(engine: str, figure: dict[str, Any], longest: float, y: int) -> list[str]:
    colour = OURS if engine.startswith("klype") else THEIRS
    ends = [figure["value"] if figure[k] is None else figure[k] for k in ("value", "low", "high")]
    width, low, high = (end / longest * BAR for end in ends)
    middle = y - 5
    return [
        _text(12, y, engine),
        f'<rect x="{LABEL}" y="{y - 13}" width="{width:.1f}" height="15" fill="{colour}"/>',
        f'<path d="M{LABEL + low:.1f} {middle}H{LABEL + high:.1f}" stroke="#000" stroke-width="1.5"/>',
        _text(LABEL + high + 8, y, f"{figure['value']:,.0f}"),
    ]


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}">{escape(text)}</text>'
