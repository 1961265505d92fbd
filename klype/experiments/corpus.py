"""The documents of an experiment, for training, early stopping and testing, with the truth where it is known.

Shapes: N all target positions of some documents in order, V vocabulary. A document of n tokens has n − 1 targets.
"""

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from klype.data.documents import split
from klype.data.readers import TextDocument
from klype.data.seeds import mix
from klype.errors import KlypeError
from klype.examine.truth import Reader
from klype.text.tokenizer import Tokenizer
from klype.values import Tokens
from klype.world import Filter, World
from klype.world.automaton import END, sample

# maximum number of tokens of a document: longer ones are cut off (demo world) or split into pieces (text), so that
# training on many is fast
LONGEST = 32
BEGIN = "<s>"
SHOWN = "Jeg gikk en tur på"
# test documents; questions taken from them; questions with more correct answers than this are skipped
TEST, QUESTIONS, ANSWERS = 160, 60, 16
VOCABULARY = 800  # size of the vocabulary that is trained on a text
SHARE = 0.1  # share of a text that is held out for early stopping, and again for testing


def sparse_truth(rows: Sequence[Mapping[int, float]], size: int) -> csr_array:
    """p at each of N positions as a sparse matrix [N, V], V = ``size``."""
    starts = np.cumsum([0, *map(len, rows)])
    ids = np.array([i for row in rows for i in row], np.int64)
    return csr_array((np.array([p for row in rows for p in row.values()], np.float32), ids, starts), (len(rows), size))


@dataclass(frozen=True, slots=True)
class CorpusQuestion:
    """A text that ends with a question mark, and all correct answers, each up to its full stop."""

    prefix: Tokens
    answers: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class TestSet:
    """The documents of the test. ``truth``: p at all of their targets, None if it is not known. ``shown``: a prompt and
    the true probabilities of the next word. ``bytes``: length of the text that bits per byte refer to, 0 in the demo
    world.
    """

    documents: tuple[Tokens, ...]
    truth: csr_array | None = None
    questions: tuple[CorpusQuestion, ...] = ()
    shown: tuple[Tokens, dict[int, float]] | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of tokens, each beginning with the begin token. ``train``: training documents, ``truth``: p at all of
    their targets. ``held_out``: for early stopping. ``end``: the token that ends a document."""

    vocabulary: tuple[str, ...]
    end: int
    train: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]
    truth: csr_array | None = None

    def first(self, documents: int) -> "Corpus":
        """The corpus with only the first training documents."""
        train = self.train[:documents]
        truth = None if self.truth is None else self.truth[: sum(len(d) - 1 for d in train)]
        return replace(self, train=train, truth=truth)

    @property
    def size(self) -> int:
        return len(self.vocabulary)


def targets(documents: Sequence[Tokens]) -> npt.NDArray[np.int64]:
    """All targets of the documents, in order: [N]."""
    return np.array([token for document in documents for token in document[1:]], np.int64)


class WordTruth:
    """The demo world's true distribution in the experiment's token ids, at first that at the beginning of a document. A
    shallow copy is a snapshot."""

    def __init__(self, words: Filter, vocabulary: Sequence[str], ids: Mapping[str, int]) -> None:
        self._words, self._vocabulary, self._ids = words, vocabulary, ids

    def __copy__(self) -> "WordTruth":
        return WordTruth(copy.copy(self._words), self._vocabulary, self._ids)

    def next(self) -> dict[int, float]:
        return {self._ids[word]: p for word, p in self._words.next().items()}

    def push(self, token: int) -> float:
        """Reads a token; an id that is no word of the language is a mistake like any other."""
        return self._words.push(self._vocabulary[token] if token < len(self._vocabulary) else "")


class WorldSource:
    """Documents of the demo world, drawn anew for every seed; the test set is the same for all. A word is a token.

    ``knows``: whether the truth is known.
    """

    knows = True

    def __init__(self) -> None:
        world = World("small")
        self.vocabulary = (BEGIN, END, *(word for word in world.words if word != END))
        self._id = {word: i for i, word in enumerate(self.vocabulary)}
        self._start = world.grammar.document(styled=False)

    def within(self, documents: tuple[int, ...]) -> tuple[int, ...]:
        """These numbers of documents, or smaller ones if there are not so many."""
        return documents

    def corpus(self, seed: int, documents: int, held_out: int) -> Corpus:
        """The documents of a seed. A smaller number of documents are the first of a larger one."""
        train = self._documents(mix(seed, 1), documents)
        held = self._documents(mix(seed, 2), held_out)
        return Corpus(self.vocabulary, 1, train, held, self._truth(train))

    def test(self, documents: int = TEST, questions: int = QUESTIONS) -> TestSet:
        found = self._documents(mix(0, 3), documents)
        asked = [q for d in found if (q := self._question(d)) is not None]
        prefix = self._ids(SHOWN.split())
        shown = dict(sorted(Reader(self.initial_truth).next(prefix[1:]).items(), key=lambda pair: -pair[1]))
        return TestSet(found, self._truth(found), tuple(asked[:questions]), (prefix, shown))

    def initial_truth(self) -> WordTruth:
        """The truth at the beginning of a document."""
        return WordTruth(Filter(self._start), self.vocabulary, self._id)

    def _documents(self, seed: int, count: int) -> tuple[Tokens, ...]:
        rng = random.Random(seed)
        return tuple(self._ids(sample(self._start, rng)[0][:LONGEST]) for _ in range(count))

    def _ids(self, words: Iterable[str]) -> Tokens:
        return (0, *(self._id[word] for word in words))

    def _truth(self, documents: Sequence[Tokens]) -> csr_array:
        rows = []
        for document in documents:
            truth = self.initial_truth()
            for i in document[1:]:
                rows.append(truth.next())
                truth.push(i)
        return sparse_truth(rows, len(self.vocabulary))

    def _question(self, document: Tokens) -> CorpusQuestion | None:
        """The last question of the document that leaves space for an answer, None if there is none or it has too many
        answers."""
        places = [t for t, i in enumerate(document[: LONGEST - 12]) if i == self._id["?"]]
        if not places:
            return None
        prefix = document[: places[-1] + 1]
        reader, answers, todo = Reader(self.initial_truth), list[Tokens](), [Tokens()]
        # one answer too many is enough: the question is skipped
        while todo and len(answers) <= ANSWERS:
            said = todo.pop()
            if len(prefix) + len(said) > LONGEST:
                return None
            for i in reader.next((*prefix[1:], *said)):
                kept = answers if i == self._id["."] else todo
                kept.append((*said, i))
        return CorpusQuestion(prefix, tuple(answers)) if 0 < len(answers) <= ANSWERS else None


class TextSource:
    """Pieces of one's own text, of at most ``LONGEST`` tokens; every seed trains on others of them."""

    knows = False

    def __init__(self, texts: Iterable[TextDocument]) -> None:
        first = split(texts, SHARE)
        second = split(first.train, SHARE)
        self._tokenizer = Tokenizer.train((d.text for d in second.train), VOCABULARY)
        self._train, self._held = self._pieces(second.train), self._pieces(second.held_out)
        self._test = self._pieces(first.held_out)
        if min(map(len, (self._train, self._held, self._test))) < 8:
            raise KlypeError(
                f"The text gives only {len(self._train)} pieces of {LONGEST} tokens to learn from,"
                f" {len(self._held)} to stop by and {len(self._test)} to test on: too few to compare anything.",
                "Give more text.",
            )
        size = self._tokenizer.vocab_size
        self.vocabulary = tuple(self._tokenizer.token_bytes(i).decode(errors="replace") for i in range(size))

    def within(self, documents: tuple[int, ...]) -> tuple[int, ...]:
        """These numbers of pieces, or smaller ones: at most three quarters of all, so that seeds differ."""
        most = max(8, 3 * len(self._train) // 4)
        return documents if documents[-1] <= most else (most // 4, most // 2, most)

    def corpus(self, seed: int, documents: int, held_out: int) -> Corpus:
        train = tuple(random.Random(mix(seed, 1)).sample(self._train, min(documents, len(self._train))))
        held = tuple(random.Random(mix(seed, 2)).sample(self._held, min(held_out, len(self._held))))
        return Corpus(self.vocabulary, self._tokenizer.end, train, held)

    def test(self, documents: int = TEST) -> TestSet:
        found = tuple(random.Random(mix(0, 3)).sample(self._test, min(documents, len(self._test))))
        length = sum(len(self._tokenizer.token_bytes(i)) for document in found for i in document[1:])
        return TestSet(found, bytes=length)

    def initial_truth(self) -> None:
        """None: the truth of a text is not known."""

    def _pieces(self, texts: Sequence[TextDocument]) -> list[Tokens]:
        begin, out = self._tokenizer.begin, []
        for ids in self._tokenizer.encode_documents([d.text for d in texts]):
            # every piece begins with the begin token, not only the first of a text
            inside = ids[1:]
            cuts = range(0, len(inside), LONGEST - 1)
            out += [(begin, *inside[at : at + LONGEST - 1]) for at in cuts if len(inside) - at > 1]
        return out


# where the documents of an experiment come from
Source = WorldSource | TextSource
