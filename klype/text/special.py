"""Which tokens begin, end and pad a text, as a checkpoint folder (of any maker) tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import KlypeError


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Spellings of the tokens that begin, end and pad a text; ids of all that end an answer; the chat template."""

    begin: str | None
    end: str | None
    pad: str | None
    ends: tuple[int, ...] = ()
    template: str | None = None


def read_special_tokens(folder: Path, definition: dict[str, Any]) -> SpecialTokens:
    """From tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json, chat_template.jinja."""
    about = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    spelling = {t["id"]: t["content"] for t in definition.get("added_tokens", ())}
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]

    def named(name: str) -> str | None:
        token = about.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            ids = [*_ids(generation.get(f"{name}_id")), *_ids(config.get(f"{name}_id"))]
            token = next((spelling[i] for i in ids if i in spelling), None)
        return str(token) if token is not None else None

    begin, end, pad = named("bos_token"), named("eos_token"), named("pad_token")
    return SpecialTokens(begin, end, pad, tuple(dict.fromkeys(ends)), _template(folder, about))


def _template(folder: Path, about: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = about.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise KlypeError(f"{file} cannot be read as JSON: {error}.", "Fetch the file again.") from error
    if not isinstance(content, dict):
        raise KlypeError(f"{file} is not a JSON object.", "Fetch the file again.")
    return content


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int)]
