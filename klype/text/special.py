"""Which tokens begin, end and pad a text, as a checkpoint folder (of any maker) tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import KlypeError
from klype.jsons import parsed

HINT = "Fetch or save the model again."
MOST = 16 * 2**20
"""Bytes of a file of settings; parsed, they may take thirty times as much memory."""


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
    about = {**_beside(folder, "special_tokens_map.json"), **_beside(folder, "tokenizer_config.json")}
    config, generation = _beside(folder, "config.json"), _beside(folder, "generation_config.json")
    added = definition.get("added_tokens")
    sound = [t for t in added if isinstance(t, dict) and type(t.get("id")) is int] if isinstance(added, list) else []
    spelling = {t["id"]: t.get("content") for t in sound}
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
        try:
            return read_bounded(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    template = about.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def read_object(file: Path, most: int = MOST) -> dict[str, Any]:
    """An object from a JSON file. Raises KlypeError when it is missing, damaged, or larger than such a file ever is."""
    try:
        content = parsed(read_bounded(file, most).decode("utf-8"))
    except ValueError as error:
        raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    if not isinstance(content, dict):
        raise KlypeError(f"{file} is damaged: it holds no object.", HINT)
    return content


def read_bounded(file: Path, most: int = MOST) -> bytes:
    """What a regular file holds. Raises KlypeError when there is none, or more than ``most`` bytes."""
    try:
        if not file.is_file():  # a pipe or a device would never end
            raise FileNotFoundError
        with open(file, "rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise KlypeError(f"{file} is missing or cannot be read.", "Give the folder of a checkpoint.") from error
    if len(content) > most:
        raise KlypeError(f"{file} is larger than {most >> 20} MiB, which no such file is.", HINT)
    return content


def _beside(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name) if (folder / name).is_file() else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int]
