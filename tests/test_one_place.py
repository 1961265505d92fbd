"""One place for each kind of thing: what is added in one file of klype is seen by command line, API, server and studio.

The additions are the worked examples of CONTRIBUTING.md, made to a copy of the package, for a table is read when klype
starts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


WORKER = """
import contextlib, io, json, os, sys
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

def klype(*arguments):
    from klype.cli.main import call
    with contextlib.redirect_stdout(io.StringIO()) as out:
        call(list(arguments))
    return out.getvalue()

for line in sys.stdin:
    exec(json.loads(line))
    print(json.dumps(told), file=answers, flush=True)
"""


class Place:
    """A process that has a copy of klype with one of each kind added, and a run whose model babbles."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        path = os.pathsep.join([str(folder / "copy"), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "KLYPE_LANG": "en"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, code: str) -> Any:
        """What ``told`` is after this code, in which ``klype(...)`` is a command and what it prints."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(f"RUN = {str(self.run)!r}\n{code}") + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the code failed: see what it wrote to stderr"
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def apply_examples(folder: Path) -> set[str]:
    """Puts CONTRIBUTING's blocks where the line above each says; which files they are for."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^In `([^`]+)`(?:, before `([^`]+)`)?:\n\n```\w+\n(.*?)^```$", page)
    for name, mark, new in blocks:
        mark = mark.replace("\\n", "\n")
        text = (folder / name).read_text(encoding="utf-8") if mark else ""
        assert text.count(mark) == 1 or not mark, f"{mark!r} is {text.count(mark)} times in {name}"
        (folder / name).write_text(text.replace(mark, new + mark), encoding="utf-8")
    return {name for name, _, _ in blocks}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "klype", folder / "copy" / "klype")
    assert len(apply_examples(folder / "copy")) == 7
    tokenizer = Tokenizer.train(["Hvem gikk? Kari gikk til skolen. Hvor er Ola?"] * 3, 300, TEMPLATE)
    torch.manual_seed(2)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=64)
    model = Transformer(config)
    torch.nn.init.normal_(model.head.weight, std=0.8)
    checkpoint.save(folder / "run" / "finetune", model, tokenizer, {"stage": "finetune"})
    (folder / "run" / "run.json").write_text(json.dumps({"settings": {"kind": "text"}}))
    made = Place(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(place: Place) -> dict[str, str]:
    """All that pages of the studio say, by page and language."""
    told: dict[str, str] = place("""
from tests.studio_toys import model, studio, visiting
told = {}
with visiting(studio(Path("studio"), model())) as (run, user):
    for route, wish in (("/", "en"), ("/runs", "en"), ("/", "fy-NL"), ("/", "nb")):
        user.http_client.headers["accept-language"] = wish
        run(user.open(route))
        shown = chr(10).join(str(e._text) for e in user.client.elements.values() if e._text)
        told[f"{route} {wish}"] = chr(10) + shown + chr(10)
""")
    return told


def test_a_sampler(place: Place, pages: dict[str, str]) -> None:
    told = place("""
told = [klype("next", RUN, "Hvem gikk?", "--temperature", "1", "--top-a", "1", "--top", "300", "--json"),
        klype("chat", "--help")]
""")
    rows = json.loads(told[0])["tokens"]
    most = max(row["p"] for row in rows)
    kept = [row["p"] > most**2 for row in rows]
    assert [row["p_tempered"] > 0 for row in rows] == kept
    assert 0 < sum(kept) < len(rows)
    assert "--top-a" in told[1]
    asked, served, refused, remote = place("""
from klype import load
from klype.serve.app import app
from klype.serve.served_model import ServedModel
from klype.sources.capabilities import Capabilities
from klype.sources.remote import RemoteSource
from klype.sources.http_client import HttpClient
from klype.values import Sampling
from tests.serve_toys import post
model = load(RUN)
asked = [model.ask("Hvem?", temperature=1.0, limit=8, seed=seed, top_a=1.0)[0].text for seed in range(3)]
server = app([ServedModel("m", model.opened.source)])
body = dict(model="m", messages=[dict(role="user", content="Hvem?")], max_tokens=8, temperature=1.0)
said = [post(server, "/v1/chat/completions", json=body | dict(seed=seed, top_a=1.0)).json() for seed in range(3)]
refused = post(server, "/v1/chat/completions", json=body | dict(top_a=1.5)).text
other = RemoteSource(HttpClient("http://there/v1"), Capabilities("other", "m", ("m",), completions=True))
served = [row["choices"][0]["message"]["content"] for row in said]
told = [asked, served, refused, other._sampling_fields(Sampling(top_a=0.5))]
""")
    assert [text.rstrip("\ufffd") for text in asked] == [text.rstrip("\ufffd") for text in served]
    assert "top_a" in refused
    assert remote["topA"] == 0.5
    assert "\ntop-a\n" in pages["/ en"]


def test_a_format(place: Place, pages: dict[str, str]) -> None:
    (place.folder / "asked.bar").write_text("Hvem gikk?|Kari\nHvor?|hjemme\n")
    (place.folder / "texts").mkdir()
    (place.folder / "texts" / "asked.bar").write_text("Hvem gikk?|Kari\n")
    questions, texts = place("""
from klype.data.readers import read_texts
from klype.data.rows import read_questions
told = [[[q.question, *q.answers] for q in read_questions("asked.bar")], [d.source for d in read_texts("texts")]]
""")
    assert questions == [["Hvem gikk?", "Kari"], ["Hvor?", "hjemme"]]
    assert [Path(file).name for file in texts] == ["asked.bar"]
    assert ", .bar, " in pages["/runs en"]


def test_a_reward(place: Place) -> None:
    found, refused = place("""
from klype.errors import UsageError
from klype.train.rewards import load_function, scores
found = list(scores(load_function("copy/brief.py:brief"), ["Hvor er Ola?"] * 2, ["Ola er i hagen.", "I hagen."]))
try:
    klype("align", RUN, "--reward", "copy/brief.py:long")
except UsageError as error:
    refused = error.message
told = [found, refused]
""")
    assert found == [-4, -2]
    assert "brief.py" in refused


def test_a_decoder(place: Place) -> None:
    told = place("""
blunt = ["ask", RUN, "Hvem?", "--decoder", "blunt", "--limit", "8"]
greedy = ["ask", RUN, "Hvem?", "--temperature", "0", "--limit", "8", "--json"]
told = [klype(*blunt, "--json"), klype(*blunt), klype(*greedy)]
""")
    assert json.loads(told[0])["answer"].strip() == json.loads(told[2])["answer"].strip()
    assert json.loads(told[0])["decoder"]["name"] == "blunt"
    assert "what comes without thinking" in told[1]


def test_a_measure(place: Place) -> None:
    (place.folder / "asked.jsonl").write_text('{"question": "Hvem?", "answers": ["Kari"]}\n' * 2)
    document, printed, figure, shown = place("""
import asyncio
from klype import examine
from tests.studio_toys import model, studio, visiting
from klype.studio.divergence import ExamRequest, exam_folder
made = model()
home = studio(Path("examining"), made)
folder = exam_folder(home, ExamRequest(made.address, made.identity, 60, 8))
few = ["-n", "2", "--temperatures", "1", "--limit", "8", "--questions", "asked.jsonl", "--out", str(folder)]
printed = json.loads(klype("examine", RUN, "--json", "--yes", *few))
found = examine(RUN, "asked.jsonl", n=2, temperatures=[1.0], limit=8).figures["spoken"]
shown = {}
with visiting(home) as (run, user):
    for lang in ("en", "nb", "fy"):
        user.http_client.headers["accept-language"] = lang
        run(user.open("/divergence"))
        for _ in range(100):  # the page may still be reading what was found
            shown[lang] = [str(e._text) for e in user.client.elements.values() if e._text]
            if any("(spoken words)" in text for text in shown[lang]):
                break
            run(asyncio.sleep(0.1))
told = [(folder / "report.html").read_text(), printed["figures"]["1"]["spoken"], found.json(), shown]
""")
    assert printed["unit"] == "spoken words"
    assert printed == figure
    for said in ("Talkative", "Pratsom", "Praatsk", "Its words, counted.", "Ordene, talt."):
        assert said in document
    for lang, title in {"en": "Talkative", "nb": "Pratsom", "fy": "Praatsk"}.items():
        row = shown[lang].index(f"{title} (spoken words)")
        assert float(shown[lang][row + 1].replace(",", ".")) == pytest.approx(printed["value"], abs=0.01)


def test_a_measure_of_a_run(place: Place) -> None:
    """It stands among the figures of a stage, at each temperature, and in the report."""
    figures, page = place("""
import torch
from klype.examine.measures import in_runs, measure
from klype.examine.run_report import render
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.recipe import read
from klype.runs.task import answer_settings, examine_model
from klype.runs.world_task import WorldTask
from tests.report_facts import text_facts
task = WorldTask(read("world", ("world=small",)), 0)
torch.manual_seed(0)
shape = ModelConfig(vocab_size=task.chat.tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=128)
evidence = examine_model(task, Transformer(shape), task.held_out[:3], answer_settings(task, 0.7)).evidence[0.7]
figures = [measure(evidence, in_runs(part))["spoken"].json() for part in ("stages", "temperatures")]
facts = text_facts()
facts["stages"]["finetuned"]["spoken"] = figures[0]
told = [figures, render(facts)]
""")
    assert figures[0] == figures[1]
    assert figures[0]["unit"] == "spoken words"
    assert figures[0]["value"] > 0
    assert "Talkative" in page
    assert "Pratsom" in page


def test_a_source(place: Place) -> None:
    asked, refused, helped, loaded, shown = place("""
from klype import load
from tests.studio_toys import opened_models
from klype.errors import UsageError
from tests.studio_toys import studio, visiting
def error(*arguments):
    try:
        klype(*arguments)
    except UsageError as error:
        return error.message
toy, few = "toy:run/finetune", ["--limit", "8", "--temperature", "0", "--json"]
asked = [json.loads(klype("ask", model, "Hvem?", *few))["answer"] for model in (toy, RUN + "/finetune")]
refused = [error("ask", toy), error("ask", "run/finetune"), error("export", toy, "--gguf", "m.gguf")]
helped = [klype(command, "--help") for command in ("ask", "studio", "export")]
shown = opened_models([toy], "float32")
with visiting(studio(Path("shown"), *shown)) as (run, user):
    run(user.open("/"))
    run(user.open("/runs"))
told = [asked, refused, helped, load(toy).ask("Hvem?", temperature=0, limit=8)[0].text, [m.name for m in shown]]
""")
    assert asked == [loaded, loaded]
    assert refused[0] == f"toy:{refused[1]}"  # it is a MODEL, to which there is no text
    assert refused[2] == "toy:run/finetune is but a toy, and this needs the model's own files."
    assert ["toy:NAME" in text for text in helped] == [True, True, False]
    assert shown == ["run/finetune"]


def test_a_language(place: Place, pages: dict[str, str]) -> None:
    shown, refused, spoken, report = place("""
from klype.environment import language
from klype.errors import UsageError
from klype.examine.run_report import render
from tests.report_facts import text_facts
try:
    klype("next", RUN, "Hvem?", "--lang", "xx")
except UsageError as error:
    refused = str(error)
page = render(text_facts(), "fy")
told = [klype("next", RUN, "Hvem?", "--lang", "fy"), refused, language({"LANG": "fy_NL.UTF-8"}), page]
""")
    assert "al it oare: " in shown
    assert "What comes after" in shown  # what it does not say is English
    assert "en or fy or nb" in refused
    assert spoken == "fy"
    assert '<html lang="fy" data-lang="fy">' in report
    assert 'aria-label="Taal"' in report
    assert report.count('data-set-lang="fy"') == 3  # in each of the three views
    assert "\nSjoch hoe't elk wurd keazen wurdt\n" in pages["/ fy-NL"]
    assert "\nFrysk\n" in pages["/ en"]
    assert "\nFrysk\n" in pages["/ nb"]
    assert "\nNorsk\n" in pages["/ fy-NL"]
