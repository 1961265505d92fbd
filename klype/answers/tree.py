"""The distribution of whole answers: the most probable texts, each with a certain interval for its probability.

Best-first search: the most probable unread prefixes are read in one batch. An end of text adds its probability to the
lower bound of its answer; everything else stays open. What is still open, and what a token limit or a partial
distribution hides ("lost"), is the unexplored mass U: P(answer) lies in [low, low + U], and U and the ``low`` of all
answers sum to one. Different tokenisations of one text are merged by its bytes. An upper bound counts only those open
prefixes from which the text can still be reached.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, islice, takewhile
from typing import Literal

import numpy as np

from klype.answers.distribution_bounds import entropy_bounds, sampling_bounds
from klype.engine.sampling import shape_whole
from klype.errors import BudgetSpentError, UsageError
from klype.samplers import PLAIN, needs_counts
from klype.sources.source import Source
from klype.values import Distribution, Floats, Ints, Sampling, Tokens

Prefix = tuple[Tokens, float]  # tokens and their probability
TokenBytes = Callable[[int], bytes]
Meaning = Callable[[str], Hashable]
Stopped = Literal["mode", "mass", "budget", "whole"]
WIDEST = 4096  # continuations of a prefix that are kept one by one; the mass of the others is lost
# The upper bounds of this many of the most probable answers are tightened; for all others it is low + U.
TIGHTENED = 256
# While the heaviest prefix may lead to a more probable answer than any found, only prefixes with at least this share of
# its mass are read along with it: the answer of a peaked model is reached in about as many passes as it has tokens.
BESIDE = 0.5
# A batch may hold one prefix for every GROWING that were read before: wide trees are read faster, and narrow ones not
# past their end.
GROWING = 24
ROUNDING = 2e-6  # relative error of one probability in float32; intervals are widened by it for every token


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """When a tree is complete, and how it is read.

    ``limit``: maximum number of tokens of an answer. ``budget``: maximum number of prefixes that are read (forward
    passes). ``until``: stop when the most probable answer is certain ("mode"), when less than ``eps`` is unexplored
    ("mass"), or not before the budget is spent ("budget"). ``batch``: prefixes read together at first; ``widest``: in a
    tree that has grown wide. ``vocabulary``: number of tokens, 0 if unknown.
    """

    sampling: Sampling = PLAIN
    limit: int = 32
    budget: int = 1000
    until: Literal["mode", "mass", "budget"] = "mass"
    eps: float = 0.01
    batch: int = 16
    vocabulary: int = 0
    widest: int = 64

    def check(self) -> None:
        if needs_counts(self.sampling):
            raise UsageError("The tree of answers cannot be grown with penalties on what was said before.")
        if self.limit < 1 or self.budget < 1 or self.batch < 1:
            raise UsageError("The tree needs a limit and a budget of at least 1.")
        if self.until not in ("mode", "mass", "budget"):
            raise UsageError(f"--until is {self.until}: it should be mode, mass or budget.")


@dataclass(frozen=True, slots=True)
class TreeAnswer:
    """A whole answer, whose probability is in [low, high]. ``tokens``: its most probable tokenisation, with the end."""

    text: str
    low: float
    high: float
    meaning: Hashable
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Cluster:
    """All ``answers`` (a count) with one meaning, whose probability is in [low, high]; ``text``: the most probable."""

    meaning: Hashable
    low: float
    high: float
    text: str
    answers: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The answers to one prompt as far as they were explored.

    ``answers`` and ``clusters``: most probable first. ``unexplored``: probability of all other answers; ``lost``: the
    part of it that no larger budget would explore. ``expansions``: prefixes read. ``entropy``, ``meaning_entropy``:
    certain bounds in nats. ``stopped``: why the search ended.
    """

    answers: tuple[TreeAnswer, ...]
    clusters: tuple[Cluster, ...]
    unexplored: float
    lost: float
    expansions: int
    entropy: tuple[float, float]
    meaning_entropy: tuple[float, float]
    stopped: Stopped
    settings: TreeSettings


@dataclass(slots=True)
class Node:
    """A prefix that was read, of probability ``mass``.

    ``ids``, ``p_K``: its continuations that do not end it, most probable first; those before ``taken`` have been read
    themselves. ``last``: they reach the token limit. ``tail``: probability of the continuations that are not listed.
    """

    tokens: Tokens
    spelled: bytes
    mass: float
    ids: Ints
    p_K: Floats
    last: bool
    tail: float
    taken: int = 0


@dataclass(slots=True)
class TextMass:
    """What was found of one text: its probability so far (``low``), its most probable tokenisation with that one's
    probability (``mass``), and the length of its longest tokenisation."""

    low: float = 0.0
    tokens: Tokens = ()
    mass: float = 0.0
    longest: int = 0


class Growth:
    """A tree while it is explored."""

    def __init__(self, source: Source, prompt: Tokens, settings: TreeSettings, token_bytes: TokenBytes | None) -> None:
        self.source, self.prompt, self.settings, self.token_bytes = source, prompt, settings, token_bytes
        self.nodes, self.sums, self.unread = list[Node](), dict[bytes, TextMass](), list[Prefix]()
        self.heap, self.order = list[tuple[float, int, Node]](), count()
        self.frontier, self.expansions = 0.0, 0
        self.stopped: Stopped | None = None

    @property
    def unexplored(self) -> float:
        return max(0.0, 1.0 - math.fsum(found.low for found in self.sums.values()))

    @property
    def error(self) -> float:
        """Bound of the relative rounding error of a text's probability, and of the sum of all."""
        return ROUNDING * (1 + max((found.longest for found in self.sums.values()), default=0))

    def expand(self, prefixes: Sequence[Prefix], found: Sequence[Distribution]) -> None:
        """Adds the next-token distributions ``found`` after these prefixes, and decides whether to stop."""
        for (tokens, mass), (ids, p_K, tail) in zip(prefixes, continuations(found, self.settings), strict=True):
            ends_K = np.isin(ids, self.source.codec.stop)
            spelled = b"".join(map(self.token_bytes, tokens)) if self.token_bytes else b""
            for token, p in zip(ids[ends_K].tolist(), p_K[ends_K].tolist(), strict=True):
                # a single leading space is not part of the answer
                text = spelled.removeprefix(b" ") if self.token_bytes else self.source.codec.decode(tokens).encode()
                answer = self.sums.setdefault(text, TextMass())
                answer.low += mass * p
                answer.longest = max(answer.longest, len(tokens) + 1)
                if mass * p > answer.mass:
                    answer.tokens, answer.mass = (*tokens, token), mass * p
            # copies: a view would keep the whole distribution in memory
            going_on, last = np.flatnonzero(~ends_K), len(tokens) + 1 >= self.settings.limit
            tail += float(p_K[going_on[WIDEST:]].sum())
            ids, p_K = ids[going_on[:WIDEST]], p_K[going_on[:WIDEST]]
            node = Node(tokens, spelled, mass, ids, p_K, last, mass * tail)
            self.nodes.append(node)
            if not last:
                self.frontier += mass * float(p_K.sum())
                self._push(node)
        self.expansions += len(prefixes)
        unexplored, error, until = self.unexplored, self.error, self.settings.until
        best = [*heapq.nlargest(2, (answer.low for answer in self.sums.values())), 0.0, 0.0]
        if not self.heap:
            self.stopped = "whole"
        elif until == "mass" and unexplored < self.settings.eps:
            self.stopped = "mass"
        # all unexplored mass may belong to the second answer, and rounding may have favoured the first
        elif until == "mode" and best[0] * (1 - error) > best[1] * (1 + error) + unexplored + error:
            self.stopped = "mode"
        elif self.expansions >= self.settings.budget:
            self.stopped = "budget"

    def expand_paid(self, prefixes: Sequence[Prefix]) -> None:
        """Expands those prefixes that a server answered before its budget was spent, then stops; the others stay
        open."""
        for tokens, mass in prefixes:
            try:
                self.expand([(tokens, mass)], self.source.next([self.prompt + tokens], -1))
            except BudgetSpentError:
                self.unread.append((tokens, mass))
                self.frontier += mass
        self.stopped = "budget"

    def batch(self) -> list[Prefix]:
        """The most probable open prefixes, which are read next; they leave the frontier."""
        if not self.expansions:
            return [((), 1.0)]
        wide = max(self.settings.batch, min(self.settings.widest, self.expansions // GROWING))
        most, taken = min(self.settings.budget - self.expansions, wide), list[Prefix]()
        heaviest = -self.heap[0][0] if self.heap else 0.0
        best = max((found.low for found in self.sums.values()), default=0.0)
        # once nothing open can beat the best answer, only the mass that is read counts
        least = BESIDE * heaviest if heaviest > best else 0.0
        while self.heap and len(taken) < most and -self.heap[0][0] >= least:
            mass, _, node = heapq.heappop(self.heap)
            taken.append(((*node.tokens, int(node.ids[node.taken])), -mass))
            node.taken += 1
            self.frontier += mass
            self._push(node)
        return taken

    def _push(self, node: Node) -> None:
        if node.taken < len(node.ids):
            heapq.heappush(self.heap, (-node.mass * float(node.p_K[node.taken]), next(self.order), node))


def grow(
    source: Source,
    prompts: Sequence[Sequence[int]],
    settings: TreeSettings,
    token_bytes: TokenBytes | None,
    meanings: Sequence[Meaning],
    progress: Callable[[int, float], None] | None = None,
) -> list[Tree]:
    """The tree of answers to each prompt. Every call of the source reads the next batch of all trees.

    ``token_bytes``: None where tokens' bytes are unknown. ``meanings``: what a text means, a function per prompt.
    ``progress(expansions, unexplored)``: prefixes read in all trees, and the largest unexplored mass of any.

    When a server's budget is spent the trees end as with ``settings.budget``, if it was enough for all prompts
    themselves. Raises UsageError for invalid settings, and for a partial distribution with any sampling option but
    the temperature.
    """
    settings.check()
    growths = [Growth(source, tuple(prompt), settings, token_bytes) for prompt in prompts]
    while growing := [growth for growth in growths if growth.stopped is None]:
        batches = [growth.batch() for growth in growing]
        wanted = [growth.prompt + tokens for growth, batch in zip(growing, batches, strict=True) for tokens, _ in batch]
        try:
            found = iter(source.next(wanted, -1))
        except BudgetSpentError:
            # a tree whose first tokens were not even read says nothing
            if not all(growth.expansions for growth in growths):
                raise
            for growth, batch in zip(growing, batches, strict=True):
                growth.expand_paid(batch)
            break
        for growth, batch in zip(growing, batches, strict=True):
            growth.expand(batch, list(islice(found, len(batch))))
        if progress is not None:
            progress(sum(growth.expansions for growth in growths), max(growth.unexplored for growth in growths))
    return [finish(growth, meaning) for growth, meaning in zip(growths, meanings, strict=True)]


def continuations(found: Sequence[Distribution], settings: TreeSettings) -> list[tuple[Ints, Floats, float]]:
    """For each distribution the token ids and their probabilities (lower bounds) under the settings' sampling, most
    probable first and none of probability 0, and the mass that is left."""
    out, sampling = list[tuple[Ints, Floats, float]](), settings.sampling
    # a temperature alone needs no tensor over the vocabulary
    simple = sampling.temperature > 0 and sampling == Sampling(temperature=sampling.temperature)
    for q in found:
        ids = q.ids
        if simple or not q.whole:
            at = sampling_bounds(q, sampling, settings.vocabulary)
            p_K, tail = at.low_K, at.rest
        else:
            p_V = shape_whole(q, sampling, ((), ()), 0).double().exp().numpy()
            p_K, tail = p_V[ids] / p_V[ids].sum(), 0.0
        if (p_K[1:] > p_K[:-1]).any():  # a temperature keeps the order, other options may not
            order = np.argsort(-p_K, kind="stable")
            ids, p_K = ids[order], p_K[order]
        # sorted, so that tokens which the sampling excludes are at the end
        possible = int(np.count_nonzero(p_K))
        out.append((ids[:possible], p_K[:possible], tail))
    return out


def reachable_mass(growth: Growth) -> Callable[[bytes], float]:
    """A function text → upper bound of the open mass that can still become this text, with or without a leading
    space."""
    token_bytes = growth.token_bytes
    if token_bytes is None:
        return lambda text: math.inf
    nodes, unread = defaultdict[bytes, list[Node]](list), defaultdict[bytes, float](float)
    tokens_of = defaultdict[bytes, list[int]](list)
    for tokens, mass in growth.unread:
        unread[b"".join(map(token_bytes, tokens))] += mass
    for node in growth.nodes:
        nodes[node.spelled].append(node)
    for token in np.unique(np.concatenate([node.ids[node.taken :] for node in growth.nodes])).tolist():
        tokens_of[token_bytes(token)].append(token)
    longest = max(map(len, tokens_of), default=0)

    @cache
    def into(begin: bytes, spelled: bytes) -> float:
        """Open mass that continues the prefix ``begin`` with the bytes ``spelled``; cached, since texts share it."""
        found = []
        for node in nodes[begin]:
            places = node.taken + np.flatnonzero(np.isin(node.ids[node.taken :], tokens_of[spelled]))
            found += [node.mass * float(node.p_K[place]) for place in places.tolist()]
        return math.fsum(found)

    def parts(raw: bytes) -> Iterator[float]:
        for at in range(len(raw) + 1):
            begin = raw[:at]
            yield unread.get(begin, 0.0)
            if begin in nodes:
                yield from (node.tail for node in nodes[begin])
                ends = range(at, min(at + longest, len(raw)) + 1)
                yield from (into(begin, raw[at:to]) for to in ends if raw[at:to] in tokens_of)

    return lambda text: math.fsum(chain(parts(b" " + text), () if text[:1] == b" " else parts(text)))


def finish(growth: Growth, meaning: Meaning) -> Tree:
    """The tree with the bounds of its answers, meanings and entropies."""
    unexplored, left = growth.unexplored, growth.unexplored + growth.error
    reachable = reachable_mass(growth)
    answers: list[TreeAnswer] = []
    for spelled, found in sorted(growth.sums.items(), key=lambda item: (-item[1].low, item[0])):
        text = spelled.decode("utf-8", errors="replace")
        error = ROUNDING * (found.longest + 1)
        high = found.low + (min(left, reachable(spelled)) if len(answers) < TIGHTENED else left)
        low, high = max(0.0, found.low * (1 - error)), min(1.0, high * (1 + error))
        answers.append(TreeAnswer(text, low, high, meaning(text), found.tokens))
    groups: dict[Hashable, list[TreeAnswer]] = {}
    for answer in answers:
        groups.setdefault(answer.meaning, []).append(answer)
    clusters = []
    for said, members in groups.items():
        low, most = math.fsum(member.low for member in members), max(members, key=lambda member: member.low)
        # twice: each ``low`` was already reduced by its rounding error
        error = 2 * ROUNDING * (1 + max(len(member.tokens) for member in members))
        clusters.append(Cluster(said, low, min(1.0, low * (1 + error) + left), most.text, len(members)))
    clusters.sort(key=lambda cluster: -cluster.low)
    # the mass of every open prefix and of all that is lost, and the most nats of entropy that can follow it
    limit, size = growth.settings.limit, growth.settings.vocabulary
    word, masses, behind = math.log(size) if size else math.inf, list[Floats](), list[Floats]()
    for node in growth.nodes:
        steps, open_K = limit - len(node.tokens), node.mass * node.p_K[node.taken :]
        masses += [open_K, np.array([node.tail])]
        behind += [np.full(len(open_K), 0.0 if node.last else (steps - 1) * word), np.array([steps * word])]
    masses.append(np.array([mass for _, mass in growth.unread]))
    behind.append(np.array([(limit - len(tokens)) * word for tokens, _ in growth.unread]))
    mass_N, behind_N = np.concatenate(masses), np.concatenate(behind)
    opened = mass_N[mass_N > 0], behind_N[mass_N > 0]
    lost, stopped = max(0.0, unexplored - max(0.0, growth.frontier)), growth.stopped or "budget"
    entropy = entropy_bounds([found.low for found in growth.sums.values()], unexplored, opened)
    of_meanings = entropy_bounds([cluster.low for cluster in clusters], unexplored, opened)
    numbers = unexplored, lost, growth.expansions, entropy, of_meanings
    return Tree(tuple(answers), tuple(clusters), *numbers, stopped, growth.settings)


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of the tree as it is shown.

    ``text``: the words between the previous fork and the next. ``mass``: probability (a lower bound) of all answers
    found that begin so, shown or not. ``answer``: the answer that ends here.
    """

    text: str
    mass: float
    children: "tuple[Branch, ...]"
    answer: TreeAnswer | None = None
    meaning: Hashable = None


Remaining = tuple[TreeAnswer, Tokens]  # an answer and those of its tokens that are not placed yet


def branches(tree: Tree, decode: Callable[[Tokens], str], most: int = 12) -> Branch:
    """The ``most`` most probable answers as a tree of their most probable tokenisations."""

    def branch(rows: list[Remaining], every: list[Remaining]) -> Branch:
        """``rows`` are shown, ``every`` answer counts in the mass; both without the tokens before this branch."""
        if len(rows) == 1:
            answer, left = rows[0]
            return Branch(decode(left), answer.low, (), answer, answer.meaning)
        columns = zip(*(left for _, left in rows), strict=False)
        kept = tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        at = len(kept)
        begun = [(answer, left[at:]) for answer, left in every if left[:at] == kept]
        shown: dict[int, list[Remaining]] = {}
        for answer, left in rows:
            shown.setdefault(left[at], []).append((answer, left[at:]))
        children = [branch(own, [one for one in begun if one[1][:1] == (token,)]) for token, own in shown.items()]
        mass = math.fsum(answer.low for answer, _ in begun)
        return Branch(decode(kept), mass, tuple(sorted(children, key=lambda child: -child.mass)))

    every = [(answer, answer.tokens) for answer in tree.answers]
    return branch(every[:most], every)
