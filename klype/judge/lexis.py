"""The little words by which a question and its answer are read, one value per language.

Closed classes only (auxiliaries, negations, question words …): nothing here names a fact, so that the judge of sameness
knows no answers. Another language is one more ``Lexis``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from klype.judge.text import words


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class Lexis:
    """``empty`` words say nothing by themselves; ``opposites`` maps a comparative to the other end of its scale."""

    interrogative: frozenset[str]
    auxiliary: frozenset[str]
    copula: frozenset[str]
    negation: frozenset[str]
    yes: frozenset[str]
    no: frozenset[str]
    empty: frozenset[str]
    clause: frozenset[str]  # what begins a clause that no longer answers: "Paris, which …", "Oslo, but …"
    speech: frozenset[str]  # words about the answer itself: "The answer to this classic question lies …"
    quantity: str  # questions that a number answers, as a regular expression over lower-case words
    year: str
    explain: frozenset[str]
    agent: str  # before the name of who made it
    place: frozenset[str]
    numerals: Mapping[str, int]
    opposites: Mapping[str, str]
    suffixes: tuple[str, ...]


def _counted(names: str) -> dict[str, int]:
    return {name: value for value, name in enumerate(names.split())}


def _both_ways(pairs: str) -> dict[str, str]:
    there = {pair.split("/")[0]: pair.split("/")[1] for pair in pairs.split()}
    return there | {b: a for a, b in there.items()}


ENGLISH = Lexis(
    interrogative=words_of("what who whom whose which when where why how explain describe name tell give"),
    auxiliary=words_of("is are was were am do does did can could will would has have had should shall may might must"),
    copula=words_of("is are was were be equals"),
    negation=words_of(
        "not no never cannot can't isn't aren't wasn't weren't don't doesn't didn't won't neither nor nobody"
        " unable flightless lack lacks"
    ),
    yes=words_of("yes absolutely certainly yeah sure definitely"),
    no=words_of("no nope"),
    empty=words_of(
        "a an the of in on at to for from by with and or as is are was were be been being it its it's this that these"
        " those there their they them he she his her i you your we our my me us which who whom whose what when where"
        " why how do does did can could will would shall should may might must has have had not no nor so than then"
        " also very just only more most much many some any such into about over if but however while although though"
        " one called known named actually indeed currently often typically usually approximately simply really"
        " considered located situated"
    ),
    clause=words_of(
        "which who that where but however although also often not despite specifically because while rather"
    ),
    speech=words_of("answer question puzzle realm word classic solve find"),
    quantity=r"\bhow (many|much|old|long|far|tall|high|big|heavy|fast|often)\b|\bwhen\b|\byear\b|\bwhat temperature\b",
    year=r"^(?!.*\bhow (?:many|much|long|old|often)\b).*(?:\bwhen\b|\byear\b)",
    explain=words_of("explain describe why how"),
    agent="by",
    place=words_of("in at"),
    numerals=_counted(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen twenty"
    )
    | {"thirty": 30, "forty": 40, "fifty": 50, "hundred": 100},
    opposites=_both_ways(
        "heavier/lighter bigger/smaller taller/shorter longer/shorter higher/lower faster/slower hotter/cooler"
        " warmer/colder older/younger more/less better/worse"
    )
    | {"larger": "smaller"},
    suffixes=("ies", "ied", "ing", "es", "ed", "er", "s", "e"),
)
NORWEGIAN = Lexis(
    interrogative=words_of("hva hvem hvor når hvilken hvilket hvilke hvordan hvorfor forklar beskriv nevn si"),
    auxiliary=words_of("er var har hadde kan kunne vil ville skal skulle må måtte blir ble"),
    copula=words_of("er var heter het kalles blir ble"),
    negation=words_of("ikke ingen aldri verken hverken ei mangler"),
    yes=words_of("ja jo javisst absolutt"),
    no=words_of("nei"),
    empty=words_of(
        "en ei et den det de som er var å og eller i på til for fra av med ved om at hva hvem hvor når hvilken hvilket"
        " hvilke hvorfor hvordan kan har hadde vil skal må ble blir ha være man du jeg vi han hun dem seg sin sitt sine"
        " dette disse der her så men også bare mer mest noe noen heter kalles kalt ikke ja nei jo"
    ),
    clause=words_of("som men hvor og også ikke fordi mens slik"),
    speech=words_of("svar svaret spørsmål spørsmålet tror"),
    quantity=r"\bhvor (mange|mye|gammelt?|langt?|lenge|høyt?|stort?|tungt?|ofte|fort)\b|\bnår\b|\bår\b|\btemperatur\b",
    year=r"^(?!.*\bhvor (?:mange|mye|lenge|gamle?|gammelt?|ofte)\b).*(?:\bnår\b|\bår\b)",
    explain=words_of("forklar beskriv hvorfor hvordan"),
    agent="av",
    place=words_of("i på ved"),
    numerals=_counted(
        "null én to tre fire fem seks sju åtte ni ti elleve tolv tretten fjorten femten seksten sytten atten"
        " nitten tjue"
    )
    | {"syv": 7, "tyve": 20, "tretti": 30, "førti": 40, "femti": 50, "seksti": 60, "hundre": 100},
    opposites=_both_ways(
        "tyngre/lettere større/mindre høyere/lavere lengre/kortere raskere/langsommere varmere/kaldere eldre/yngre"
        " mer/mindre bedre/verre"
    ),
    suffixes=("ene", "ens", "ets", "et", "en", "er", "e", "a", "t", "s"),
)
LANGUAGES = {"en": ENGLISH, "nb": NORWEGIAN}
# A Norwegian question is answered in English by many a model: these are understood in every language.
YES, NO, NEGATION = (
    frozenset().union(*(getattr(lexis, name) for lexis in LANGUAGES.values())) for name in ("yes", "no", "negation")
)


def language_of(question: str) -> str:
    """The language whose little words a question has most of; "" when it has none of either."""
    if set("æøåÆØÅ") & set(question):
        return "nb"
    spoken = set(words(question))
    found = {name: len(spoken & (lexis.empty | lexis.interrogative)) for name, lexis in LANGUAGES.items()}
    return max(found, key=lambda name: found[name]) if any(found.values()) else ""


def surely(question: str) -> str:
    """``language_of``, but "" where its little words are so few that the question may be in another language: it begins
    with no word that asks, and a third of its words are others."""
    if not (language := language_of(question)):
        return ""
    lexis, spoken = LANGUAGES[language], words(question)
    little = 3 * len({*spoken} & (lexis.empty | lexis.interrogative))
    asks = bool(lexis.interrogative & {*spoken[:3]})
    known = asks or little > len({*spoken}) or (spoken[0] in lexis.auxiliary and little == len({*spoken}))
    return language if known else ""
