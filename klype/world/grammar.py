"""The grammar of the demo language: documents and answers as rules (see ``automaton.py``)."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from klype.world.automaton import END, Expansion, RuleCall, State, Symbols, capital, form
from klype.world.lexicon import FIXED, KINDS, LANGUAGES, WORDS, Fact, Lexicon, WorldQuery, an_object, items_of, phrase

STYLES = BARE, SENTENCE, POLITE, BORING = "bare", "sentence", "polite", "boring"
MIXED, CHAT = "mixed", "chat"

# Shares of styles: of documents early in pre-training, of later ones, of the answers in a mixed document and in chats.
PLAIN_DOCUMENTS = ((0.5, BARE), (0.5, SENTENCE))
DOCUMENTS = ((0.23, BARE), (0.25, SENTENCE), (0.2, POLITE), (0.06, BORING), (0.26, MIXED))
ANSWERS = {
    MIXED: ((0.3, BARE), (0.35, SENTENCE), (0.25, POLITE), (0.1, BORING)),
    CHAT: ((0.28, BARE), (0.3, SENTENCE), (0.34, POLITE), (0.08, BORING)),
}
QUESTIONS = {BARE: (5, 8), SENTENCE: (5, 8), POLITE: (3, 4), BORING: (2, 3), MIXED: (4, 5), "": (3, 8)}
# the verb of each kind of fact, and the word orders of events
VERBS = {"loc": "be", "has": "have", "like": "like"}
STRAIGHT, INVERTED = ("agent", "act", "thing", "place"), ("act", "thing", "agent")
RELATIONS = ((0.28, "loc"), (0.24, "has"), (0.2, "like"), (0.28, "did"))


class Env(NamedTuple):
    """The values bound so far. ``content`` and ``style`` are those of the last answer: the meaning of a parse."""

    lang: str = ""
    facts: tuple[Fact, ...] = ()
    same: bool | None = None  # whether all facts are of one relation
    between: bool | None = None  # whether there are questions between the facts
    asked: frozenset[tuple[str, int]] = frozenset()
    answered: int = 0  # number of questions answered
    manner: str = ""  # the style of the document's answers; "" until the first
    dash: bool | None = None  # whether "–" stands between question and answer
    content: object = None
    style: str = ""


class Grammar:
    """The rules over a lexicon. ``styled`` documents have answers of every style, others of two."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    # documents

    def document(self, styled: bool = True) -> State:
        return ((RuleCall(self.language, (styled,)), END), Env())

    def language(self, env: Env, styled: bool) -> list[Expansion]:
        kinds: tuple[tuple[float, Symbols], ...] = (
            (0.75, (RuleCall(self.fact), RuleCall(self.after_fact))),
            (0.13, (RuleCall(self.known), RuleCall(self.known_more, (1,)))),
            (0.08, (RuleCall(self.walk),)),
            (0.04, (RuleCall(self.proverb),)),
        )
        manner = "" if styled else "plain"
        return [(0.5 * p, kind, env._replace(lang=lang, manner=manner)) for lang in LANGUAGES for p, kind in kinds]

    def after_fact(self, env: Env) -> list[Expansion]:
        """Another fact, perhaps a question in between, or on to the questions."""
        n = len(env.facts)
        more = {1: 1.0, 2: 2 / 3, 3: 1 / 2, 4: 0.0}[n]
        out: list[Expansion] = []
        ways = ((0.7, False), (0.3, True)) if env.between is None else ((1.0, env.between),)
        for p, between in ways:
            bound = env._replace(between=between)
            ask: Symbols = (RuleCall(self.ask),) if between else ()
            if more > 0:
                out.append((p * more, (*ask, RuleCall(self.fact), RuleCall(self.after_fact)), bound))
            if more < 1:
                out.append((p * (1 - more), (*ask, RuleCall(self.questions)), bound))
        return out

    def questions(self, env: Env) -> list[Expansion]:
        """Another question, or the end: mostly within the bounds of the style, sometimes earlier or later."""
        low, high = QUESTIONS[env.manner if env.manner in QUESTIONS else ""]
        inside = 1 / (high - env.answered + 1) if low <= env.answered <= high else float(env.answered > high)
        stop = min(0.85, max(0.03, inside)) if env.answered else 0.0
        more: Expansion = (1 - stop, (RuleCall(self.ask), RuleCall(self.questions)), env)
        return [more, (stop, (), env)] if stop else [more]

    # facts

    def fact(self, env: Env) -> list[Expansion]:
        if len(env.facts) == 1:
            only = env.facts[0][0]
            return [
                (0.72, (RuleCall(self.tell, (only,)),), env._replace(same=True)),
                *((0.28 * p, (RuleCall(self.tell, (r,)),), env._replace(same=False)) for p, r in RELATIONS),
            ]
        if env.same:
            return [(1.0, (RuleCall(self.tell, (env.facts[0][0],)),), env)]
        return [(p, (RuleCall(self.tell, (r,)),), env) for p, r in RELATIONS]

    def tell(self, env: Env, relation: str) -> list[Expansion]:
        if relation == "did":
            straight, inverted = (RuleCall(self.event, (order,)) for order in (STRAIGHT, INVERTED))
            return [(0.85, (straight, "."), env), (0.15, (inverted, "."), env)]
        known = {f[1] for f in env.facts}
        taken = {f[1] for f in env.facts if f[0] == relation}
        favour = {name: 0.0 if name in taken else 3.0 for name in known if name in self.lexicon.persons}
        verb = WORDS["verbs"][VERBS[relation]][env.lang][0]
        return [
            (p, (name, verb, RuleCall(self.value, (relation, name)), "."), env)
            for p, name in weighted(self.lexicon.persons, favour)
        ]

    def value(self, env: Env, relation: str, person: str) -> list[Expansion]:
        """The value of a fact. A place or an animal that was named is less probable again, an object impossible."""
        taken = {f[2] for f in env.facts if f[0] == relation}
        table, share = {"loc": ("places", 0.7), "like": ("animals", 0.5), "has": ("objects", 0.0)}[relation]
        values = weighted(getattr(self.lexicon, table), dict.fromkeys(taken, share))
        if relation == "has":
            return [(p, (RuleCall(self.owned, (person, o)),), env) for p, o in values]
        return [(p, form(phrase(env.lang, table, v)), _told(env, (relation, person, v))) for p, v in values]

    def owned(self, env: Env, person: str, noun: str) -> list[Expansion]:
        return [
            (p, form(an_object(env.lang, noun, c)), _told(env, ("has", person, noun, c)))
            for p, c in weighted(self.lexicon.colours)
        ]

    def event(self, env: Env, order: tuple[str, ...], bound: tuple[str, ...] = ()) -> list[Expansion]:
        """The next part of an event. In «Den som drakk vann var hunden.» the agent is bound last."""
        slot, known = order[len(bound)], dict(zip(order, bound, strict=False))
        taken = frozenset(f[1] for f in env.facts if f[0] == "did" and "agent" not in known)
        frame = WORDS["inverted"][env.lang][len(bound)] if order == INVERTED else "{}"
        out: list[Expansion] = []
        for p, value in self.lexicon.event(slot, **known, taken=taken):
            said = form(frame.format(value and phrase(env.lang, f"{slot}s", value)))
            said = said if bound else capital(said)
            if len(bound) + 1 < len(order):
                out.append((p, (*said, RuleCall(self.event, (order, (*bound, value)))), env))
            else:
                whole = known | {slot: value}
                fact = ("did", whole["agent"], whole["act"], whole["thing"], whole.get("place", ""))
                out.append((p, said, _told(env, fact)))
        return out

    # questions

    def ask(self, env: Env) -> list[Expansion]:
        """A question about the story; one that was asked before is ten times less probable."""
        choices = [
            (weight, name, i)
            for i, fact in enumerate(env.facts)
            for weight, name in _asked_about(fact[0], placed=len(fact) > 4 and bool(fact[4]))
        ]
        if len(env.facts) > 1:
            choices.append((KINDS["summary"].weight, "summary", -1))
        weights = [p * (0.1 if (name, i) in env.asked else 1.0) for p, name, i in choices]
        total = sum(weights)
        return [
            (p / total, (RuleCall(self.about, (name, i)),), env)
            for p, (_, name, i) in zip(weights, choices, strict=True)
        ]

    def about(self, env: Env, name: str, i: int) -> list[Expansion]:
        bound = env._replace(asked=env.asked | {(name, i)})
        abouts = self._yes_no_about(env, i) if name == "yes-no" else [(1.0, env.facts[i])]
        return [(p, (RuleCall(self.put, (name, about)),), bound) for p, about in abouts]

    def _yes_no_about(self, env: Env, i: int) -> list[tuple[float, Fact]]:
        """What a yes-no question is about: half of the time a fact, else what is true of someone else, if anyone."""
        fact = env.facts[i]
        others = [f for f in env.facts if f[0] == fact[0] and f[2:] != fact[2:]]
        if fact[0] == "did":
            false = {(*fact[:2], *f[2:4], "") for f in others if f[2:4] != fact[2:4]}
            true = (*fact[:4], "")
        else:
            false, true = {(*fact[:2], *f[2:]) for f in others}, fact
        if not false:
            return [(1.0, true)]
        return [(0.5, true), *((0.5 / len(false), f) for f in sorted(false))]

    def put(self, env: Env, kind: str, about: Fact) -> list[Expansion]:
        """The question's words, then its answer; some questions demand one word."""
        row = KINDS[kind]
        said, mark = form(row.ask(env.lang, about)), "." if kind == "translate" else "?"
        plain: Symbols = (*capital(said), mark, RuleCall(self.answer, (WorldQuery(kind, about),)))
        if not row.one_word:
            return [(1.0, plain, env)]
        one_word = (*said, mark, RuleCall(self.answer, (WorldQuery(kind, about, True),)))
        return [(0.93, plain, env), (0.07, (*form(phrase(env.lang, "frames", "demand")), *one_word), env)]

    # answers

    def answer(self, env: Env, query: WorldQuery) -> list[Expansion]:
        """An answer: draws style and dash unless the document has them, then a correct content."""
        manners = {"": DOCUMENTS, "plain": PLAIN_DOCUMENTS}.get(env.manner, ((1.0, env.manner),))
        dashes = ((0.5, True), (0.5, False)) if env.dash is None else ((1.0, env.dash),)
        right, env = RuleCall(self.right, (query,)), env._replace(answered=env.answered + 1)
        return [
            (p * q, ("–", right) if dash else (right,), env._replace(manner=manner, dash=dash))
            for p, manner in manners
            for q, dash in dashes
        ]

    def right(self, env: Env, query: WorldQuery) -> list[Expansion]:
        styles = ANSWERS.get(env.manner, ((1.0, env.manner),))
        contents = KINDS[query.kind].right(query.about, env.facts)
        return [
            (p * q, (RuleCall(self.said, (query, content, style)),), env)
            for p, style in styles
            for q, content in contents
        ]

    def said(self, env: Env, query: WorldQuery, content: object, style: str) -> list[Expansion]:
        return [(1.0, self.say(env.lang, query, content, style), env)]

    def free_answer(self, env: Env, query: WorldQuery) -> list[Expansion]:
        """Any answer to the question, correct or not, in any style: for parsing answers."""
        contents = KINDS[query.kind].domain(query.about, env.facts, self.lexicon)
        share = 1 / (len(contents) * len(STYLES))
        return [
            (share, (*self.say(env.lang, query, content, style, strict=False), RuleCall(keep, (content, style))), env)
            for content in contents
            for style in STYLES
        ]

    def say(self, lang: str, query: WorldQuery, content: object, style: str, *, strict: bool = True) -> Symbols:
        """An answer's words. ``strict``: a demand for one word is obeyed in every style."""
        row = KINDS[query.kind]
        if style == BARE or (query.one_word and strict):
            return (*capital(form(row.bare(lang, query.about, content))), ".")
        sentence = row.sentence(lang, query.about, content)
        if style == BORING and query.kind != "translate":
            before, after = WORDS["long_winded"][lang]
            if query.kind == "yes-no":
                sentence = f"{phrase(lang, 'frames', 'the_answer')} {row.bare(lang, query.about, content)}"
            return form(f"{before} {sentence} {after}")
        courteous = (RuleCall(courtesy, (lang,)),) if style == POLITE else ()
        return (*courteous, *capital(form(sentence)), ".")

    # other documents

    def known_more(self, env: Env, said: int) -> list[Expansion]:
        """Three to five pieces of world knowledge, uniformly."""
        stop = {1: 0.0, 2: 0.0, 3: 1 / 3, 4: 1 / 2, 5: 1.0}[said]
        more = (RuleCall(self.known), RuleCall(self.known_more, (said + 1,)))
        return [(p, symbols, env) for p, symbols in ((1 - stop, more), (stop, ())) if p > 0]

    def known(self, env: Env) -> list[Expansion]:
        """A piece of world knowledge, told or asked."""
        total = sum(KINDS[k].weight for k in FIXED)
        return [(KINDS[k].weight / total, (RuleCall(self.known_of, (k,)),), env) for k in FIXED]

    def known_of(self, env: Env, kind: str) -> list[Expansion]:
        if kind == "translate":
            demand = form(phrase(env.lang, "frames", "translate"))
            return [(1.0, (*demand, RuleCall(self.translate_person)), env)]
        items = items_of(kind, self.lexicon)
        return [(1 / len(items), (RuleCall(self.known_item, (kind, item)),), env) for item in items]

    def known_item(self, env: Env, kind: str, item: Fact) -> list[Expansion]:
        row = KINDS[kind]
        content = row.right(item, ())[0][1]
        return [
            (0.35, (*capital(form(row.sentence(env.lang, item, content))), "."), env),
            (0.65, (RuleCall(self.put, (kind, item)),), env),
        ]

    def translate_person(self, env: Env) -> list[Expansion]:
        verbs = [(relation, WORDS["verbs"][VERBS[relation]][env.lang][0]) for relation in ("loc", "like")]
        return [
            (p / 2, (person, verb, RuleCall(self.translate_value, (relation, person))), env)
            for p, person in weighted(self.lexicon.persons)
            for relation, verb in verbs
        ]

    def translate_value(self, env: Env, relation: str, person: str) -> list[Expansion]:
        table = "places" if relation == "loc" else "animals"
        out: list[Expansion] = []
        for p, value in weighted(getattr(self.lexicon, table)):
            query = WorldQuery("translate", ("translate", relation, person, value))
            out.append((p, (*form(phrase(env.lang, table, value)), ".", RuleCall(self.answer, (query,))), env))
        return out

    def walk(self, env: Env) -> list[Expansion]:
        """«Jeg gikk en tur på …»: places have different probabilities, and the weather depends on a latent season."""
        i, went = (phrase(env.lang, "frames", part) for part in ("i", "went"))
        return [(1.0, (i, *form(went), RuleCall(self.walk_place)), env)]

    def walk_place(self, env: Env) -> list[Expansion]:
        when = {"": 0.6} | WORDS["when"][env.lang]
        return [
            (place["p"] * q, (*form(f"{place[env.lang]} {time} ."), RuleCall(self.season, (name,))), env)
            for name, place in WORDS["walks"].items()
            for time, q in when.items()
        ]

    def season(self, env: Env, place: str) -> list[Expansion]:
        seasons = WORDS["seasons"].items()
        return [(season["p"], (RuleCall(self.weather, (place, name)),), env) for name, season in seasons]

    def weather(self, env: Env, place: str, season: str) -> list[Expansion]:
        wore = form(f"{phrase(env.lang, 'frames', 'wore')} {phrase(env.lang, 'wear', season)} .")
        out: list[Expansion] = []
        for weather, p in WORDS["seasons"][season]["weather"].items():
            about = ("walk", place, weather)
            bound = env._replace(facts=(about,))
            first, second = (RuleCall(self.put, (name, about)) for name in ("walk-where", "weather"))
            said = capital(form(phrase(env.lang, "weather", weather)))
            for q, tail in ((0.3, wore), (0.25, (first,)), (0.25, (second,)), (0.2, (first, second))):
                out.append((p * q, (*said, ".", *tail), bound))
        return out

    def proverb(self, env: Env) -> list[Expansion]:
        sayings = WORDS["proverbs"][env.lang]
        lead = form(phrase(env.lang, "frames", "saying"))
        return [(p / len(sayings), (*start, *form(s)), env) for s in sayings for p, start in ((0.6, ()), (0.4, lead))]


@lru_cache(maxsize=64)
def _asked_about(relation: str, placed: bool) -> tuple[tuple[float, str], ...]:
    """(weight, name) of every kind of question about a fact; "where" about events only if the place was said."""
    return tuple(
        (kind.weight, name)
        for name, kind in KINDS.items()
        if (kind.relation == "any" or relation in kind.relation.split()) and (placed or name != "where-did")
    )


def courtesy(env: Env, lang: str) -> list[Expansion]:
    courtesies = WORDS["courtesies"][lang]
    return [(1 / len(courtesies), form(c), env) for c in courtesies]


def keep(env: Env, content: object, style: str) -> list[Expansion]:
    return [(1.0, (), env._replace(content=content, style=style))]


def _told(env: Env, fact: Fact) -> Env:
    return env._replace(facts=(*env.facts, fact))


def weighted(options: tuple[str, ...], favour: Mapping[str, float] = MappingProxyType({})) -> list[tuple[float, str]]:
    """Options with their probabilities, by weights in ``favour`` (default 1); weight 0 excludes an option."""
    raw = [(favour.get(option, 1.0), option) for option in options]
    total = sum(w for w, _ in raw)
    return [(w / total, option) for w, option in raw if w > 0]
