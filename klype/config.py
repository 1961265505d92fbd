"""Settings from defaults, a TOML file and dotted options; an unknown key is an error that names a similar one."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from klype.errors import UsageError
from klype.option import Options, flag_of

S = TypeVar("S", bound=BaseModel | Options)


class Settings(BaseModel):
    """The base of settings in files: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def load(kind: type[S], file: Path | None = None, overrides: Iterable[str] = ()) -> S:
    """Loads settings: defaults, overridden by the TOML file, overridden by ``overrides`` such as ``pretrain.rows=32``.
    Raises UsageError for an unknown key or an invalid value."""
    read = read_toml(file) if file else {}
    values = with_overrides(read, overrides)
    try:
        return make(kind, values)
    except UsageError:
        if file:
            make(kind, read, f"{file}: ")  # if the file itself is wrong, the error names it
        raise


def make(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """The settings with these values. Raises UsageError, which names options as they are typed, for invalid ones.

    ``where``: what the message begins with ("recipe.toml: ").
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the values with dotted ``overrides`` applied. Raises UsageError where one is malformed."""
    new = deepcopy(dict(values))
    for override in overrides:
        keys, value = parse_override(override)
        inner = new
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"'{override}': {key} is a value, not a section.")
        inner[keys[-1]] = value
    return new


def schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a settings class."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}


def read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}).") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}.") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """``a.b=3`` → (["a", "b"], 3). The value is parsed as TOML, or else taken as a string."""
    name, equals, raw = text.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"'{text}' is not of the form key=value.")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")
    except tomllib.TOMLDecodeError:
        return keys, raw.strip()
    return keys, value["value"] if len(value) == 1 else raw.strip()


def toml_table(values: Mapping[str, float]) -> str:
    """Numbers by name as an inline TOML table, for the value of an override."""
    rows = (f"{json.dumps(name, ensure_ascii=False)} = {number!r}" for name, number in values.items())
    return f"{{{', '.join(rows)}}}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to this one; "" if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def _explain(kind: type[Any], error: ValidationError, where: str) -> UsageError:
    def spell(name: str) -> str:
        return flag_of(kind, name) if issubclass(kind, Options) else repr(name)

    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys_at(kind, path[:-1])
        near = nearest(path[-1], known)
        hint = f"Did you mean {spell('.'.join([*path[:-1], near]))}?" if near else f"Known here: {', '.join(known)}."
        return UsageError(f"{where}There is no setting {spell(name)}.", hint)
    if first["type"] == "missing":
        return UsageError(f"{where}The setting {spell(name)} is missing.")
    what = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    if not name:
        return UsageError(f"{where}{what}.")
    what = what.removeprefix("Input should be ").removeprefix("a valid ")
    given = f"{first['input']:g}" if isinstance(first["input"], float) else repr(first["input"])
    return UsageError(f"{where}{spell(name)} should be {what} (it is {given}).")


def _keys_at(kind: type[Any], path: list[str]) -> list[str]:
    """The keys that exist at a path, in which indices of lists and keys of mappings are skipped."""
    if issubclass(kind, Options):
        return [field.name for field in fields(kind)]
    for key in path:
        field = kind.model_fields.get(key)
        kind = (field and _model_of(field.annotation)) or kind
    return [field.alias or name for name, field in kind.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_of, get_args(annotation)) if m is not None), None)
