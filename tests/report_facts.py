"""Facts of a made-up run, as rich as a real one: what the report's tests and its designer look at."""

from __future__ import annotations

import math
import random
from typing import Any

from klype.examine.intervals import proportion
from klype.examine.run_facts import Facts, check
from klype.values import Figure

STAGES = ("base", "finetuned", "aligned")


def world_facts() -> Facts:
    """A whole run on the demo world: three models, every section."""
    return check(
        {
            "run": "runs/demo",
            "recipe": "demo",
            "kind": "world",
            "planned_s": 300.0,
            "seconds": {
                "pretrain": 142.3,
                "finetune": 38.1,
                "rank": 14.2,
                "reward": 9.4,
                "align": 68.0,
                "total": 291.6,
            },
            "stages": {
                "base": stage([88, 31, 160, 0.12, 0.974, 0.118, None]),
                "finetuned": stage([372, 71, 262, 1.71, 0.969, 0.141, None]),
                "aligned": stage([378, 392, 371, 2.33, 0.951, 0.402, 2.1]),
            },
            "annotator": {
                "en": "a simulated annotator that likes right, polite and short answers, and errs in 10% of pairs",
                "nb": "en simulert person som liker riktige, høflige og korte svar, og tar feil i 10 % av parene",
            },
            "rewards": {
                "model": {
                    "weight": 1,
                    "before": {"value": -0.07, "low": -0.2, "high": 0.06, "n": 64},
                    "after": {"value": 0.81, "low": 0.7, "high": 0.92, "n": 64},
                    "gain": {"value": 0.88, "low": 0.7, "high": 1.06, "n": 64},
                },
                "/home/kari/<b>.py:short": {
                    "weight": 0.25,
                    "sha256": "0" * 64,
                    "before": {"value": -7.5, "low": -8.0, "high": -7.0, "n": 64},
                    "after": {"value": -5.25, "low": -5.5, "high": -5.0, "n": 64},
                    "gain": {"value": 2.25, "low": 2.0, "high": 2.5, "n": 64},
                },
            },
            "reward": {
                "pair_accuracy": {"value": 0.913, "low": 0.897, "high": 0.928, "n": 1400, "unit": "share of pairs"},
                "ceiling": {"value": 0.979, "low": 0.97, "high": 0.986, "n": 1400, "unit": "share of pairs"},
                "threshold": 0.86,
            },
            "gates": [
                gate("retrieval_hard", 0.985, 0.93),
                gate("finetuned_right", 0.93, 0.88),
                gate("reward_pairs", 0.946, 0.86),
                gate("aligned_right", 0.91, 0.9),
                gate("aligned_polite", 0.98, 0.93),
                gate("aligned_score_up", 0.62, 0.11),
                gate("retrieval_kept", 0.88, 0.9),
                {**gate("seconds", 291.6, 345.0), "below": True, "status": "passed", "passed": True},
            ],
            "curves": curves(),
            "questions": questions(),
            "next": [
                next_word("nb", "Jeg gikk en tur på", "stien veien fortauet stranda fjellet torget brygga taket", 0.41),
                next_word("en", "It is better with a bird in the hand than ten on", "the a my that", 0.93),
            ],
            "temperatures": temperatures(),
            "survival": [survival(0.7, 0.988), survival(1.0, 0.972)],
            "calibration": [calibration("base"), calibration("finetuned")],
            "cost": {s: cost(tokens) for s, tokens in zip(STAGES, (9.1, 6.4, 7.2), strict=True)},
            "notes": [],
            "provenance": provenance("demo world, seed 0"),
        }
    )


def text_facts() -> Facts:
    """Own text: no truth, no alignment."""
    bits = {"value": 1.62, "low": 1.58, "high": 1.66, "n": 210, "unit": "bits per byte"}
    return check(
        {
            "run": "runs/lover",
            "recipe": "text",
            "kind": "text",
            "planned_s": 300.0,
            "seconds": {"pretrain": 231.0, "finetune": 44.0, "total": 288.0},
            "stages": {
                "base": {"bits_per_byte": bits},
                "finetuned": {"bits_per_byte": {**bits, "value": 1.65}},
                "aligned": None,
            },
            "missing": {
                "aligned": {
                    "en": "the reward model agrees with the annotator on 64% of pairs, and 75% are required.",
                    "nb": "belønningsmodellen er enig med den som rangerte, i 64 % av parene, og kravet er 75 %.",
                }
            },
            "text": {"held_out_bytes": 61440, "xz": 1.79, "ngram": 1.71, "ngram_order": 5},
            "copied_example": "Loven trer i kraft fra den tid Kongen bestemmer",
            "curves": curves()[:2],
            "questions": [
                {
                    "question": "Fortsett: Departementet kan gi",
                    "answers": {
                        "base": answer("forskrift om adgang til å", [0.9, 0.8, 0.4, 0.3, 0.9], None),
                        "finetuned": None,
                    },
                }
            ],
            "next": [
                {
                    "prompt": "Departementet kan gi",
                    "tokens": [
                        {"token": t, "p": p} for t, p in ((" forskrift", 0.52), (" nærmere", 0.21), (" påbud", 0.06))
                    ],
                    "rest": 0.21,
                }
            ],
            "notes": [
                {
                    "en": "No instructions were given, so the questions were made from the text itself.",
                    "nb": "Det fantes ingen instruksjoner, så spørsmålene er laget av teksten selv.",
                }
            ],
            "provenance": provenance("lover.txt"),
        }
    )


def dictionary_facts() -> Facts:
    """Own text with a dictionary: words learnt and words held out, and what is known by heart."""
    facts = text_facts()
    share = {"low": 0.7, "high": 0.9, "n": 100, "unit": "share"}
    facts["stages"]["finetuned"] = {
        "bits_per_byte": {"value": 1.6, "low": 1.58, "high": 1.66, "n": 210, "unit": "bits per byte"},
        "well_formed": {**share, "value": 0.84, "judge": "stated rules of form"},
        "right_trained": {**share, "value": 0.31, "low": 0.25, "high": 0.37, "judge": "the dictionary’s own words"},
    }
    side = {"well_formed": {**share, "value": 0.84}, "right": {**share, "value": 0.02, "low": 0.0, "high": 0.06}}
    known = {"well_formed": {**share, "value": 0.84}, "right": {**share, "value": 0.8}}
    sample = {"question": "Hva betyr hund?", "text": "dyr", "reference": "firbeint husdyr", "right": False}
    samples = [{**sample, "trained": trained, "well_formed": True} for trained in (False, True)]
    facts["dictionary"] = [
        {"kind": "meaning", "held_out": side, "trained": side, "samples": samples},
        {"kind": "class", "held_out": known, "trained": known, "samples": samples},
    ]
    facts["copied"] = {"free": {**share, "value": 0.8}, "held_out": {**share, "value": 0.1, "low": 0.05, "high": 0.15},
                       "longest": 7, "temperature": 0.7}  # fmt: skip
    figures = {name: {**share, "value": 0.8} for name in ("real_words", "repetition", "same_text")}
    facts["temperatures"] = {
        "stage": "base",
        "prompt": "hund (substantiv):",
        "rows": [
            {"temperature": t, "figures": figures, "samples": [answer("et dyr", [0.9, 0.4], None)]} for t in (0.0, 1.5)
        ],
    }
    return check(facts)


def smallest_facts() -> Facts:
    """The least that a run can know."""
    return check({"run": "r", "recipe": "demo", "kind": "world", "seconds": {"total": 3.0},
                  "stages": {"base": None, "finetuned": None, "aligned": None}})  # fmt: skip


def hostile_facts(text: str) -> Facts:
    """A run in which every text that a model or a user can write is ``text``."""
    facts = world_facts()
    facts["run"] = facts["recipe"] = text
    facts["missing"] = {"aligned": text}
    facts["stages"]["aligned"] = None
    facts["annotator"] = text
    facts["notes"] = [text]
    facts["copied_example"] = text
    facts["gates"][0]["label"] = text
    for question in facts["questions"]:
        question["question"] = question["context"] = text
        question["references"] = [text]
        for found in question["answers"].values():
            if found:
                found["text"] = text
                found["tokens"] = [{"text": text, "p": 0.5}]
    for prompt in facts["next"]:
        prompt["prompt"] = text
        for token in prompt["tokens"]:
            token["token"] = text
    facts["temperatures"]["prompt"] = text
    for row in facts["temperatures"]["rows"]:
        for sample in row["samples"]:
            sample.pop("tokens", None)
            sample["text"] = text
    facts["provenance"]["data"][0]["name"] = facts["provenance"]["data"][0]["licence"] = text
    facts["provenance"]["versions"]["x"] = text
    return check(facts)


def share(k: int, n: int = 400) -> dict[str, Any]:
    return {**proportion(k, n, "share", "same meaning").json()}


def plain(value: float, half: float, n: int, unit: str) -> dict[str, Any]:
    return Figure(value, value - half, value + half, n, unit).json()


def stage(values: list[float | None]) -> dict[str, Any]:
    right, polite, concise, score, s, kl, reference = values
    found = {
        "right": share(int(right or 0)),
        "right_fixed": share(395),
        "polite": share(int(polite or 0)),
        "concise": share(int(concise or 0)),
        "annotator": plain(score or 0, 0.06, 400, "points"),
        "s": plain(s or 0, 0.002, 300, "share a word"),
        "kl": plain(kl or 0, 0.006, 300, "nats a word"),
        "retrieval_hard": share(392),
    }
    if reference is not None:
        found["kl_reference"] = plain(reference, 0.2, 400, "nats")
    return found


def gate(name: str, value: float, threshold: float) -> dict[str, Any]:
    low, high = value - 0.015, min(1.0, value + 0.015)
    status = "passed" if low >= threshold else "within" if high >= threshold else "missed"
    about = {"threshold": threshold, "status": status, "passed": status == "passed"}
    return {"name": name, "value": value, "low": low, "high": high, "n": 1500, **about}


def curves() -> list[dict[str, Any]]:
    rng = random.Random(0)

    def falling(top: float, low: float, n: int, noise: float) -> list[float]:
        return [low + (top - low) * math.exp(-5 * i / n) + rng.gauss(0, noise) for i in range(n)]

    held = [v if i % 50 == 0 else None for i, v in enumerate(falling(6.1, 0.84, 600, 0.005))]
    return [
        {
            "stage": "pretrain",
            "step": list(range(600)),
            "series": {"loss": falling(6.1, 0.82, 600, 0.05), "held_out": held},
        },
        {"stage": "finetune", "step": list(range(200)), "series": {"loss": falling(1.9, 0.42, 200, 0.04)}},
        {"stage": "reward", "step": list(range(120)), "series": {"loss": falling(9.2, 6.1, 120, 0.2)}},
        {
            "stage": "align",
            "step": list(range(60)),
            "series": {
                "reward": [2.2 - v for v in falling(1.7, 0.1, 60, 0.06)],
                "kl": [2.1 - v for v in falling(2.1, 0, 60, 0.05)],
            },
        },
    ]


def answer(text: str, ps: list[float], right: bool | None, **more: Any) -> dict[str, Any]:
    words = text.split()
    tokens = [{"text": " " + w, "p": p} for w, p in zip(words, ps + [0.95] * len(words), strict=False)]
    return {"text": text, "tokens": tokens, "right": right, "ended": "stop", **more}


def questions() -> list[dict[str, Any]]:
    return [
        {
            "context": "Hunden drakk vann. Kari leste en bok i parken.",
            "question": "Hvem leste en bok?",
            "references": ["Kari", "Det var Kari som leste en bok."],
            "answers": {
                "base": answer(
                    "– Hunden. Kari leste en bok på",
                    [0.31, 0.22, 0.74, 0.41, 0.88, 0.93, 0.97, 0.09],
                    False,
                    ended="length",
                ),
                "finetuned": answer(
                    "Kari leste en bok i parken.", [0.91, 0.83, 0.97, 0.99, 0.42, 0.99], True, concise=False, score=1.5
                ),
                "aligned": answer(
                    "Det var Kari, vær så god.",
                    [0.66, 0.98, 0.99, 0.87, 0.99, 0.99],
                    True,
                    polite=True,
                    concise=True,
                    score=2.5,
                ),
            },
        },
        {
            "context": "Ola fant en ball på stranda. Liv fant en nøkkel på torget. Per fant et kart i båten.",
            "question": "Hva fant Liv?",
            "references": ["en nøkkel"],
            "answers": {
                "base": answer("– et kart. Hvor er", [0.36, 0.27, 0.44, 0.12, 0.61], False, ended="length"),
                "finetuned": answer("En nøkkel.", [0.81, 0.94], True, score=2.0, concise=True),
                "aligned": answer(
                    "Liv fant en ball, takk for spørsmålet.",
                    [0.41, 0.97, 0.93, 0.28, 0.96],
                    False,
                    polite=True,
                    score=-0.5,
                ),
            },
        },
        {
            "question": "What does the cow drink?",
            "references": ["water"],
            "answers": {
                "base": answer("– milk. The cow", [0.38, 0.47, 0.52, 0.66], False, ended="length"),
                "finetuned": answer("The cow drinks water.", [0.72, 0.95, 0.97, 0.96], True, concise=True, score=2.0),
                "aligned": answer(
                    "Water, with pleasure.", [0.83, 0.9, 0.99], True, polite=True, concise=True, score=2.5
                ),
            },
        },
    ]


def next_word(lang: str, prompt: str, words: str, first: float) -> dict[str, Any]:
    names = words.split()
    masses = [first * 0.5**i for i in range(len(names))]
    truth = [m * (1.07 if i % 2 else 0.95) for i, m in enumerate(masses)]
    tokens = [{"token": " " + n, "p": m, "truth": t} for n, m, t in zip(names, masses, truth, strict=True)]
    return {"prompt": prompt, "lang": lang, "tokens": tokens, "rest": max(0.0, 1 - sum(masses)), "s": 0.98, "kl": 0.03}


def temperatures() -> dict[str, Any]:
    texts = {
        0.0: ["Kari leste en bok i parken.", "Kari leste en bok i parken."],
        0.7: ["Det var Kari, vær så god.", "Kari leste ei bok."],
        1.0: ["Kari. Takk for spørsmålet.", "Det var jenta som leste boka."],
        1.3: ["Kari leste vann med parken.", "Det gjorde hunden, gjerne."],
        1.5: ["fant the båten? tolv Liv drikker", "Nøkkel og på snødde cow."],
    }
    figures = {0.0: (381, 0.995, 0.21, 1.0), 0.7: (378, 0.981, 0.12, 0.55), 1.0: (351, 0.951, 0.07, 0.28),
               1.3: (262, 0.861, 0.04, 0.11), 1.5: (148, 0.731, 0.02, 0.03)}  # fmt: skip
    rows = []
    for t, (right, s, repeated, same) in figures.items():
        rows.append(
            {
                "temperature": t,
                "figures": {
                    "right": share(right),
                    "s": plain(s, 0.004, 400, "share a word"),
                    "repetition": plain(repeated, 0.015, 400, "share of 4-grams"),
                    "same_text": plain(same, min(0.03, same, 1 - same), 400, "share of pairs"),
                },
                "samples": [
                    answer(x, [max(0.03, 0.97 - t * 0.5 * (i % 3)) for i in range(8)], t < 1.3) for x in texts[t]
                ],
            }
        )
    return {
        "stage": "aligned",
        "prompt": "Hunden drakk vann. Kari leste en bok i parken. Hvem leste en bok?",
        "rows": rows,
    }


def survival(temperature: float, s: float) -> dict[str, Any]:
    def curve(f: Any, half: float) -> list[dict[str, Any]]:
        return [{**plain(f(t), half * t**0.5, 400, "share of answers"), "t": t} for t in range(1, 21)]

    return {
        "temperature": temperature,
        "stage": "aligned",
        "s": plain(s, 0.002, 400, "share a word"),
        "r": curve(lambda t: 1 - (1 - s) * 6 * (1 - math.exp(-t / 7)), 0.004),
        "k": curve(lambda t: (s + 0.002) ** t + 0.0008 * t, 0.005),
        "by_position": curve(lambda t: (s + 0.001) ** t, 0.005),
        "difference": [
            {**plain((s + 0.002) ** t + 0.0008 * t - (s + 0.001) ** t, 0.004, 400, "difference of shares"), "t": t}
            for t in range(1, 21)
        ],
        "independent": curve(lambda t: s**t, 0.002),
    }


def calibration(name: str) -> dict[str, Any]:
    off = 0.01 if name == "base" else 0.09
    bins = [
        {"p": p / 10 + 0.05, "observed": plain(max(0.03, p / 10 + 0.05 - off * p / 9), 0.03, 500, "share")}
        for p in range(10)
    ]
    return {"stage": name, "bins": bins, "error": plain(off / 2, 0.004, 5000, "probability")}


def cost(tokens: float) -> dict[str, Any]:
    return {
        "parameters": 152_384,
        "figures": {
            "tokens": plain(tokens, 0.2, 400, "tokens"),
            "passes": plain(tokens, 0.2, 400, "passes"),
            "flops": plain(tokens * 3.1e5 + 5.6e6, 1e5, 400, "FLOPs"),
            "seconds": plain(tokens * 0.0011, 0.0003, 400, "s"),
            "joules": plain(tokens * 0.016, 0.002, 400, "J"),
        },
        "joules_estimated": True,
    }


def provenance(name: str) -> dict[str, Any]:
    return {
        "data": [{"name": name, "sha256": "9f2c4b1e7d5a" * 5 + "abcd", "bytes": 1_203_411, "licence": "Apache-2.0"}],
        "seed": 0,
        "versions": {"klype": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": {"cpu": "x86-64", "cores": "2 cores", "memory": "7.6 GB", "system": "Linux"},
        "plan": [
            {"stage": "pretrain", "steps": 2200, "tokens": 9_800_000, "planned_s": 145.0},
            {"stage": "finetune", "steps": 640, "tokens": 1_100_000, "planned_s": 40.0},
            {"stage": "align", "steps": 60, "planned_s": 70.0},
        ],
        "when": "2026-01-31 14:05",
        "model": {"parameters": 152_384, "width": 64, "layers": 2, "vocabulary": 512, "precision": "float32"},
    }
