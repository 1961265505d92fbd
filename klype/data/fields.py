"""Which fields of a row are its text."""

from __future__ import annotations

from typing import Any


def row_text(row: dict[str, Any], name: str = "") -> str | None:
    """The text of a row: the named field; else title and text (or content, body …); else all fields of text.

    Lists of strings are joined as paragraphs. None when there is no text.
    """
    if name:
        return _joined(row.get(name))
    main = next((t for n in ("text", "content", "body", "document", "tekst") if (t := _joined(row.get(n)))), None)
    if main:
        title = _joined(row.get("title")) or _joined(row.get("tittel"))
        return main if not title or main.lstrip().startswith(title) else f"{title}\n\n{main}"
    ignored = ("id", "uid", "licence", "license", "url", "lang", "language", "credits", "source", "split", "word_class")
    parts = [_joined(value) for name, value in row.items() if name not in ignored and not name.startswith("credits")]
    return "\n".join(part for part in parts if part) or None


def of_language(row: dict[str, Any], language: str) -> dict[str, Any]:
    """Without the fields that are the same thing in other languages."""
    own = {name.removesuffix(f"_{language}") for name in row if language and name.endswith(f"_{language}")}
    return (
        {n: v for n, v in row.items() if n.endswith(f"_{language}") or n.rpartition("_")[0] not in own} if own else row
    )


def _joined(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip("\n") or None
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "\n\n".join(value)
    return None
