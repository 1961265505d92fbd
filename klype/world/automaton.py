"""A weighted grammar expanded lazily, whose next-word distribution can be computed exactly.

A *state* is ``(stack, env)``: the symbols to be generated, and the environment of bound values. A symbol is a word, a
``WordChoice`` of word sequences, or a ``RuleCall``. A rule maps the environment to weighted right-hand sides
``[(probability, symbols, environment)]``. Values are bound only when a word depends on them, which keeps the number of
live states small.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from klype.errors import KlypeError

END = "</s>"


class WordChoice(NamedTuple):
    """One of several word sequences, with probabilities that sum to one."""

    options: tuple[tuple[float, tuple[str, ...]], ...]


class RuleCall(NamedTuple):
    """A rule with its arguments, to be applied to the environment."""

    rule: "Callable[..., list[Expansion]]"
    arguments: tuple[Any, ...] = ()


Symbol = str | WordChoice | RuleCall
Symbols = tuple[Symbol, ...]
Env = Any
Expansion = tuple[float, Symbols, Env]
State = tuple[Symbols, Env]
# live states with their weights, by number of slips
Levels = list[dict[State, float]]
# weights are scaled up when the largest is below this, before they underflow
RESCALE_BELOW = 1e-150
# most prefixes with slips that are cached; one with more states than SMALL empties the cache
REMEMBERED, SMALL = 2000, 5000
# most readings of a prefix
MAX_READINGS = 200_000


def expansions(symbol: WordChoice | RuleCall, env: Env) -> list[Expansion]:
    """The weighted right-hand sides of a symbol."""
    if isinstance(symbol, WordChoice):
        return [(p, words, env) for p, words in symbol.options]
    return symbol.rule(env, *symbol.arguments)


def heads(state: State) -> Iterator[tuple[str, float, State]]:
    """Yields (word, probability, next state) for every derivation of a next word, with duplicates."""
    todo: list[tuple[float, State]] = [(1.0, state)]
    while todo:
        weight, (stack, env) = todo.pop()
        if not stack:
            continue
        head, tail = stack[0], stack[1:]
        if isinstance(head, str):
            # the environment of a finished text is dropped, so that all endings are one state
            yield head, weight, (tail, env if tail else None)
        else:
            todo.extend((weight * p, (symbols + tail, bound)) for p, symbols, bound in expansions(head, env))


@lru_cache(maxsize=200_000)
def arcs(state: State) -> tuple[tuple[str, float, State], ...]:
    """Every (word, probability, next state) that can follow, without duplicates."""
    found: dict[tuple[str, State], float] = {}
    for word, weight, after in heads(state):
        found[word, after] = found.get((word, after), 0.0) + weight
    return tuple((word, p, after) for (word, after), p in found.items())


def branches(states: Iterable[State]) -> dict[str, set[State]]:
    """Every word that can come next, with the states that it leads to."""
    found: dict[str, set[State]] = {}
    for state in states:
        for word, _, after in heads(state):
            found.setdefault(word, set()).add(after)
    return found


def sample(start: State, rng: random.Random, unless: Callable[[Env], bool] | None = None) -> tuple[list[str], Env]:
    """Samples a text; returns its words and the environment at its end, or where ``unless`` first became true."""
    stack = list(reversed(start[0]))
    env = start[1]
    words: list[str] = []
    while stack:
        head = stack.pop()
        if isinstance(head, str):
            words.append(head)
            continue
        options = expansions(head, env)
        chosen = options[0]
        if len(options) > 1:
            u = rng.random()  # the probabilities of a rule sum to one
            for chosen in options:
                u -= chosen[0]
                if u < 0:
                    break
        _, symbols, env = chosen
        stack.extend(reversed(symbols))
        if unless is not None and unless(env):
            break
    return words, env


class Filter:
    """The exact next-word distribution after a prefix, also one with errors.

    A prefix that the language does not contain is read with the fewest *slips* (substitutions of one word), weighted by
    the grammar: the limit for small slip probabilities. A slip at END restarts the language. ``copy.copy`` makes an
    independent copy. Raises KlypeError if there are more than MAX_READINGS readings.
    """

    def __init__(self, start: State) -> None:
        self._start = start
        self._prefix: tuple[str, ...] = ()
        self.slips = 0
        self.readings: Mapping[State, float] = {start: 1.0}  # the live states and their probabilities
        self._next: Mapping[str, float] | None = None
        self._read_before: dict[tuple[int, tuple[str, ...]], Levels] = {}  # shared by copies, whose prefixes overlap

    def next(self) -> Mapping[str, float]:
        """The distribution of the next word, {word: probability}, summing to one. Only END follows END."""
        if self._next is None:
            out: dict[str, float] = {}
            for state, weight in self.readings.items():
                following = arcs(state)
                if not following:
                    out[END] = out.get(END, 0.0) + weight
                for word, p, _ in following:
                    out[word] = out.get(word, 0.0) + weight * p
            self._next = out
        return self._next

    def push(self, word: str) -> float:
        """Appends a word and returns its probability (0 if it was a slip)."""
        before = self.next().get(word, 0.0)
        self._next = None
        self._prefix = (*self._prefix, word)
        out: dict[State, float] = {}
        if before > 0.0:
            for state, weight in self.readings.items():
                for said, p, after in arcs(state):
                    if said == word:
                        _add(out, after, weight * p)
                if word == END and not arcs(state):  # after the end comes only the end
                    _add(out, state, weight)
        else:
            self.slips += 1
            out = self._fewest_slips()
        total = sum(out.values())
        self.readings = {state: weight / total for state, weight in out.items()}
        return before

    def _fewest_slips(self) -> dict[State, float]:
        """The readings of the whole prefix with the smallest number of slips."""
        words = self._prefix
        while True:
            known = next((t for t in range(len(words), 0, -1) if (self.slips, words[:t]) in self._read_before), 0)
            levels = self._read_before[self.slips, words[:known]] if known else self._initial_levels()
            for t in range(known, len(words)):
                levels = self._advance(levels, words[t])
                if len(self._read_before) >= REMEMBERED or sum(map(len, levels)) > SMALL:
                    self._read_before.clear()
                self._read_before[(self.slips, words[: t + 1])] = levels
            if levels[-1]:
                return levels[-1]
            self.slips += 1

    def _initial_levels(self) -> Levels:
        """The readings before the first word."""
        return [{self._start: 1.0}, *({} for _ in range(self.slips))]

    def _advance(self, levels: Levels, word: str) -> Levels:
        """The readings after one more word."""
        out: Levels = [{} for _ in levels]
        for k, states in enumerate(levels):
            for state, weight in states.items():
                for said, p, after in arcs(state) or ((END, 1.0, state),):
                    if said == word:
                        _add(out[k], after, weight * p)
                    elif k + 1 < len(levels):
                        # a slip at END: the text goes on, so the language starts again
                        _add(out[k + 1], self._start if said == END else after, weight * p)
        if sum(map(len, out)) > MAX_READINGS:
            raise KlypeError(
                f"The text has so many words that do not fit ({self.slips}) that its readings are too many to keep.",
                "Shorten it, or look at an earlier position.",
            )
        scale = max((max(level.values()) for level in out if level), default=1.0)
        if scale > RESCALE_BELOW:
            return out
        return [{state: weight / scale for state, weight in level.items()} for level in out]


def _add(states: dict[State, float], state: State, weight: float) -> None:
    states[state] = states.get(state, 0.0) + weight


@lru_cache(maxsize=65_536)
def form(text: str) -> Symbols:
    """Parses the notation of lexicon.toml: ``"på stranda|.5 stranden|.5"`` → ``("på", WordChoice(...))``."""
    symbols: list[Symbol] = []
    options: list[tuple[float, tuple[str, ...]]] = []
    for part in text.split():
        word, bar, p = part.partition("|")
        if not bar:
            symbols.append(word)
            continue
        options.append((float(p), (word,)))
        if abs(sum(q for q, _ in options) - 1) < 1e-9:
            symbols.append(WordChoice(tuple(options)))
            options = []
    assert not options, f"probabilities do not sum to one: {text}"
    return tuple(symbols)


def capital(symbols: Iterable[Symbol]) -> Symbols:
    """The same symbols with a capital letter at the beginning."""
    first, *rest = symbols
    if isinstance(first, str):
        return (first[:1].upper() + first[1:], *rest)
    assert type(first) is WordChoice
    return (WordChoice(tuple((p, (w[0][:1].upper() + w[0][1:], *w[1:])) for p, w in first.options)), *rest)


class EditFilter(Filter):
    """A Filter whose errors are edits: substitutions, insertions and deletions, counted by ``slips``.

    An inserted word is one error here, while with substitutions alone every word after it is another. Weights are no
    probabilities: ``next`` only says what can follow.
    """

    def _initial_levels(self) -> Levels:
        return _left_out(super()._initial_levels())

    def _advance(self, levels: Levels, word: str) -> Levels:
        out = super()._advance(levels, word)
        for k, states in enumerate(levels[:-1]):
            for state, weight in states.items():  # an inserted word leaves the state as it is
                _add(out[k + 1], state, weight)
        return _left_out(out)


def _left_out(levels: Levels) -> Levels:
    """Adds the states after omitted words, one edit each; END is never omitted."""
    for k, states in enumerate(levels[:-1]):
        for state, weight in states.items():
            for said, p, after in arcs(state):
                if said != END:
                    _add(levels[k + 1], after, weight * p)
    return levels
