"""Settings: the order of sources, and one sentence for everything that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from klype.config import Settings, load, nearest, parse_override, schema
from klype.errors import UsageError


class Inner(Settings):
    steps: int = Field(default=10, gt=0)
    rate: float = 0.5


class Outer(Settings):
    name: str = "world"
    pretrain: Inner = Inner()
    more: tuple[Inner, ...] = ()


def test_defaults_then_file_then_options(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "mine"\n[pretrain]\nsteps = 20\nrate = 0.25\n', encoding="utf-8")
    assert load(Outer) == Outer()
    assert load(Outer, file) == Outer(name="mine", pretrain=Inner(steps=20, rate=0.25))
    assert load(Outer, file, ["pretrain.steps=30"]).pretrain == Inner(steps=30, rate=0.25)
    assert load(Outer, None, ["pretrain.steps=30", "pretrain.steps=40"]).pretrain.steps == 40


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pretrain.stepz=3"], "There is no setting 'pretrain.stepz'. Did you mean 'pretrain.steps'?"),
        (["pretrian.steps=3"], "There is no setting 'pretrian'. Did you mean 'pretrain'?"),
        (["zzz=3"], "There is no setting 'zzz'. Known here: name, pretrain, more."),
        (["pretrain.steps=0"], "'pretrain.steps' should be greater than 0 (it is 0)."),
        (["pretrain.steps=many"], "'pretrain.steps' should be integer"),
        (["more=[{stepz=1}]"], "There is no setting 'more.0.stepz'. Did you mean 'more.0.steps'?"),
        (["pretrain"], "'pretrain' is not of the form key=value"),
        (["=3"], "'=3' is not of the form key=value"),
        (["name=a", "name.x=3"], "'name.x=3': name is a value, not a section."),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        load(Outer, None, overrides)
    assert str(error.value).startswith(sentence)
    assert error.value.exit_code == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("name = \n", encoding="utf-8")
    binary.write_bytes(b"name = '\xff'")
    for file, why in ((tmp_path / "none.toml", "no file"), (broken, "TOML"), (binary, "UTF-8"), (tmp_path, "cannot")):
        with pytest.raises(UsageError, match=why) as error:
            load(Outer, file)
        assert str(file) in error.value.message
    broken.write_text("nam = 'x'\n", encoding="utf-8")
    for overrides in ([], ["name=x"], ["nmae=x"]):
        with pytest.raises(UsageError, match=r"broken\.toml: There is no setting 'nam'"):
            load(Outer, broken, overrides)
    broken.write_text("name = 'x'\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^There is no setting 'nmae'"):  # not the file's fault
        load(Outer, broken, ["nmae=x"])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "other"  # type: ignore[misc]


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_an_override_is_read_as_toml(value: float) -> None:
    assert parse_override(f"a.b = {json.dumps(value)}") == (["a", "b"], value)


@given(st.text(alphabet="abcæøå \n=[]'\"", max_size=8))
def test_an_override_that_is_not_toml_is_text(text: str) -> None:
    keys, value = parse_override(f"a={text}")
    assert keys == ["a"]
    assert value == text.strip() or not isinstance(value, str) or value in text


def test_the_schema_is_json_and_closed() -> None:
    document = json.loads(json.dumps(schema(Outer)))
    assert document["additionalProperties"] is False
    assert document["$defs"]["Inner"]["properties"]["steps"]["exclusiveMinimum"] == 0
    assert nearest("stpes", ["steps", "rate"]) == "steps"
    assert nearest("qqqq", ["steps", "rate"]) == ""
