"""What a leash is for: twice from one flawed reward, without a leash and with one, and the true annotator's verdict.

The ranker has a flawed taste, and the reward model imitates it; both alignments please that reward model, and none is
stopped. What is measured is the true annotator's score, on the same held-out questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from klype.errors import UsageError
from klype.preferences.annotators import taste as read_taste
from klype.runs.comparing import compare, gained, signed
from klype.runs.inherited import recipe_of, with_inputs_of
from klype.runs.options import StageOptions
from klype.runs.pipeline import open_run, start_of
from klype.runs.record import write_json
from klype.runs.rounds import METHOD, one_round, timed
from klype.runs.say import Say
from klype.sources.find import Found
from klype.train.policy import method
from klype.words import LANGUAGES, number, words

FLAW = "word=-0.3,right=0.5"  # loves length, and cares less for what is right
TARGET = 0.15  # nats an answer


def leash_demo(options: StageOptions, taste: str, say: Say) -> dict[str, Any]:
    """Aligns the run ``options.from_`` twice, into ``loose`` and ``leashed`` of ``options.out``, and compares the two.

    The second goes on from the first one's rankings and reward model. ``taste`` is the flaw ("": FLAW); a target of KL
    among the overrides is the leash's ("": TARGET). UsageError for a method that pleases no reward model.
    """
    options = replace(options, overrides=(f"align.how.method={METHOD}", *options.overrides))
    start, flaw = start_of(options), read_taste(taste or FLAW)
    recipe, options = recipe_of(start, options), timed(with_inputs_of(start, options))
    assert options.out is not None
    if method(recipe.align.how.method).learns_from != "rollouts":
        raise UsageError(f"{recipe.align.how.method} pleases no reward model.", "Use grpo, rloo, ppo or expert.")
    target = recipe.align.how.target_kl or TARGET
    loose, leashed = options.out / "loose", options.out / "leashed"
    free = ("align.stops=false", "align.how.policy.beta=0", "align.how.target_kl=0")
    held = ("align.stops=false", f"align.how.target_kl={target}")
    found: dict[str, Any] = {}
    for name, folder, own, base in (
        ("loose", loose, free, start),
        ("leashed", leashed, held, Found(loose / "finetune", loose, "finetune")),
    ):
        asked = replace(options, overrides=(*options.overrides, *own))
        found[name] = one_round(base, folder, (asked, recipe_of(start, asked)), (flaw, name == "loose"), say)
    life = open_run(leashed, replace(options, out=leashed), recipe, say, True, start.folder)
    between = compare(life, *(life.load(folder / "align") for folder in (loose, leashed)))
    whole = {"run": str(options.out), "from": options.from_, "taste": str(flaw), "target_kl": target, **found}
    whole["leash"] = {name: between[name] for name in ("gain", "win_rate", "ties")}
    whole["verdict"] = {lang: verdict(whole, lang) for lang in LANGUAGES}
    say.note(whole["verdict"][options.lang])
    write_json(options.out / "align.json", whole)
    return whole


def verdict(whole: Mapping[str, Any], lang: str) -> str:
    """What the leash did to the true annotator's score, in words."""
    w, loose, leashed = words(lang, "align"), whole["loose"], whole["leashed"]
    difference = whole["leash"]["gain"]["score"]
    if any(g["low"] is None for g in (difference, loose["gain"]["score"], leashed["gain"]["score"])):
        return w("unknown")
    said = [
        w("loose", **_told(loose, lang)),
        w("leashed", target=number(whole["target_kl"], lang), **_told(leashed, lang)),
    ]
    kind = "leash_keeps" if difference["low"] > 0 else "leash_costs" if difference["high"] < 0 else "leash_same"
    return " ".join([*said, w(kind, **gained(difference, lang))])


def _told(document: Mapping[str, Any], lang: str) -> dict[str, str]:
    """How the reward model's score and the annotator's own went, and how far the answers are from where they were."""
    seen, score = document["watch"]["seen"], document["gain"]["score"]
    kind = "rose" if score["low"] > 0 else "fell" if score["high"] < 0 else "stayed"
    return {
        "reward": signed(seen[-1]["reward"] - seen[0]["reward"], lang),
        "kl": number(seen[-1]["kl"], lang),
        "did": words(lang, "align")(kind, **gained(score, lang)),
    }
