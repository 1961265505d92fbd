"""The article, claim by claim: what the examination of a model says about each claim.

A claim is *supported*, *not supported* or *undetermined*, by tests that share one error probability (``rulings``); the
figures, the test, its statistic and n are given with it. Where there is a base model, long texts that it writes are
judged, too: the article speaks of a hundred words.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from klype import durable
from klype.examine import html
from klype.examine.answer_pictures import pictures
from klype.examine.error_feedback import FEW
from klype.examine.evidence import JudgedAnswer
from klype.examine.exam import ExamResult
from klype.examine.examination_report import curve_table, document
from klype.examine.hypothesis_tests import ALPHA, Ruling, rulings
from klype.examine.intervals import mean_by_question
from klype.examine.say import Say
from klype.examine.survival import survival
from klype.examine.truth import Reader, mass
from klype.experiments import claims
from klype.sources.source import Source, answers
from klype.values import Distribution, Figure, Request, Sampling, Tokens, Trace
from klype.words import words
from klype.world import Spellings, TokenFilter, World

LONGEST = 100  # words of a long text that are plotted
SHARE = "share of answers"


def article(found: ExamResult, texts: Sequence[JudgedAnswer] = (), writer: str = "") -> dict[str, Any]:
    """The examination's document with the claims: name, ruling, figures and tests.

    ``texts``: long texts by the base model ``writer``; without them, errors are counted along the answers.
    """
    made = {**document(found), "extra": {k: f.json() for k, f in extras(found).items()}}
    main = found.evidence[found.settings.main]
    if texts:
        curve = survival(texts)
        made["documents"] = {"model": writer, "n": len(texts), "s": curve.s.json(), **curve_table(curve, LONGEST)}
    told = texts or (main.answers if main.by_word else ())
    made["dependence"] = claims.dependence_facts(told, "documents" if texts else "answers")
    tests = claims.along_texts(told) | claims.after_forced(main.outcomes) | claims.of_figures(made)
    known = {name: test for name, test in tests.items() if test is not None}
    made["tests"] = {name: asdict(test) for name, test in known.items()}
    made["rulings"] = rulings(known)
    made["claims"] = [
        {
            "claim": c.name,
            "ruling": c.ruling,
            "how": c.how,
            "figures": {key: figure for key, (_, figure) in c.shown.items()},
            "tests": {name: made["tests"][name] for name in c.tests if name in made["tests"]},
        }
        for c in claims.claims(made)
    ]
    return made


def extras(found: ExamResult) -> dict[str, Figure]:
    """Figures that only the article needs.

    ``not_likeliest``: words drawn that were not the most likely ones. ``both_ways``: questions answered both correctly
    and wrongly. ``meaning_gain``: what judging by meaning adds to judging word for word. Of the feedback experiment:
    ``growth`` of the cautious effect per word; ``parted``: how much more of the words differ after another word than by
    chance; ``clean_beside``: how often nothing is wrong within ``RECOVERED`` words after a forced correct word;
    ``ended``: how many answers had ended by then after a forced wrong one.
    """
    main = found.evidence[t := found.settings.main]

    def mean(valued: Iterable[tuple[float, str]], unit: str) -> Figure:
        """The mean over questions of (value, question) pairs."""
        values, asked = [*zip(*valued, strict=True)] or ((), ())
        return mean_by_question(values, asked, unit)

    drawn = [
        (float(step.token != int(step.distribution.ids[0])), question.id)
        for question, group in zip(found.target.questions, found.traces[t], strict=True)
        for trace in group
        for step in trace.steps
        if step.distribution is not None
    ]
    kinds = Counter(q for q, _ in dict.fromkeys((a.question, a.right) for a in main.answers if a.right is not None))
    gains = [
        (float(a.right) - float(a.word_for_word), a.question)
        for a in main.answers
        if a.right is not None and a.word_for_word is not None
    ]
    ruled = [(one, one.intervention.question) for one in main.outcomes if one.intervention.by_rule and one.moved]
    matched = [one for one in main.outcomes if one.intervention.is_matched and len(one.moved) > 1]
    growth = Figure(None, n=len(matched), why=f"fewer than {FEW} matched pairs")
    if len(matched) >= FEW:
        rows = [(one.cautious(), one.intervention.question) for one in matched]
        growths = [(float(np.subtract(r["wrong"], r["near"]) @ claims.slope(len(r["wrong"]))), q) for r, q in rows]
        growth = mean(growths, "difference of shares")
    recovered = slice(claims.RECOVERED)  # or fewer distances, if there are not so many
    return {
        "not_likeliest": mean(drawn, "share of words"),
        "both_ways": mean([(float(n == 2), q) for q, n in kinds.items()], "share of questions"),
        "meaning_gain": mean(gains, "share of answers"),
        "growth": growth,
        "parted": mean([(one.parted, q) for one, q in ruled if one.parted is not None], "difference of shares"),
        "clean_beside": mean([(one.clean["right"][recovered][-1], q) for one, q in ruled], SHARE),
        "ended": mean([(one.ended["wrong"][recovered][-1], q) for one, q in ruled], SHARE),
    }


def write(folder: Path, made: claims.Document, lang: str) -> Path:
    """Writes ``article.html`` in all languages, with a section for each claim; a picture is shown with the first claim
    that it belongs to."""
    rows = claims.claims(made)
    counts = {ruling: sum(claim.ruling == ruling for claim in rows) for ruling in get_args(Ruling)}
    # the judge, and how often it errs about what is correct
    judged = {"judge": made["judge"], **made["figures"].get(made["main"], {}).get("right", {})}

    def page(say: Say) -> html.Document:
        own, drawn = words(say.lang, "article"), pictures(made, say)
        about = {"model": made["model"], "questions": made["questions"], "samples": made["settings"]["n"]}
        about |= {"t": say.plain(float(made["main"])), "judge": say.judge_note(judged), "alpha": say.share(ALPHA)}
        formula, sections = html.Formula(drawn["formula"]), []
        for claim, (says, ruled, measured, how) in zip(rows, sentences(made, say.lang), strict=True):
            shown = formula if claim.name == "formula" else drawn.pop(claim.picture, None)
            sign = {"supports": "ok", "does_not_support": "no"}.get(claim.ruling, "open")
            found = html.Text(measured, "verdict", sign, f"{ruled}.")
            sections.append(html.Section([found, html.Text(how, "small") if how else None, shown], says, claim.name))
        return html.Document(say, own("title"), own("lead", n=len(rows), **about, **counts), sections)

    return durable.write_out(folder / "article.html", html.render(page, lang, made["model"]))


def sentences(made: claims.Document, lang: str) -> list[tuple[str, str, str, str]]:
    """For each claim the sentences (claim, ruling, what was measured, how it was tested)."""
    say, own, out = Say(lang), words(lang, "article"), []
    for claim in claims.claims(made):
        shown = claim.shown
        values = {key: say.figure(figure, name) for key, (name, figure) in shown.items()}  # type: ignore[arg-type]
        values |= say.apart({k: f["value"] for k, (_, f) in shown.items() if f.keys() <= {"value", "unit"}})
        for key, value in claim.plain.items():
            told = value if isinstance(value, str) else say.count(value) if isinstance(value, int) else say.plain(value)
            values[key] = told
        found = own(f"{claim.name}.{claim.ruling}", **values) if values else own("unmeasured")
        out.append((own(f"{claim.name}.says"), own(f"ruling.{claim.ruling}"), found, _how(claim, made, say)))
    return out


def _how(claim: claims.ArticleClaim, made: claims.Document, say: Say) -> str:
    """How a claim was ruled on: each test with its statistic, n, and the p-values of both sides."""
    own = words(say.lang, "article")
    if claim.how != "test":
        return own(f"test.{claim.how}") if claim.how != "nothing" else ""
    out = []
    for name, test in ((name, made["tests"][name]) for name in claim.tests if name in made["tests"]):
        key, bound = f"margin.{name}", test["margin"]
        margin = own(key, margin="" if bound is None else say.plain(bound)) if key in own.messages else ""
        chances = {side: say.chance(test[side]) for side in ("supports", "against")}
        kind = own(f"test.{test['test'].lower().replace(' ', '_')}")
        number, n = say.number(test["statistic"]), say.count(test["n"])
        out.append(own("test.line", test=kind, statistic=number, n=n, margin=margin, **chances).strip())
    return " ".join(out)


# Long texts that a base model of the demo world writes, judged word by word: the article speaks of a hundred words.

MIN_WORDS = 80  # minimum number of words of a document whose first sentence is used as a prompt
CHUNK = 50  # texts that are written at once: their distributions are too large to keep


@dataclass(frozen=True, slots=True)
class FreeTextRequest:
    """A request for ``number`` texts of ``words`` tokens each, none of which may end earlier."""

    number: int = 1000
    words: int = 100
    temperature: float = 0.7
    seed: int = 0


def openings(world: World, settings: FreeTextRequest) -> Iterator[tuple[str, ...]]:
    """First sentences of the language's own documents of at least ``MIN_WORDS`` words: after the short ones, such as
    proverbs, the language must end."""
    rng = random.Random(f"documents {settings.seed}")
    drawn = (world.document(rng).words for _ in count())
    return islice((words[: words.index(".") + 1] for words in drawn if len(words) >= MIN_WORDS), settings.number)


def write_texts(
    source: Source,
    world: World,
    spellings: Spellings,
    begin: int,
    settings: FreeTextRequest,
    progress: Callable[[int], None] = lambda done: None,
) -> list[JudgedAnswer]:
    """Has the model write the texts, and judges each with S before every token up to its first error. S is relative to
    what may be drawn, without the end of the text. ``progress(done)``: called after every ``CHUNK``."""
    out: list[JudgedAnswer] = []
    begun = [tuple(t for word in words for t in spellings.of[word]) for words in openings(world, settings)]
    end, stop = source.codec.stop[0], tuple(source.codec.stop)
    sampling = Sampling(temperature=settings.temperature, logit_bias=((end, -100.0),))
    seed = settings.seed * 1_000_003
    requests = [
        Request((begin, *opening), limit=settings.words, sampling=sampling, seed=seed + i, stop=stop, top=-1)
        for i, opening in enumerate(begun)
    ]
    for first in range(0, len(begun), CHUNK):
        some = slice(first, first + CHUNK)
        for opening, (trace,) in zip(begun[some], answers(source, requests[some]), strict=True):
            reader = Reader(lambda: TokenFilter(world.filter(), spellings))
            out.append(judge_text(str(len(out)), trace, reader, opening, settings.temperature, end))
        progress(len(out))
    return out


def judge_text(name: str, trace: Trace, reader: Reader, begun: Tokens, temperature: float, end: int) -> JudgedAnswer:
    """A text that continues ``begun``, judged up to the first token that cannot follow, or to where the language must
    end."""
    s: list[float] = []
    error = None
    for t, step in enumerate(trace.steps):
        possible = {token: p for token, p in reader.next((*begun, *trace.tokens[:t])).items() if token != end}
        if not possible:
            break
        assert step.distribution is not None
        # the distribution without the end, normalised from what is left: 1 minus the end's share would lose all digits
        # where that share is nearly 1
        going_on_K = step.distribution.ids != end
        going_on = Distribution(step.distribution.ids[going_on_K], step.distribution.logp[going_on_K])
        s.append(mass(going_on, temperature, possible))
        if step.token not in possible:
            error = len(s)
            break
    words = tuple(str(token) for token in trace.tokens[: len(s)])
    return JudgedAnswer(name, words, "length", first_error=error, s=tuple(s))
