"""The demo world's interface: documents, questions, the meaning of answers, verdicts on them, exact distributions."""

import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from klype.errors import KlypeError, UsageError
from klype.values import Question, Verdict
from klype.world.automaton import END, EditFilter, Filter, RuleCall, State, Symbols, arcs, branches, expansions, sample
from klype.world.grammar import ANSWERS, BORING, CHAT, STYLES, Env, Grammar
from klype.world.lexicon import FIXED, KINDS, LANGUAGES, WORDS, Fact, Lexicon, WorldQuery, items_of, key
from klype.world.vocabulary import ATTACHED, vocabulary

TOKEN = re.compile(r"[.,?!:]|[^\s.,?!:]+")
HELD_OUT_SHARE = 20  # one story in twenty is held out for evaluation
FIXED_SHARE = 5  # one item of world knowledge in five is held out: no training chat asks about it
Manner = Literal["bare", "sentence", "polite", "boring", "wrong"]
# weights of the annotator's score: 2·right + 0.7·polite − 0.04·words − 1·unfinished
RIGHT, POLITE, WORD, UNFINISHED = 2.0, 0.7, 0.04, 1.0


@dataclass(frozen=True, slots=True)
class WorldDocument:
    """A document as words without END; ``answers``: whether each word is inside an answer."""

    words: tuple[str, ...]
    answers: tuple[bool, ...]


class World:
    """The demo world. ``size`` "full" has some 560 words (815 with capitalised ones), "small" is for tests."""

    def __init__(self, size: Literal["full", "small"] = "full") -> None:
        if size not in ("full", "small"):
            raise KlypeError(f"There is no world of size “{size}”.", "Sizes are: full, small.")
        self.size = size
        self.lexicon = Lexicon(small=size == "small")
        self.grammar = Grammar(self.lexicon)

    # text

    @staticmethod
    def text(words: Sequence[str]) -> str:
        """Joins words to a text, with no space before punctuation."""
        return "".join(w if w in ATTACHED else " " + w for w in words if w != END).strip()

    @staticmethod
    def words_of(text: str) -> tuple[str, ...]:
        return tuple(TOKEN.findall(text))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, sorted."""
        return vocabulary(self.grammar)

    # documents

    def document(
        self, rng: random.Random, styled: bool = True, heldout: bool = False, most_facts: int | None = None
    ) -> WorldDocument:
        """Samples a document. ``heldout``: one whose story is in no training document; the share of stories stays the
        same. ``styled``: with answers of every style; ``most_facts``: of a story."""

        def too_long(env: Env) -> bool:
            return most_facts is not None and len(env.facts) > most_facts

        kind: bool | None = None  # whether a held-out document is a story, as first drawn
        while True:
            words, env = sample(self.grammar.document(styled), rng, too_long if most_facts else None)
            story = bool(env.facts) and env.facts[0][0] != "walk"
            kind = story if kind is None and heldout else kind
            wanted = self._held_out(env.facts) == heldout if story else True
            if wanted and kind in (None, story) and not too_long(env):
                # answers are what follows a question mark, up to the next full stop
                inside = [False]
                for word in words[:-1]:
                    inside.append(word == "?" or (inside[-1] and word != "."))
                return WorldDocument(tuple(words[:-1]), tuple(inside[:-1]))

    @staticmethod
    def _held_out(facts: tuple[Fact, ...]) -> bool:
        return zlib.crc32(key(facts).encode()) % HELD_OUT_SHARE == 0

    # questions

    def question(
        self, rng: random.Random, heldout: bool = False, hard: bool = False, fixed: bool | None = None
    ) -> Question:
        """Samples a question about a story, or with ``fixed`` about world knowledge (None: one in seven). ``heldout``:
        about held-out stories and items only, else about others only. ``hard``: a story of four facts of one
        relation."""
        lang = rng.choice(LANGUAGES)
        if fixed is None:
            fixed = not hard and rng.random() < 0.14
        if fixed:
            items = self._fixed_items[heldout]
            kind = rng.choices(list(items), [KINDS[k].weight for k in items])[0]
            env = Env(lang=lang, manner=CHAT, dash=False)
            asked, query = self._sample_question(self.grammar.put(env, kind, rng.choice(items[kind])), env, rng)
            return self._question(env, query, "", asked)
        told, env = self._story(rng, lang, hard, heldout)
        asked, query = self._sample_question(self.grammar.ask(env), env, rng)
        return self._question(env, query, self.text(told), asked)

    def _story(self, rng: random.Random, lang: str, hard: bool, heldout: bool) -> tuple[list[str], Env]:
        """Samples a story: its words and environment. Only its last fact is redrawn until it is held out (or not),
        since few are and a whole story is costly."""
        while True:
            env = Env(lang=lang, manner=CHAT, dash=False)
            told: list[str] = []
            for _ in range((4 if hard else rng.choice((2, 3, 4))) - 1):
                words, env = sample(((RuleCall(self.grammar.fact),), env), rng)
                told += words
            if hard and len({fact[0] for fact in env.facts}) > 1:
                continue
            for _ in range(4 * HELD_OUT_SHARE):
                words, whole = sample(((RuleCall(self.grammar.fact),), env), rng)
                if self._held_out(whole.facts) == heldout and not (hard and whole.facts[-1][0] != env.facts[0][0]):
                    return told + words, whole

    @cached_property
    def _fixed_items(self) -> dict[bool, dict[str, list[Fact]]]:
        """Items of world knowledge by kind, those held out (True) and the others."""
        found: dict[bool, dict[str, list[Fact]]] = {True: {}, False: {}}
        for kind in FIXED:
            for item in items_of(kind, self.lexicon):
                held_out = zlib.crc32("/".join(item).encode()) % FIXED_SHARE == 0
                found[held_out].setdefault(kind, []).append(item)
        return found

    def _sample_question(self, options: list[Any], env: Env, rng: random.Random) -> tuple[str, WorldQuery]:
        """Samples a question's words, without the answer."""
        _, symbols, env = rng.choices(options, [o[0] for o in options])[0]
        words: list[str] = []
        stack = list(reversed(symbols))
        while stack:
            head = stack.pop()
            if isinstance(head, str):
                words.append(head)
            elif isinstance(head, RuleCall) and head.rule == self.grammar.answer:
                return self.text(words), head.arguments[0]
            else:
                options = expansions(head, env)
                _, said, env = rng.choices(options, [o[0] for o in options])[0]
                stack.extend(reversed(said))
        raise AssertionError("a question without an answer")

    def _question(self, env: Env, query: WorldQuery, story: str, asked: str) -> Question:
        contents = [c for _, c in KINDS[query.kind].right(query.about, env.facts)]
        styles = ("bare",) if query.one_word else ("bare", "sentence")
        answers = dict.fromkeys(
            self.text(first)
            for style in styles
            for content in contents
            for first in _every(self.grammar.say(env.lang, query, content, style))
        )
        extra = {"world": self.size, "lang": env.lang, "kind": query.kind, "fixed": not env.facts}
        extra |= {"facts": [list(f) for f in env.facts], "about": list(query.about), "one_word": query.one_word}
        name = zlib.crc32(f"{env.lang} {story} {asked}".encode())
        return Question(f"w{name:08x}", asked, story, tuple(answers), extra=extra)

    def parse(self, text: str) -> Question:
        """Parses a story and a question: any that ``question`` can sample.

        Raises KlypeError, naming the first word that cannot stand there.
        """
        if not isinstance(text, str):
            raise UsageError(f"The text should be a string (it is of type {type(text).__name__}).")
        words = self.words_of(text)
        starts = [Env(lang=lang, manner=CHAT, dash=False) for lang in LANGUAGES]
        reached = []
        for begun in starts:
            found, read, sayable = self._read(words, begun)
            reached.append((read, sayable))
            if found:
                start, env, query = min(found, key=str)
                return self._question(env, query, self.text(words[:start]), self.text(words[start:]))
        furthest = max(read for read, _ in reached)
        if furthest == len(words):
            raise KlypeError("The text ends before its question does.", "End it with a question about what was told.")
        word = words[furthest]
        told = word if len(word) <= 40 else f"{word[:39]}…"
        cased = {own for read, sayable in reached if read == furthest for own in sayable}
        known = min((own for own in cased if own.casefold() == word.casefold()), default="")
        raise KlypeError(
            f"“{told}” (word {furthest + 1}) is not what the demo world's language could say there.",
            f"Capital letters count: it says “{known}”."
            if known
            else "It tells up to four facts and asks about one of them.",
        )

    def _read(self, words: tuple[str, ...], env: Env) -> tuple[set[tuple[int, Env, WorldQuery]], int, set[str]]:
        """All parses of words as a story and a question: (start of the question, environment, query); how many words
        could be read; and the words possible after them."""
        told = "<told>"  # marks the end of a fact; no text has this word
        stories: set[State] = {((RuleCall(self.grammar.fact), told, END), env)}
        asking: set[tuple[int, State]] = {
            (0, (symbols, bound))
            for kind in FIXED
            for item in items_of(kind, self.lexicon)
            for _, symbols, bound in self.grammar.put(env, kind, item)
        }
        for t, word in enumerate(words):
            onward = branches(stories)
            for _, known in onward.get(told, ()):
                asking |= {(t, (symbols, bound)) for _, symbols, bound in self.grammar.ask(known)}
                if len(known.facts) < 4:
                    for said, after in branches([((RuleCall(self.grammar.fact), told, END), known)]).items():
                        onward.setdefault(said, set()).update(after)
            put = [(start, branches([state])) for start, state in asking]
            stories = onward.get(word, set())
            asking = {(start, after) for start, said in put for after in said.get(word, ())}
            if not stories and not asking:
                return set(), t, set(onward).union(*(said for _, said in put)) - {told, END}
        found = set()
        todo = list(asking)
        while todo:
            start, (stack, bound) = todo.pop()
            if stack and isinstance(stack[0], RuleCall) and stack[0].rule == self.grammar.answer:
                found.add((start, bound, stack[0].arguments[0]))
            elif stack and not isinstance(stack[0], str):
                todo += [(start, ((*said, *stack[1:]), after)) for _, said, after in expansions(stack[0], bound)]
        return found, len(words), set()

    def retrieval(
        self, rng: random.Random, manner: Literal["bare", "sentence"], hard: bool = True
    ) -> tuple[str, Question]:
        """A text that ends in a question about its held-out story, and that question.

        Before it another question is answered in the style ``manner``, to show a model that never saw a chat how to
        answer. Both ask who, what, where or which colour. ``hard``: a story of four facts of one relation.
        """
        while True:
            question = self.question(rng, heldout=True, hard=hard, fixed=False)
            if (
                KINDS[question.extra["kind"]].relation not in ("loc", "has", "like", "did")
                or question.extra["one_word"]
            ):
                continue
            env, _ = _context(question)
            asked, query = self._sample_question(self.grammar.ask(env), env, rng)
            if not query.one_word and asked != question.question:
                break
        shown = self._question(env, query, question.context, asked)
        text = " ".join((question.context, asked, self.answer(shown, manner, rng), question.question))
        return text, question

    # answers

    @property
    def manners(self) -> dict[str, float]:
        """The shares of styles in the fine-tuning data."""
        return {style: p for p, style in ANSWERS[CHAT]}

    def answer(self, question: Question, manner: Manner, rng: random.Random) -> str:
        """Samples a correct answer in a style; "wrong": an answer in any style with a wrong content."""
        env, query = _context(question)
        row = KINDS[query.kind]
        right = row.right(query.about, env.facts)
        if manner == "wrong":
            other = [c for c in row.domain(query.about, env.facts, self.lexicon) if c not in [c for _, c in right]]
            style = rng.choices(STYLES, (0.3, 0.3, 0.3, 0.1))[0]
            while True:  # a bare "No." is correct whatever content it was drawn for
                wrong = self._sample_answer(env, query, (rng.choice(other), style), rng)
                if not self.judge(question, wrong).right:
                    return wrong
        content = rng.choices([c for _, c in right], [p for p, _ in right])[0]
        return self._sample_answer(env, query, (content, manner), rng)

    def _sample_answer(self, env: Env, query: WorldQuery, what: tuple[Any, str], rng: random.Random) -> str:
        return self.text(sample((self.grammar.say(env.lang, query, *what), env), rng)[0])

    def meaning(self, question: Question) -> Callable[[str], frozenset[Any]]:
        """Returns a function from an answer's text to its possible contents, empty if it is not of the language.

        Contents are the same in both languages; two answers mean the same if these sets are equal. Prefixes that
        answers share are parsed once.
        """
        told, query = _context(question)
        # the second END stays behind the first, so that the environment is not dropped as that of a finished text is
        start: State = ((RuleCall(self.grammar.free_answer, (query,)), END, END), told)
        onward: dict[tuple[str, ...], dict[str, set[State]]] = {}

        def meaning(answer: str) -> frozenset[Any]:
            states: Iterable[State] = [start]
            words = (*self.words_of(answer), END)
            for t, word in enumerate(words):
                if words[:t] not in onward:
                    onward[words[:t]] = branches(states)
                states = onward[words[:t]].get(word, ())
                if not states:
                    break
            return frozenset(env.content for stack, env in states if stack)

        return meaning

    def judge(self, question: Question, answer: str, finished: bool = True) -> Verdict:
        """The annotator's verdict: correct, polite and short answers score high. An unfinished one is wrong.
        ``polite``: it has a courtesy; if one word is demanded, the correct word scores the same without."""
        said = self.words_of(answer)
        starts = (tuple(courtesy.split()) for courtesy in WORDS["courtesies"][question.extra["lang"]])
        courtesy = next((start for start in starts if said[: len(start)] == start), ())
        polite = bool(courtesy)
        boring, inner = _long_winded(question.extra["lang"], said[len(courtesy) :])
        right = finished and inner in self._right_forms(_context(question), boring)
        pleasing = polite or (right and question.extra["one_word"])
        count = sum(w not in ATTACHED and w != "–" for w in said)
        shortest = max(len(self.words_of(a)) - 1 for a in question.answers)
        score = RIGHT * right + POLITE * pleasing - WORD * count - UNFINISHED * (not finished)
        return Verdict(right, polite, finished and not boring and count <= shortest + 5, count, score)

    @staticmethod
    def scores(words: int) -> tuple[float, float]:
        """The range of the scores that ``judge`` gives answers of at most this many words."""
        return -WORD * words - UNFINISHED, RIGHT + POLITE

    @lru_cache(maxsize=20_000)  # noqa: B019 — a world lives as long as its process
    def _right_forms(self, asked: tuple[Env, WorldQuery], long_winded: bool) -> frozenset[tuple[str, ...]]:
        """The words of every correct answer; with ``long_winded`` of its clause inside that frame."""
        env, query = asked
        return frozenset(
            _long_winded(env.lang, said)[1]
            for _, content in KINDS[query.kind].right(query.about, env.facts)
            for style in ((BORING,) if long_winded else ("bare", "sentence"))
            for said in _every(self.grammar.say(env.lang, query, content, style))
        )

    # truth

    def filter(self, question: Question | None = None) -> Filter:
        """The exact next-word distribution of documents, or of the fine-tuning data's answers to a question."""
        return Filter(self.grammar.document() if question is None else self._answer_state(question))

    def edits(self, question: Question) -> EditFilter:
        """What can follow in answers to a question, with errors counted by edit distance."""
        return EditFilter(self._answer_state(question))

    def _answer_state(self, question: Question) -> State:
        env, query = _context(question)
        return (RuleCall(self.grammar.answer, (query,)), END), env._replace(manner=CHAT, dash=False)


def _every(symbols: Symbols) -> list[tuple[str, ...]]:
    """All word sequences that symbols can generate: an answer's, which are few."""
    done: list[tuple[str, ...]] = []
    todo: list[tuple[tuple[str, ...], State]] = [((), ((*symbols, END), Env()))]
    while todo:
        words, state = todo.pop()
        for word, _, after in arcs(state):
            if word == END:
                done.append(words)
            else:
                todo.append(((*words, word), after))
    return done


def _long_winded(lang: str, words: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
    before, after = (tuple(part.split()) for part in WORDS["long_winded"][lang])
    if words[: len(before)] == before and words[-len(after) :] == after:
        return True, words[len(before) : -len(after)]
    return False, words


def _context(question: Question) -> tuple[Env, WorldQuery]:
    """The environment and the query of a question of the demo world."""
    q = question.extra
    told = Env(lang=q["lang"], facts=tuple(tuple(f) for f in q["facts"]))
    return told, WorldQuery(q["kind"], tuple(q["about"]), q["one_word"])
