"""``report.html`` of a run, made from its facts, in every language."""

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from klype import durable
from klype.examine import html
from klype.examine.charts import Picture
from klype.examine.html import Block, Cells, Document, Formula, Glossary, Part, RichText, Section, Table, Text, texts
from klype.examine.run_facts import MADE_BY, STAGES, Facts, FigureFacts, JsonObject, check, figures_of, last_model
from klype.examine.say import NBSP, Say, is_share
from klype.examine.training_pictures import pictures
from klype.examine.verdict import status_of, verdict
from klype.words import LANGUAGES

OF_THE_BASE = ("s", "kl", "bits_per_byte")
KEY_FIGURES = ("right", "right_fixed", "well_formed", "right_trained", "polite", "annotator", *OF_THE_BASE)
NEXT_TO_NOTHING = 0.05
STEPS = ("pretrain", "finetune", "rank", "reward", "align", "examine", "total")


def write(folder: Path, facts: Facts, lang: str = "en") -> Path:
    """Writes ``report.html`` and ``figures.json`` into an existing folder. The page has all languages; ``lang`` is the
    one shown first.

    Raises KlypeError for malformed facts or an unwritable folder, UsageError for an unknown language.
    """
    facts = check(facts)
    page = render(facts, lang)
    durable.write_out(folder / "figures.json", json.dumps(facts, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return durable.write_out(folder / "report.html", page)


def render(facts: Facts, lang: str = "en") -> str:
    """The page as HTML."""
    return html.render(partial(_page, facts), lang, facts["run"])


def _page(facts: Facts, say: Say) -> Document:
    shown = pictures(facts, say)

    def section(name: str, *parts: Part | None) -> Section:
        return Section(parts, say(f"section.{name}"), name)

    models = {stage: found for stage in STAGES if (found := facts["stages"].get(stage))}
    base = [Text(why, "note")] if (why := why_base(figures_of(facts, "base"), say)) else []
    answers: list[Part] = [
        Block("question", {**one, "answers": {stage: one["answers"].get(stage) for stage in STAGES}})
        for one in facts.get("questions", [])
    ]
    if answers:
        answers = [Text(f"{say('answers.how')} {say('answers.how_more')}"), *base, Block("legend"), *answers]
    text: list[Part] = []
    if "text" in shown:
        text = [Text(say("text.held_out", bytes=say.count(facts["text"]["held_out_bytes"]))), shown["text"]]
    passage = facts.get("copied_example", "")
    copied = [Text(say("text.copied")), Text(passage, "quote")] if passage else []
    # S of the model's own answers, as in the picture of Sⁿ, or else of text
    own = [curve["s"]["value"] for curve in facts.get("survival", [])[:1]]
    own += [f["s"]["value"] for f in (figures_of(facts, last_model(facts)), figures_of(facts, "base")) if "s" in f]
    sections = [
        section("verdict", *texts(verdict(facts, say), "verdict"), key_figures(facts, say),
                *(Text(say.text(note), "note") for note in facts.get("notes", []))),
        section("gates", *gates(facts, say)),
        section("lifecycle", stages(facts, say), shown.get("curves")),
        section("answers", *answers),
        section("scores", shown.get("stages"), *base, shown.get("reward"), rewards(facts, say),
                *html.figures([*models.values()], [*map(say.stage, models)], say)),
        section("words", *dictionary(facts, say, shown.get("dictionary"))),
        section("text", *text),
        section("heart", shown.get("copied"), *copied),
        section("next", shown.get("next"), shown.get("truth")),
        section("temperature", *temperatures(facts, say, shown.get("temperatures"))),
        section("divergence", Formula(shown["formula"], next(iter(own), None)), shown.get("survival"),
                shown.get("calibration")),
        section("cost", *cost(facts, say)),
        section("provenance", *provenance(facts, say)),
        section("on", Glossary(commands(facts, say), "commands")),
    ]  # fmt: skip
    lead = say("lead", run=facts["run"], recipe=facts["recipe"])
    return Document(say, say("title"), lead, sections, contents=True, foot=say("provenance.figures"))


def why_base(figures: Mapping[str, FigureFacts], say: Say) -> str:
    """Why a base model answers almost nothing correctly, and what it does know; empty if it answers well enough."""
    right, retrieval = figures.get("right"), figures.get("retrieval_hard")
    if right is None or right["value"] is None or right["value"] >= NEXT_TO_NOTHING:
        return ""
    knows = [say("answers.base_knows", share=say.figure(retrieval, "retrieval_hard"))] if retrieval else []
    return " ".join([say("answers.base", right=say.value(right, "right")), *knows])


def key_figures(facts: Facts, say: Say) -> Part | None:
    """The most important figures: name, value, and below it the interval with n, the model and the judge."""
    found = []
    for name in KEY_FIGURES:
        stage = "base" if name in OF_THE_BASE else last_model(facts)
        if (figure := figures_of(facts, stage).get(name)) is not None:
            value, bracket, interval = say.figure(figure, name).partition(" [")
            details = ", ".join(part for part in (f"[{interval}" if bracket else "", _n(figure, say)) if part)
            model = [part for part in (say.stage(stage), say.judge_note(figure), say.bounds_note(figure, name)) if part]
            found.append((say.measure(name), value, [details, " · ".join(model)]))
    return Block("keys", found) if found else None


def _n(figure: Mapping[str, Any], say: Say) -> str:
    return f"n{NBSP}={NBSP}{say.count(figure['n'])}" if figure.get("n") else ""


def gates(facts: Facts, say: Say) -> Iterator[Part]:
    """The table of gates, with a note on how to read it."""
    rows, few = [gate_row(gate, say) for gate in facts.get("gates", [])], too_few(facts, say)
    if rows or few:
        columns = [say(f"gates.{key}") for key in ("name", "value", "threshold", "result")]
        yield Table("", columns, rows, "gates", (1, 2))
        yield Text(f"{say('gates.how')} {few}".strip(), "note")


def gate_row(gate: JsonObject, say: Say) -> tuple[str, str, str, RichText]:
    """A row of the gates' table: name, measured value, threshold, and the result with its sign."""
    name = say.text(gate["label"]) if "label" in gate else _gate_name(gate["name"], say)
    seconds = gate["name"] == "seconds" or gate.get("unit") == "s"
    share = is_share(gate) or gate["name"].startswith(
        ("retrieval", "finetuned_", "reward_", "aligned_right", "aligned_polite")
    )

    def written(value: float, more: int) -> str:
        if seconds:
            return say.seconds(value)
        return say.share(value, more) if share else say.number(value, 2 + more)

    required = say("gates.most" if gate.get("below") else "gates.least", threshold=written(gate["threshold"], 0))
    # one decimal more than the threshold, so that 94.6% visibly misses 95%
    measured = say("gates.unreached") if gate["value"] is None else written(gate["value"], 1)
    low, high = gate.get("low"), gate.get("high")
    if gate["value"] is not None and low is not None and high is not None and not seconds:
        ends = [say.number(100 * end, 1) if share else say.number(end, 3) for end in (low, high)]
        measured += f" [{LANGUAGES[say.lang].between.join(ends)}]"
        measured += f", {_n(gate, say)}" if gate.get("n") else ""
    status = status_of(gate)
    sign = {"passed": "ok", "within": "within", "missed": "no"}[status]
    return name, measured, required, RichText(say(f"gates.{status}"), mark=sign)


def _gate_name(name: str, say: Say) -> str:
    return say.get(f"gate.{name}", name.replace("_", " "))


def too_few(facts: Facts, say: Say) -> str:
    """A sentence naming what had too few cases to be a gate; empty where nothing had."""
    few = [f"{_gate_name(row['name'], say)} ({_n(row, say)})" for row in facts.get("too_few", [])]
    return say("gates.too_few", names="; ".join(few)) if few else ""


def stages(facts: Facts, say: Say) -> Part:
    """A card for each training stage: what it does, who ranked, why it is missing, how long it took."""
    plan, cards = {row["stage"]: row for row in facts.get("provenance", {}).get("plan", [])}, []
    for stage, step in MADE_BY.items():
        told, row = [Text(say(f"life.{step}"))], plan.get(step, {})
        if step == "align" and "annotator" in facts:
            told.append(Text(f"{say('life.annotator')} {say.text(facts['annotator'])}", "small"))
        if not figures_of(facts, stage) and (why := facts.get("missing", {}).get(stage)):
            told.append(Text(say("life.missing", why=say.text(why)), "note"))
        took = [say("life.steps", steps=say.count(row["steps"]))] if row.get("steps") else []
        took += [say("life.tokens", tokens=say.big(row["tokens"]))] if row.get("tokens") else []
        took += [say("life.took", seconds=say.seconds(facts["seconds"][step]))] if step in facts["seconds"] else []
        cards.append((stage, say(f"train.{step}"), [*told, Text(" · ".join(took), "small")]))
    return Block("stages", cards)


def rewards(facts: Facts, say: Say) -> Part | None:
    """A table of the rewards that alignment optimised."""
    keys = ("before", "after", "gain")
    rows = [
        [say("rewards.model") if name == "model" else name, say.plain(one["weight"]),
         *(say.figure(one[key], "reward") for key in keys)]
        for name, one in facts.get("rewards", {}).items()
    ]  # fmt: skip
    columns = [say(f"rewards.{key}") for key in ("reward", "weight", *keys)]
    return Table(say("rewards.caption"), columns, rows, numeric=range(1, 5)) if rows else None


def dictionary(facts: Facts, say: Say, picture: Picture | None) -> Iterator[Part | None]:
    """Answers about the words of a dictionary, by kind of question, for held-out and for trained words."""
    if not facts.get("dictionary"):
        return
    yield Text(say("words.how"))
    yield picture
    columns = [say("exam.question"), say("exam.answer"), say("words.reference"), say("words.verdict")]
    tables: list[Part] = []
    for row in facts["dictionary"]:
        wrong = "answers.wrong" if row["kind"] in ("class", "ending") else "words.other"  # one correct answer only
        for side in ("held_out", "trained"):
            rows: list[Cells] = [
                [one["question"], one["text"].strip() or say("answers.empty"), one["reference"],
                 RichText(f"{say('answers.right' if one['right'] else wrong)} · "
                       f"{say('words.formed' if one['well_formed'] else 'words.malformed')}",
                       mark="ok" if one["right"] else "no")]
                for one in row["samples"] if one["trained"] == (side == "trained")
            ]  # fmt: skip
            if rows:
                kind = say("words." + row["kind"])
                tables.append(Table(f"{kind} – {say(f'words.{side}')}", columns, rows, "words"))
    yield from [Text(say("words.answers"), "heading"), *tables] if tables else []


def temperatures(facts: Facts, say: Say, picture: Picture | None) -> Iterator[Part | None]:
    """A card for each temperature: some answers and the figures."""
    found = facts.get("temperatures")
    if not found or not found["rows"]:
        return
    how = [say("temperature.how_text" if facts["kind"] == "text" and found["stage"] == "base" else "temperature.how")]
    if "chosen_of" in found:
        how.append(say("temperature.chosen", n=say.count(found["chosen_of"])))
    if found.get("prompt"):
        how.append(say("quote", text=found["prompt"]))
    yield Text(" ".join(how))
    cards = []
    for row in found["rows"]:
        names, title = html.measures_of([row["figures"]]), f"τ = {say.plain(row['temperature'])}"
        figures = [(say.measure(name).split(",")[0], say.in_full(row["figures"][name], name)) for name in names]
        cards.append((title, row["samples"][:4], Glossary(figures, "pairs")))
    yield Block("temperatures", cards)
    yield picture


def cost(facts: Facts, say: Say) -> Iterator[Part]:
    """The table of what an answer of each model costs, with notes on how that was measured."""
    costs = {stage: cost for stage in STAGES if (cost := facts.get("cost", {}).get(stage))}
    if not costs:
        return
    found, last = [cost["figures"] for cost in costs.values()], [*costs.values()][-1]
    rows: list[Cells] = [
        [say.measure(name), *(_spent(name, figures.get(name), say) for figures in found)]
        for name in html.measures_of(found)
    ]
    notes = [say("cost.flops"), say("cost.alone") if "seconds" in last["figures"] else "", energy(last, say)]
    yield Text(say("cost.lead", parameters=say.count(last["parameters"])))
    yield Table("", [say("cost.column"), *map(say.stage, costs)], rows, numeric=range(1, 1 + len(costs)))
    yield Text(" ".join(note for note in notes if note), "small")


def _spent(name: str, figure: FigureFacts | None, say: Say) -> str:
    """The mean cost of an answer, as text in the unit of the measure."""
    if figure is None or figure["value"] is None:
        return say.figure(figure)
    value = figure["value"]
    if name in ("passes", "tokens"):
        return say.number(value, 1)
    if name.startswith("joules"):
        return f"{value:.3g} J".replace(".", LANGUAGES[say.lang].decimal)
    return say.big(value) if name == "flops" else say.seconds(value) if name == "seconds" else say.figure(figure, name)


def energy(cost: JsonObject, say: Say) -> str:
    """How energy was measured or estimated; empty where it was not."""
    if "watts" in cost:
        return say("cost.watts", watts=say.plain(cost["watts"]))
    if cost.get("joules_estimated"):
        return say("cost.estimated")
    return say("cost.measured") if "joules" in cost["figures"] else ""


def provenance(facts: Facts, say: Say) -> Iterator[Part]:
    """The data with licences, the stages as planned and as run, and what is needed to repeat the run."""
    if "provenance" not in facts:
        return
    found, seconds = facts["provenance"], facts["seconds"]

    def words(*keys: str) -> list[str]:
        return [say(f"provenance.{key}") for key in keys]

    data: list[Cells] = [
        [RichText(row["name"], say.text(row.get("attribution", ""))),
         say("provenance.bytes", n=say.count(row["bytes"])) if "bytes" in row else "–",
         row.get("licence", "–"),
         RichText(row.get("sha256", "–")[:16], title=row.get("sha256", ""))]
        for row in found["data"]
    ]  # fmt: skip
    yield Table("", words("data", "size", "licence", "hash"), data, "hashed", (1,))
    plan = {row["stage"]: row for row in found.get("plan", [])}
    planned = {stage: row["planned_s"] for stage, row in plan.items() if "planned_s" in row}
    planned |= {"total": facts["planned_s"]} if facts.get("planned_s") else {}
    stages = [
        [say(f"train.{step}"),
         say.count(plan[step]["steps"]) if "steps" in plan.get(step, {}) else "",
         *(say.seconds(of[step]) if step in of else "" for of in (planned, seconds))]
        for step in STEPS if step in seconds or step in plan
    ]  # fmt: skip
    yield Table("", words("stage", "steps", "planned", "used"), stages, numeric=(1, 2, 3))
    shape = [
        f"{say.get(f'shape.{key}', key.replace('_', ' '))} {say.count(value) if isinstance(value, int) else value}"
        for key, value in found.get("model", {}).items()
    ]
    rest = {"when": found.get("when", ""), "seed": str(found["seed"]), "machine": " · ".join(found["machine"].values()),
            "model": " · ".join(shape), "versions": " · ".join(map(" ".join, found["versions"].items()))}  # fmt: skip
    yield Glossary([(say(f"provenance.{key}"), value) for key, value in rest.items() if value], "pairs wide")


def quote(text: str) -> str:
    """The text as one argument of a shell command: in double quotes, which every shell has, where it contains no
    character that is special in them."""
    if text and all(c.isalnum() or c in "-_./" for c in text):
        return text
    return shlex.quote(text) if set('"$`\\!%\n') & set(text) else f'"{text}"'


def commands(facts: Facts, say: Say) -> list[tuple[str, str]]:
    """What to do next: commands as they are typed, and what each does."""
    run = quote(facts.get("address", facts["run"]))
    prompt = facts["next"][0]["prompt"] if facts.get("next") else "Jeg gikk en tur på"
    first = facts["questions"][0] if facts.get("questions") else None
    question = f"{first.get('context', '')} {first['question']}".strip() if first else prompt
    typed = {
        "chat": f"chat {run}",
        "sure": f"ask {run} {quote(question)} --sure",
        "next": f"next {run} {quote(prompt)} --raw",
        "tree": f"tree {run} {quote(question)}",
        "examine": f"examine {run}",
        "studio": f"studio {run}",
    }
    return [(f"{facts.get('program', 'klype')} {command}", say(f"on.{key}")) for key, command in typed.items()]
