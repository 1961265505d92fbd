"""The verdict of a run's report: a few plain sentences, chosen by the figures."""

from collections import Counter
from collections.abc import Iterator

from klype.examine.run_facts import STAGES, Facts, JsonObject, clear_change, figures_of, last_model, side_of, trend
from klype.examine.say import Say

GOOD, FAIR = 0.8, 0.5
REMEMBERED = 0.1  # below this share of definitions, hardly any is remembered


def verdict(facts: Facts, say: Say) -> list[str]:
    """Paragraphs: what was trained and how it answers; what it knows of its language; the gates; a caution."""
    parts = [_answers(facts, say), _language(facts, say), _gates(facts, say), caution(facts, say)]
    return [paragraph for sentences in parts if (paragraph := " ".join(sentences))]


def _answers(facts: Facts, say: Say) -> Iterator[str]:
    """What was trained, how the newest model answers, and what alignment changed."""
    before, after = (figures_of(facts, stage) for stage in STAGES[1:])
    last = figures_of(facts, last_model(facts))
    made = sum(bool(stage) for stage in facts["stages"].values())
    parameters = facts.get("provenance", {}).get("model", {}).get("parameters")
    if made == 0:
        yield say("verdict.made_none")
    else:
        time = say.seconds(facts["seconds"].get("total", sum(facts["seconds"].values())))
        size = {"parameters": say.count(parameters)} if isinstance(parameters, int) else {}
        yield say(f"verdict.made_{made}{'' if size else '_plain'}", time=time, **size)

    def shown(*names: str) -> dict[str, str]:
        return {name: say.figure(last[name], name) for name in names if name in last}

    if {"well_formed", "right_trained"} <= last.keys():
        yield say("verdict.words", **shown("well_formed", "right_trained"))
    elif {"right", "decided"} <= last.keys():
        n = say.count(last["decided"].get("n", 0))
        yield say("verdict.decided", n=n, judge=say.judge_note(last["right"]), **shown("decided", "right"))
        yield from say.bounds_sentences(last["right"], "right")
    elif "right" in last:
        n, n_fixed = (say.count(last.get(name, last["right"]).get("n", 0)) for name in ("right", "right_fixed"))
        key = "verdict.right_stories" if "right_fixed" in last else "verdict.right"
        yield say(key, n=n, n_fixed=n_fixed, **shown("right", "right_fixed"))
    if "right" in before and "right" in after:
        for name in ("polite", "right"):
            sides = {key: f[name]["value"] for key, f in (("before", before), ("after", after)) if name in f}
            # politeness only where some answer was polite
            if name == "right" or (len(sides) == 2 and any(sides.values())):
                key = {1: "up", 0: "open", -1: "down"}[trend(facts, name)]
                yield say(f"verdict.{name}_{key}", **say.apart(sides))
    if "annotator" in before and "annotator" in after and trend(facts, "annotator") < 0:
        scores = {key: say.figure(f["annotator"], "annotator") for key, f in (("before", before), ("after", after))}
        yield say("verdict.score_down", **scores)
    why = facts.get("missing", {}).get("aligned")
    if not facts["stages"].get("aligned") and why is not None:
        yield say("verdict.missing", why=say.text(why))
    reward = facts.get("reward")
    if reward and reward["pair_accuracy"]["value"] is not None:
        accuracy, ceiling = say.figure(reward["pair_accuracy"], "pair_accuracy"), reward["ceiling"]
        key = "verdict.reward" if ceiling["value"] is not None else "verdict.reward_alone"
        yield say(key, accuracy=accuracy, ceiling=say.figure(ceiling, "ceiling"))


def _language(facts: Facts, say: Say) -> Iterator[str]:
    """How close the model is to its language, the effect of temperature, and its calibration."""
    base, last, text = figures_of(facts, "base"), figures_of(facts, last_model(facts)), facts.get("text")
    bits = base.get("bits_per_byte") or last.get("bits_per_byte")
    if text and bits:
        shown = {"bits": say.figure(bits), "ngram": say.number(text["ngram"]), "xz": say.number(text["xz"])}
        key = "verdict.text_base" if "bits_per_byte" in base else "verdict.text"
        yield say(key, n=text.get("ngram_order", 5), **shown)
    elif "s" in base and "kl" in base:
        s = say.figure({**base["s"], "unit": "share"})  # in percent, with its interval
        yield say("verdict.truth", s=s, kl=say.figure(base["kl"], "kl"))
    rows = facts.get("temperatures", {}).get("rows", [])
    rights = [(row["temperature"], f) for row in rows if (f := row["figures"].get("right")) and f["value"] is not None]
    if len(rights) > 1 and clear_change(rights[0][1], rights[-1][1]) < 0:
        (t0, right0), (t, right) = rights[0], rights[-1]
        shown = {"right0": say.figure(right0, "right"), "right": say.figure(right, "right")}
        yield say("verdict.hot", t0=say.plain(t0), t=say.plain(t), **shown)
    for found in facts.get("calibration", [])[-1:]:
        # the bin that is furthest off, if by more than the width of its interval: some bin is always off a little
        off = [
            (o["value"] - b["p"], b["p"], o)
            for b in found["bins"]
            if (o := b["observed"]).get("low") is not None and abs(o["value"] - b["p"]) > o["high"] - o["low"]
        ]
        if off:
            gap, said, observed = max(off, key=lambda row: abs(row[0]))
            shown = {"said": say.share(said), "observed": say.figure(observed, "right")}
            key = f"verdict.{'over' if gap < 0 else 'under'}confident"
            yield say(key, model=say.stage(found["stage"]).lower(), **shown)


def _gates(facts: Facts, say: Say) -> Iterator[str]:
    gates = facts.get("gates", [])
    count = Counter(status_of(gate) for gate in gates)
    if gates:
        some = "within" if count["within"] and not count["missed"] else "some"
        key = f"verdict.gates_{'all' if count['passed'] == len(gates) else some}"
        yield say(key, all=len(gates), passed=count["passed"], within=count["within"], missed=count["missed"])


def status_of(gate: JsonObject) -> str:
    """The status of a gate; runs of earlier versions only recorded whether it was passed."""
    return str(gate.get("status", "passed" if gate["passed"] else "missed"))


def caution(facts: Facts, say: Say) -> list[str]:
    """What a model of this size can and cannot do, chosen by its figures; empty without a model."""
    if not any(facts["stages"].values()):
        return []
    if facts["kind"] == "world":
        return [say("verdict.small_world")]
    found = [*_abilities(facts, say)]
    return [*found, say("caution.use")] if found else [say("verdict.small_text")]


def _abilities(facts: Facts, say: Say) -> Iterator[str]:
    """What a model of the user's own text has learnt: spelling, words, and what it has memorised."""
    text, bits = facts.get("text"), figures_of(facts, "base").get("bits_per_byte")
    if text and bits is not None:
        # compared with n-grams of bytes and with compression
        simple = min(text["ngram"], text["xz"])
        key = {-1: "language", 0: "language_open", 1: "no_language"}[side_of(bits, simple)]
        yield say(f"caution.{key}", margin=say.number(abs(simple - (bits["value"] or 0.0))))
    if (formed := figures_of(facts, last_model(facts)).get("well_formed")) is not None:
        degree = "good" if side_of(formed, GOOD) > 0 else {1: "fair", 0: "open", -1: "poor"}[side_of(formed, FAIR)]
        yield say(f"caution.form_{degree}", share=say.figure(formed, "well_formed"))
    rights = {
        (row["kind"], side): row[side]["right"]
        for row in facts.get("dictionary", [])
        for side in ("held_out", "trained")
        if side in row
    }
    if (figure := rights.get(("class", "held_out"))) is not None:
        # how often it infers the class of a word that it has not seen
        yield say("caution.class", share=say.figure(figure, "right"))
    if (figure := rights.get(("meaning", "held_out"))) is not None:
        key = "caution.new_meaning" if side_of(figure, FAIR) < 0 else "caution.new_meaning_some"
        yield say(key, share=say.figure(figure, "right"))
    if (figure := rights.get(("meaning", "trained"))) is not None:
        degree = "most" if side_of(figure, FAIR) > 0 else "few" if side_of(figure, REMEMBERED) < 0 else "some"
        yield say(f"caution.remembers_{degree}", share=say.figure(figure, "right"))
    if (found := facts.get("copied")) is not None:
        free, own = (say.figure(found[name], "copied") for name in ("free", "held_out"))
        key = {1: "copies", 0: "copies_open", -1: "copies_less"}[clear_change(found["held_out"], found["free"])]
        yield say(f"caution.{key}", free=free, own=own)
