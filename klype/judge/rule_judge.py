"""A judge of open answers by rules over what each answer claims, without a model.

A question asks for a choice, for yes or no, a number, a name or thing, or an explanation. Only the claims of answers
are compared: the choice, the polarity, the number, or the content words of the answering sentence, without words of the
question and without further clauses ("Paris, which …"). ``python -m benchmarks meaning`` measures the rules on pairs
labelled by a reader."""

import math
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from klype.judge.judge import Judge, Ruling
from klype.judge.text import LANGUAGES, LITTLE, NEGATION, NO, NUMERAL, WORD, YES, choices_named, language_of, words
from klype.values import Figure, Question

Kind = Literal["choice", "yes or no", "number", "name", "explanation"]
JUDGE = "content of the answering sentence"
# Shares of common content words from which on two claims agree: the best F1 on benchmarks/meaning.jsonl and the shared
# pairs, cross-validated by question.
NAMES_AGREE = 2 / 3  # of the shorter claim
EXPLANATIONS_AGREE = 0.14  # of both sentences' words
KEPT = 256  # questions whose claims are cached
READ = 4000  # characters of an answer that are read: claims are at its beginning, and the time is quadratic
# by name of a unit: the quantity it measures, and its size
UNITS = {name: (one["of"], one["size"]) for one in LITTLE["units"] for name in one["names"].split()}
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Word:
    """A content word. ``stem``: what is compared; ``name``: whether it is written like a name or a number."""

    stem: str
    name: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What an answer claims: ``value`` for a choice, yes or no, or a number; else the stems of the claim (``words``)
    and of its sentence. ``denies``: the sentence has a negation; ``units``: named in the answer."""

    value: int | float | bool | None = None
    words: tuple[str, ...] = ()
    sentence: frozenset[str] = frozenset()
    denies: bool = False
    units: frozenset[str] = frozenset()
    beside: frozenset[float] = frozenset()  # the numbers of a date besides the year


class Sameness:
    """Compares answers to one question. ``kind``: what the question asks for."""

    def __init__(self, question: str, choices: tuple[str, ...] = ()) -> None:
        self._choices = choices
        self._lexis = LANGUAGES[language_of(question) or "en"]
        spoken = words(question)
        little = (self._lexis.empty - self._lexis.opposites.keys()) | self._lexis.interrogative
        self._asked = [w for w in spoken if w not in little]
        self._content = frozenset(self._stem(w) for w in self._asked)
        self._head = spoken[:3]
        self._text = " ".join(spoken)
        self._numbers = frozenset(value for _, value in self._numerals(question))
        self._several = len(re.findall(self._lexis.quantity, self._text)) > 1
        self.claim = cache(self._read)
        self.kind: Kind = self._kind(question)

    def same(self, a: str, b: str) -> bool | None:
        """Whether two answers make the same claim; None if that cannot be decided."""
        one, other = self.claim(a), self.claim(b)
        if self.kind in ("choice", "yes or no"):
            return None if one.value is None or other.value is None else one.value == other.value
        if self.kind == "number" and (one.value is not None or other.value is not None):
            if self._several:
                return one.beside == other.beside
            if len(one.units) == len(other.units) == 1 and one.units != other.units and one.value and other.value:
                (measured, size), (other_measured, other_size) = (UNITS[unit] for unit in (*one.units, *other.units))
                if measured == other_measured:  # 5 km and 5,000 m
                    return math.isclose(one.value * size, other.value * other_size, rel_tol=1e-6)
            if one.value != other.value:
                return False
            # undecided: 5 kg and 5 km; different: 3 May and 7 May of one year
            apart = one.units and other.units and one.units != other.units
            days = one.beside and other.beside and not one.beside & other.beside
            return None if apart else not days
        if self.kind == "explanation":
            if one.denies != other.denies:
                return False
            common = _common(one.sentence, other.sentence)
            return common >= EXPLANATIONS_AGREE * max(1, len(one.sentence) + len(other.sentence) - common)
        if not one.words and not other.words:
            return None
        fewer = min(len(one.words), len(other.words))
        return fewer > 0 and _common(one.words, other.words) >= NAMES_AGREE * fewer

    def agrees(self, answer: str, reference: str) -> bool | None:
        """Whether an answer agrees with a reference; None if undecided.

        True: it has the reference's choice, polarity or numbers, or the answering sentence contains the whole reference
        without denying it. False: it claims something else and does not contain the reference.
        """
        answer = answer[:READ]
        given, wanted = self.claim(answer), self.claim(reference)
        if self.kind in ("choice", "yes or no") and wanted.value is not None:
            if given.value is not None:
                return given.value == wanted.value
            letters = {chr(ord("A") + n) for n in range(len(self._choices))}
            nowhere = not {*words(reference)} & {*words(answer)} and not letters & {*WORD.findall(answer)}
            return False if self.kind == "choice" and nowhere else None
        numbers = {value for _, value in self._numerals(reference)}
        if self.kind == "number" and numbers:
            said = {value for _, value in self._numerals(answer)}
            if given.value is None:
                return None if numbers & said else False
            if given.units and wanted.units and given.units != wanted.units:
                return self.same(answer, reference)
            return numbers <= said if given.value in numbers else False
        sentence = self._answering_sentence(answer)
        if {"or", "eller"} & {*words(sentence)} - {*words(reference)} - {*words(self._text)}:
            return None  # "Canberra or Sydney" claims neither
        if (standing := _stands_in(reference, sentence)) is not None:
            return standing
        content = [word.stem for word in self._new(reference)]
        if content and all(_among(stem, [word.stem for word in self._new(sentence)]) for stem in content):
            return True
        elsewhere = _stands_in(reference, answer) is not None or any(_among(stem, given.words) for stem in content)
        # an explanation in other words altogether may be right; a name may not
        return None if elsewhere or (self.kind != "name" and not given.words) else False

    def _read(self, answer: str) -> Claim:
        """Parses the claim of an answer."""
        answer = answer[:READ]
        match self.kind:
            case "choice":
                named = choices_named(self._choices, answer)
                rest = {*words(answer)} - {word for i in named for word in words(self._choices[i])}
                return Claim(next(iter(named)) if len(named) == 1 and not NEGATION & rest else None)
            case "yes or no":
                return Claim(self._polarity(answer))
            case "number":
                value = self._number(answer)
                if value is not None:
                    dated = bool(re.search(self._lexis.year, self._text))
                    said = {number for _, number in self._numerals(answer)}
                    beside = said if self._several else {number for number in said if number < 1000} if dated else set()
                    units = UNITS.keys() & {*words(answer)} - {*words(self._text)}
                    return Claim(value, units=frozenset(units), beside=frozenset(beside))
        sentence = self._answering_sentence(answer)
        return Claim(
            words=tuple(dict.fromkeys(word.stem for word in self._core(sentence))),
            sentence=frozenset(word.stem for word in self._new(sentence)),
            denies=bool(NEGATION & {*words(sentence)}),
        )

    def _kind(self, question: str) -> Kind:
        lexis = self._lexis
        if self._choices:
            return "choice"
        either = re.search(r"([^\W_]+),? (?:or|eller) (?:\w+ )??([^\W_]+)", question.casefold())
        if either:  # the alternatives do not count as the question's own words
            self._content -= {self._stem(either[1]), self._stem(either[2])}
            return "name"
        asks = question.rstrip().endswith("?") and not lexis.interrogative & {*self._text.split()}
        if self._head and (self._head[0] in lexis.auxiliary or asks):
            return "yes or no"
        if re.search(lexis.quantity, self._text) or len(self._numerals(question)) > (not re.search(r"\d", question)):
            return "number"
        return "explanation" if self._head and self._head[0] in lexis.explain else "name"

    # yes or no

    def _polarity(self, answer: str) -> bool | None:
        lexis, spoken = self._lexis, words(answer)
        if not spoken:
            return None
        told = re.match(
            r"(?:the )?(?:short |simple )?(?:answer|svaret)\b[^.!?]{0,40}?\b(?:is|er)\b[\s:]*(\w+)", answer, re.I
        )
        lead = told[1].casefold() if told else spoken[0]
        if lead in YES or lead in NO:
            return lead in YES
        compared = next((w for w in self._asked if w in lexis.opposites), None)
        for sentence in _SENTENCE.split(answer):
            said = self._affirms_comparison(sentence, compared) if compared else self._affirms(sentence)
            if said is not None:
                return said
        return None

    def _affirms_comparison(self, sentence: str, more: str) -> bool | None:
        """Whether a sentence affirms a comparison, as "B is lighter than A" affirms "Is A heavier than B?"; None if it
        has no such comparison."""
        spoken = words(sentence)
        ends = {more, *(w for w, other in self._lexis.opposites.items() if other == more), self._lexis.opposites[more]}
        at = next((i for i, w in enumerate(spoken) if w in ends), None)
        things = [self._stem(w) for w in self._asked if w != more]
        if at is None or len(things) < 2:
            return None
        before = [stem for w in spoken[:at] if (stem := self._stem(w)) in (things[0], things[-1])]
        if not before:
            return None
        denied = bool(NEGATION & {*spoken[max(0, at - 4) : at]}) and "only" not in spoken[:at]
        turned = before[-1] == things[-1]
        other_end = spoken[at] == self._lexis.opposites[more]
        return not (denied ^ turned ^ other_end)

    def _affirms(self, sentence: str) -> bool | None:
        """Whether a sentence affirms what was asked; None if it is about something else."""
        spoken = [w.split("'")[0] if w not in NEGATION else w for w in words(sentence)]
        stems = [self._stem(w) for w in spoken]
        if not self._asked:
            return None
        subject, predicate = self._stem(self._asked[0]), self._stem(self._asked[-1])
        stands_for = {*spoken} & {"it", "they", "these", "he", "she", "den", "det", "de", "han", "hun"}
        at = next((i for i, stem in enumerate(stems) if _alike(stem, predicate)), None)
        if at is None:
            short = len(spoken) <= 6 and stands_for and {*spoken} & (self._lexis.auxiliary | {"gjør"})
            return not NEGATION & {*spoken} if short else None
        if {*spoken} & {"if", "whether", "om"} or not (stands_for or any(_alike(stem, subject) for stem in stems)):
            return None
        near = {*spoken[max(0, at - 7) : at + 2]}
        return not (NEGATION & near and "only" not in near)

    # numbers

    def _numerals(self, text: str) -> list[tuple[int, float]]:
        """(position, value) of every number; number words in the question's language only."""
        found = []
        short = len(text.split()) <= 2
        for match in re.finditer(rf"{NUMERAL.pattern}|[^\W\d_]+", text):
            said = match.group()
            if said[-1].isdigit():
                plain = re.sub(r"[ \u00a0\u202f]|,(?=\d{3}(?:\D|$))", "", said).replace(",", ".").replace("\u2212", "-")
                if re.fullmatch(r"-?\d+(\.\d+)?", plain):
                    found.append((match.start(), float(plain)))
            # "to" (Norwegian for two) and "one" are rarely numbers
            elif (word := said.casefold()) in self._lexis.numerals and (short or word not in ("to", "one")):
                found.append((match.start(), float(self._lexis.numerals[word])))
        return found

    def _number(self, answer: str) -> float | None:
        """The number that answers: a year if one was asked for, else the one after "=" or "is", else the first that is
        not in the question."""
        found = self._numerals(answer)
        if re.search(self._lexis.year, self._text):
            found = [(at, value) for at, value in found if 1000 <= value <= 2100]
            ended = r"\b(?:end\w*|over|finish\w*|slutt\w*|til)\W+(?:\w+\W+){0,3}$"
            meant = [value for at, value in found if re.search(ended, answer[:at], re.I)] or [v for _, v in found]
            return meant[0] if meant else None
        for lead in (
            r"=\s*$",
            r"\b(?:equals|equal to|gives(?: us)?|is|are|has|have|er|blir|gir|lik|har)\s*(?:\w+\s+){0,2}$",
        ):
            after = [value for at, value in found if re.search(lead, answer[:at], re.I)]
            if after:
                return next((value for value in after if value not in self._numbers), after[0])
        return next((value for _, value in found if value not in self._numbers), None)

    # names and explanations

    def _answering_sentence(self, answer: str) -> str:
        """The answering sentence: about the question, with new content words, preferably a name, preferably early."""

        def worth(place: int, sentence: str) -> float:
            spoken, new = words(sentence), self._new(sentence)
            named = any(word.name for word in new[new[0].stem == self._stem(spoken[0]) :])
            tail = self._tail(sentence)
            talk = bool(self._lexis.speech & {*spoken})
            # weights set by hand: being about the question counts most, phrases of talking count against it
            return min(self._about(sentence), 0.75) + 0.35 * named + 0.2 * bool(tail) - 0.6 * talk - 0.08 * place

        sentences = [s for s in _SENTENCE.split(answer.strip()) if self._new(s)]
        if not sentences:
            return answer
        return max(enumerate(sentences), key=lambda one: worth(*one))[1]

    def _core(self, sentence: str) -> list[Word]:
        """The answering content words of a sentence: who did it, where it is, what follows "is"; else its first
        clause."""
        lexis, names = self._lexis, r"((?:the )?(?:[A-ZÆØÅ][\w.'-]+\s*)+)"
        if {*self._head[:1]} & {"who", "hvem"}:
            made = re.search(rf"\b{lexis.agent}\s+{names}", sentence)
            named = self._new(made[1]) if made else [word for word in self._new(sentence) if word.name][:3]
            if named:
                return named
        if {*self._head[:2]} & {"where", "hvor", "in", "i"}:
            lies = re.search(rf"\b(?i:{'|'.join(sorted(lexis.place))})\s+{names}", sentence)
            if lies and (named := self._new(lies[1])):
                return named
        return self._tail(sentence) or self._first_clause(sentence)

    def _tail(self, sentence: str) -> list[Word]:
        """The content words after an "is" whose subject is that of the question."""
        enough = min(0.5, self._about(sentence))
        for match in re.finditer(rf"\b(?:{'|'.join(sorted(self._lexis.copula))})\b", sentence):
            before = sentence[: match.start()]
            if self._about(before) >= enough or not self._new(before):
                tail = self._first_clause(sentence[match.end() :])
                if tail:
                    return tail
        return []

    def _first_clause(self, text: str) -> list[Word]:
        """The content words of the first clause."""
        ends = "|".join(sorted(self._lexis.clause))
        again = "|".join(sorted(map(re.escape, self._content)))  # an apposition: ", capital of …"
        for match in re.finditer(
            rf"[.!?;](?:\s|$)|\n|\(|,? \b(?:{ends})\b|, (?:and|their|in|with|the|known|made)\b"
            + (rf"|, (?:(?i:{again}))" if again else ""),
            text,
        ):
            if match.group().strip(" ,") in ("and", "og") and "," in text[: match.start()]:
                continue  # before the last item of an enumeration
            if words_before := self._new(text[: match.start()]):
                return words_before
        return self._new(text)

    def _new(self, text: str) -> list[Word]:
        """The content words that are not in the question, without those right after a negation."""
        found, denied = [], False
        for raw in WORD.findall(unicodedata.normalize("NFKC", text)):
            word = raw.casefold().replace("’", "'").removesuffix("'s")
            if word in NEGATION:
                denied = True
                continue
            stem = self._stem(word)
            if word in self._lexis.empty or word in self._lexis.speech or _among(stem, self._content):
                continue
            if not denied:
                found.append(Word(stem, raw[0].isupper() or raw[0].isdigit()))
            denied = False
        return found

    def _about(self, text: str) -> float:
        """The share of the question's content words that occur in a text."""
        stems = {self._stem(word) for word in words(text)}
        return sum(_among(stem, stems) for stem in self._content) / max(1, len(self._content))

    def _stem(self, word: str) -> str:
        for suffix in self._lexis.suffixes:
            if word.endswith(suffix) and len(word) - len(suffix) >= 3:
                return word[: -len(suffix)]
        return word


# How often the rules differ from a reader, with intervals over questions: python -m benchmarks meaning, 2026-11-30, 373
# English and 211 Norwegian pairs, and the answers to questions with a reference. A test compares them with its output.
PAIRS, DECIDED = "share of pairs", "share of decided answers"
ERRORS: dict[tuple[Ruling, str], Figure] = {
    ("same", "en"): Figure(0.0402, 0.0155, 0.2214, 18, PAIRS, judge=JUDGE),
    ("same", "nb"): Figure(0.0758, 0.0342, 0.2333, 20, PAIRS, judge=JUDGE),
    ("right", "en"): Figure(0.0435, 0.0093, 0.2587, 15, DECIDED, judge=JUDGE),
    ("right", "nb"): Figure(0.0127, 0.0004, 0.2147, 16, DECIDED, judge=JUDGE),
}


class RuleJudge(Judge):
    """Compares answers' claims by rules; klype's default judge."""

    name = JUDGE
    errors = ERRORS

    def __init__(self) -> None:
        self._read = lru_cache(KEPT)(Sameness)

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        return self._read(question.question, question.choices).same(a, b)

    def agrees(self, question: Question, answer: str, reference: str) -> bool | None:
        return self._read(question.question, question.choices).agrees(answer, reference)


def _stands_in(reference: str, text: str) -> bool | None:
    """Whether a text contains the reference as a phrase that is not denied, by a negation among the three words before
    and after it in its clause ("Portuguese, not Spanish"); None if it does not contain it."""
    wanted, undenied = words(reference), []
    n = len(wanted)
    for clause in re.split(r"[,.;:!?](?=\s|$)", text):
        said = words(clause)
        starts = [i for i in range(len(said) - n + 1) if said[i : i + n] == wanted]
        undenied += [not NEGATION & {*said[max(0, i - 3) : i], *said[i + n : i + n + 3]} for i in starts]
    return any(undenied) if wanted and undenied else None


def _alike(a: str, b: str) -> bool:
    """Whether stems are equal or one is a prefix of the other: "portugis" and "portugisisk"."""
    return a == b or (min(len(a), len(b)) >= 4 and (a.startswith(b) or b.startswith(a)))


def _common(one: Collection[str], other: Collection[str]) -> int:
    """The number of words in common. A word may match several ("bridge": "bridge", "bridges"), so the smaller of both
    counts is taken, which is symmetric."""
    return min(sum(_among(w, other) for w in one), sum(_among(w, one) for w in other))


def _among(stem: str, others: Collection[str]) -> bool:
    return any(_alike(stem, other) for other in others)
