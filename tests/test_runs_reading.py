"""What a model has read is said, and the words that it does not know: of runs, and of no other model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.cli.main import call
from klype.runs.provenance import DataSources, data_sources
from klype.sources.model_files import ModelFiles
from klype.sources.opening import find_model
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.words import LANGUAGES
from tests.studio_server import run_folder
from tests.studio_toys import opened_models

TEXT = "Kari er på hytta. Ola bor i Molde, og fjorden er blå."
WORDS = Tokenizer.train([TEXT], 400, TEMPLATE)
MERGES = Tokenizer.train([TEXT * 9, *(f"{a}{b}" for a in "æøåqxzw" for b in "æøå")], 275, TEMPLATE)


def test_words_that_were_read_are_known_and_others_are_not() -> None:
    reading = DataSources(("bok.txt",), 0, WORDS)
    assert WORDS.knows_words
    assert reading.unknown_words(TEXT) == []
    assert reading.unknown_words("Hei! Kari bor i Bergen, Hei og bor.") == ["Hei", "Bergen"]
    assert reading.unknown_words("kari") == ["kari"]  # to the model another word
    assert reading.warning("Ola bor i Molde.", "nb") == ""
    assert reading.warning("Hei, Anna!", "nb") == "Den kjenner ikke: Hei, Anna."
    assert reading.warning(" ".join(f"ord{i}" for i in range(9)), "en").endswith("ord7 ….")


def test_where_words_are_spelled_only_what_falls_apart_is_strange() -> None:
    reading = DataSources(("bok.txt",), 0, MERGES)
    assert not MERGES.knows_words
    assert reading.unknown_words("qxzw ж er i") == ["qxzw", "ж"]


@given(st.text())
def test_any_text_is_looked_at(text: str) -> None:
    for tokenizer in (WORDS, MERGES):
        found = DataSources((), 0, tokenizer).unknown_words(text)
        assert len(found) == len(set(found))
        assert all(word in text for word in found)


def about(folder: Path, **content: object) -> ModelFiles:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(content))
    return ModelFiles(folder / "align", folder, "align")


def made(folder: Path, name: str) -> Path:
    """A run with a finished stage, which has read a file of this name."""
    folder.mkdir()
    run_folder(folder)
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "data": [{"name": name}]}))
    return folder


def test_what_was_read_is_what_the_run_says(tmp_path: Path) -> None:
    names = [{"name": f"{i}.txt"} for i in range(5)]
    world = about(tmp_path / "w", settings={"kind": "world"}, data=[{"name": "klype's demo world (821 words)"}])
    reading = data_sources(world, WORDS)
    assert reading is not None
    assert reading.about("en").endswith("and nothing else: 821 words of Norwegian and English.")
    assert reading.about("nb") == "Denne modellen har bare lest klypes demoverden: 821 ord på norsk og engelsk."
    text = data_sources(about(tmp_path / "t", settings={"kind": "text"}, data=names), WORDS)
    assert text is not None
    assert text.about("en") == "This model has read 0.txt, 1.txt, 2.txt and 2 more files, and nothing else."
    assert {text.about(lang) for lang in LANGUAGES} != {""}
    few = data_sources(about(tmp_path / "f", settings={}, data=names[:1]), WORDS)
    assert few is not None
    assert few.about("en") == "This model has read 0.txt and nothing else."


def test_a_run_that_went_on_from_elsewhere_has_read_what_nobody_knows(tmp_path: Path) -> None:
    made(tmp_path / "made", "bok.txt")
    own = [{"name": "mine.jsonl"}]
    known = data_sources(about(tmp_path / "a", data=own, asked={"from_": str(tmp_path / "made" / "finetune")}), WORDS)
    assert known is not None
    assert known.names == ("bok.txt", "mine.jsonl")
    assert data_sources(about(tmp_path / "b", data=own, asked={"from_": "hf:owner/name"}), WORDS) is None
    assert data_sources(about(tmp_path / "c", data=own, asked={"from_": str(tmp_path / "gone")}), WORDS) is None
    assert data_sources(about(tmp_path / "d"), WORDS) is None
    assert data_sources(ModelFiles(tmp_path), WORDS) is None


@pytest.mark.slow
def test_what_the_hub_s_models_have_read_is_not_fetched(tmp_path: Path) -> None:
    """Nothing is loaded that could fetch it, in a process of its own; asked for itself, it is."""
    on = about(tmp_path / "on", data=[{"name": "mine.jsonl"}], asked={"from_": "hf:owner/name"})
    code = """if True:
        import sys
        from pathlib import Path
        from klype.errors import KlypeError
        from klype.runs.provenance import data_sources
        from klype.sources.model_files import ModelFiles
        from klype.sources.opening import find_model
        from klype.text.tokenizer import Tokenizer

        read = data_sources(ModelFiles(Path(sys.argv[1]), Path(sys.argv[1])), Tokenizer.load(Path(sys.argv[2])))
        print(read, "huggingface_hub" in sys.modules)
        try:
            find_model("hf:owner/name")
        except KlypeError:
            print("huggingface_hub" in sys.modules)
    """
    WORDS.save(tmp_path / "words")
    assert on.run is not None
    asked = [sys.executable, "-c", code, str(on.run), str(tmp_path / "words")]
    told = subprocess.run(asked, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["None", "False", "True"]


def test_runs_that_went_on_from_each_other_end_the_search(tmp_path: Path) -> None:
    """A folder was deleted, and made anew from what had been made of it."""
    runs = [made(tmp_path / name, f"{name}.txt") for name in ("a", "b")]
    for run, other in zip(runs, reversed(runs), strict=True):
        content = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**content, "asked": {"from_": str(other)}}))
    assert data_sources(find_model(str(runs[0])), WORDS) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("place") / "mine", "bok\x1b[31m.txt")


@pytest.mark.slow
def test_ask_and_chat_say_it_and_keep_the_answer_apart(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["ask", str(run), "Zebraer hvor", "--lang", "nb", "--limit", "3"]) in (0, None)
    said = capsys.readouterr()
    assert "Denne modellen har bare lest bok" in said.err
    assert "Den kjenner ikke: Zebraer." in said.err
    assert "\x1b" not in said.err
    assert "lest" not in said.out
    assert call(["ask", str(run), "Zebraer hvor", "--json", "--limit", "3"]) in (0, None)
    assert json.loads(capsys.readouterr().out)["unknown"] == ["Zebraer"]
    assert call(["ask", str(run / "finetune"), "hvor", "--json", "--limit", "3"]) in (0, None)
    assert json.loads(capsys.readouterr().out)["unknown"] == []
    command = [sys.executable, "-m", "klype", "chat", str(run), "--limit", "3", "--lang", "en"]
    done = subprocess.run(command, input="Zebraer\nhvor\n", text=True, capture_output=True, check=True)
    assert done.stdout.count("This model has read bok") == 1
    assert done.stdout.count("It does not know: Zebraer.") == 1


@pytest.mark.slow
def test_the_studios_models_know_it_too(run: Path) -> None:
    (model,) = opened_models([str(run)], "float32")
    assert model.reading is not None
    assert model.reading.unknown_words("Zebraer hvor") == ["Zebraer"]
    alone = run.parent / "alone"
    shutil.copytree(run / "finetune", alone)
    (other,) = opened_models([str(alone)], "float32")
    assert other.reading is None
    assert find_model(str(alone)).run is None
