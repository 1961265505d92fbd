"""What a studio without a model offers: one is opened, or trained, from the page; what cannot be says why."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from klype.runs import recipe
from klype.studio.app import PAGES
from klype.studio.background_jobs import works
from klype.studio.divergence import ExamRequest
from klype.studio.fields import SeedField, Select, TextLine
from klype.studio.runs import RECIPES, RunRequest, start_run
from klype.studio.studio import Studio
from klype.words import words
from klype.words.sentences import Sentences
from tests.studio_server import run_folder
from tests.studio_toys import model, visiting
from tests.test_studio_app import find, press, send, texts, until

LANGS = pytest.mark.parametrize("lang", ["en", "nb"])


@pytest.mark.slow
@LANGS
def test_an_empty_studio_opens_a_run_by_itself(tmp_path: Path, elsewhere: Path, lang: str) -> None:
    (tmp_path / "mine").mkdir()
    run_folder(tmp_path / "mine")
    made, w = Studio([], tmp_path / "home", ["false"], opens=True), words(lang, "studio_frame")
    with visiting(made) as (run, user):
        user.http_client.headers["accept-language"] = lang
        for page in PAGES:
            if page.name in ("answer", "paths", "divergence", "ranking"):
                run(user.open(page.route))
                assert w("train_one") in texts(user)
                assert "klype run" not in texts(user)  # nobody is sent to a command line
                assert w("open_one") in texts(user)
        run(user.open("/"))

        async def opened(text: str) -> None:
            send(user, find(user, TextLine)[0].input, "keydown", text)
            await asyncio.sleep(0)

        run(opened("/nowhere"))
        refused = Sentences(lang)("There is no model /nowhere.")
        assert (lang == "en") == (refused == "There is no model /nowhere.")
        run(until(lambda: refused in texts(user)))
        assert made.models == []
        made.open(str(tmp_path / "mine"))  # what was loaded once is loaded soon
        made.stop()
        made.models = []
        run(opened(str(tmp_path / "mine")))
        run(until(lambda: len(made.models) == 1))
        run(user.open("/"))
        assert "mine/finetune" in texts(user)
        assert sum("hvor gikk hun" in str(e._text) for e in user.client.elements.values() if e.tag == "button") == 3
        assert w("open_another") in texts(user)
    made.stop()


def test_who_comes_from_elsewhere_opens_only_what_the_studio_has(tmp_path: Path) -> None:
    made = Studio([model("toy/align")], tmp_path, ["false"])
    with visiting(made) as (run, user):
        run(user.open("/"))
        assert find(user, TextLine) == []
        assert words("en", "studio_frame")("open_another") not in texts(user)
    made.stop()


def test_a_run_that_the_studio_knows_is_asked_from_its_page(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    run_folder(tmp_path / "runs" / "mine")
    made = Studio([], tmp_path, ["false"])
    with visiting(made) as (run, user):
        user.http_client.headers["accept-language"] = "en"
        run(user.open("/runs"))

        async def ask() -> None:
            press(user, words("en", "studio_frame")("ask_it"))
            await until(lambda: [m.name for m in made.models] == ["mine/finetune"])

        run(ask())
    made.stop()


def test_the_form_has_every_recipe_and_says_what_each_needs() -> None:
    assert set(RECIPES) == set(recipe.names())
    for lang in ("en", "nb"):
        w = words(lang, "studio_runs")
        assert len({w(f"needs_{name}") for name in RECIPES} | {w(f"recipe_{name}") for name in RECIPES}) == 10


@LANGS
def test_a_negative_seed_is_an_error_in_the_page_s_language(tmp_path: Path, lang: str) -> None:
    with visiting(Studio([], tmp_path, ["false"])) as (run, user):
        user.http_client.headers["accept-language"] = lang
        for route, go in (
            ("/runs", words(lang, "studio_runs")("start")),
            ("/targets", words(lang, "studio_targets")("go")),
        ):
            for seed in ("-5", "1.5", "", "4294967296"):
                run(user.open(route))
                send(user, find(user, SeedField)[0].input, "input", seed)

                async def begin(go: str = go) -> None:
                    press(user, go)
                    await until(lambda: bool(user.notify.messages))

                run(begin())
                name = words(lang, f"studio_{route[1:]}")("seed")
                w = words(lang, "studio_frame")
                assert user.notify.messages.pop() == w(
                    "whole_number", name=name, low="0", high="4294967295", given=seed
                )
    assert works(tmp_path) == []


def test_a_run_speaks_the_page_s_language_and_starts_from_a_model_where_it_needs_one(
    tmp_path: Path, elsewhere: Path
) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-c", f"import sys; open({str(said)!r}, 'w').write(repr(sys.argv[1:]))"]
    with visiting(Studio([], tmp_path, command)) as (run, user):
        user.http_client.headers["accept-language"] = "nb"
        run(user.open("/runs"))
        recipes, base, lang = find(user, Select)
        assert (list(recipes.options), lang.value) == (list(RECIPES), "nb")
        assert not base.visible
        send(user, recipes.input, "change", "lora")
        assert base.visible
        assert words("nb", "studio_runs")("needs_lora") in texts(user)
        send(user, recipes.input, "change", "norsk")

        async def begin() -> None:
            press(user, words("nb", "studio_runs")("start"))
            await until(lambda: said.is_file() and said.read_text())

        run(begin())
    given = eval(said.read_text())
    assert [given[given.index(f"--{option}") + 1] for option in ("recipe", "lang", "minutes")] == ["norsk", "nb", "20"]
    with pytest.raises(Exception, match="no model to go on from"):
        start_run(Studio([], tmp_path, command), RunRequest("lora", 1, "nb", 0, [given]))  # type: ignore[list-item]


@LANGS
@pytest.mark.parametrize(("code", "key"), [(130, "cancelled"), (1, "failed")])
def test_an_examination_that_did_not_end_well_is_told_of(tmp_path: Path, lang: str, code: int, key: str) -> None:
    toy = model("toy/align")
    work = tmp_path / "work" / f"examine-{ExamRequest(toy.address, toy.identity, 60, 8).key}"
    work.mkdir(parents=True)
    (work / "work.json").write_text("{}")
    (work / "ended.json").write_text(json.dumps({"code": code, "error": "No."}))
    with visiting(Studio([toy], tmp_path, ["false"])) as (run, user):
        user.http_client.headers["accept-language"] = lang
        said = words(lang, "studio_divergence")(key, why="No." if key == "failed" else "")
        assert said in run(user.http_client.get("/divergence")).text  # at once, not with the next look
