"""``klype.Model``: a language model that can be asked, run by klype's own engine, transformers or a server."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, Literal, Unpack

import numpy as np

from klype.answers.distribution_bounds import sampling_bounds
from klype.answers.forks import ForkSettings, forks
from klype.answers.tree import TreeSettings, grow
from klype.api.judging import open_judge
from klype.api.prompt_context import PromptContext, is_single_turn, prompt_context, prompt_of, read_of, whole
from klype.api.results import Answer, AnswerForks, AnswerTree, NextToken, NextTokens, Token
from klype.engine.sampling import check_sampling, shape_whole
from klype.environment import language
from klype.errors import UsageError
from klype.judge.judge import Judge
from klype.runs.folder import default_model
from klype.samplers import SamplingOptions
from klype.sources.model_files import resolve
from klype.sources.opening import OpenModel, fit_limit, open_model, stream
from klype.sources.source import Message, NativeCodec, answers
from klype.values import Distribution, Request, Sampling, Step, Tokens, Trace

MAX_ANSWERS = 10_000  # per call: every answer takes a row of the cache, and a typing error would fill the memory
LISTED = 5  # so many of the truth's most probable tokens are always in the table of next tokens


class AnswerStream(Iterator[str]):
    """An iterator over the pieces of text of an answer while it is generated; ``answer`` is set after the last one."""

    def __init__(self, model: "Model", pieces: Iterator[tuple[str, Trace | None]]) -> None:
        self._model, self._pieces = model, pieces
        self.answer: Answer | None = None

    def __next__(self) -> str:
        for piece, trace in self._pieces:
            if trace is not None:
                self.answer = self._model.answer(trace)
            if piece:
                return piece
        raise StopIteration


class Model:
    """A language model, as ``klype.load`` returns it.

    ``raw``: by default (None) text goes through the chat template, and is continued as a document (True) by models that
    have no template or were only pre-trained. Every method raises KlypeError with one sentence about what is wrong: an
    empty text, no room in the window, a sampling setting out of range, a server that does not answer.
    """

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened

    def __repr__(self) -> str:
        return f"klype.load({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the name and the arguments of ``load``; unpickling opens the model again."""
        how = self.opened.how
        return load, (self.name, how.precision, how.budget, how.device)

    def __deepcopy__(self, memo: object) -> "Model":
        """The model itself: asking it changes nothing."""
        return self

    def __copy__(self) -> "Model":
        return self

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def window(self) -> int:
        """The context window: maximum number of tokens, prompt and answer together."""
        return self.opened.window

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary in tokens; 0 where a server does not say."""
        return self.opened.vocabulary

    def ask(
        self,
        text: str,
        n: int = 1,
        temperature: float = 0.7,
        limit: int = 128,
        seed: int = 0,
        raw: bool | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Answer]:
        """``n`` answers to ``text``, of at most ``limit`` tokens each.

        The same seed gives the same answers, alone or together with others; temperature 0 the most probable token
        each time.

        >>> model = klype.load(run)
        >>> [answer.text for answer in model.ask("Hvor er Kari?", n=2, temperature=0)]
        ['...', '...']
        """
        request = self.request(prompt_of(self.opened, text, raw), _sampling(temperature, sampling), limit, seed)
        whole(n=n)
        if n > MAX_ANSWERS:
            raise UsageError(f"n should be at most {MAX_ANSWERS} (it is {n}).", "Ask again with another seed.")
        return self.draw(replace(request, n=n))

    def stream(
        self,
        text: str,
        temperature: float = 0.7,
        limit: int = 128,
        seed: int = 0,
        raw: bool | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """The answer piece by piece, as it is written; joined, the pieces are the answer. Leaving the loop ends it.

        >>> pieces = klype.load(run).stream("Hvor er Kari?", temperature=0)
        >>> "".join(pieces) == pieces.answer.text
        True
        """
        request = self.request(prompt_of(self.opened, text, raw), _sampling(temperature, sampling), limit, seed)
        return self.write(request)

    def chat(
        self,
        messages: Sequence[Message],
        temperature: float = 0.7,
        limit: int = 128,
        seed: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """The next turn of a conversation, through the model's chat template.

        ``messages`` have a ``role`` (system, user or assistant) and a ``content``; the last is the user's. A
        model that was taught single questions, as the demo world's, reads that one alone.
        """
        listed = isinstance(messages, Sequence) and not isinstance(messages, str)
        if not listed or not all(isinstance(message, Mapping) for message in messages):
            raise UsageError("A conversation is a list of messages, each with a role and a content.")
        if not messages or messages[-1].get("role") != "user":
            raise UsageError("A conversation ends with a user's message.")
        prompt = tuple(self.opened.prompt(read_of(messages, is_single_turn(self.opened))))
        return self.draw(self.request(prompt, _sampling(temperature, sampling), limit, seed))[0]

    def next(
        self,
        text: str,
        top: int = 10,
        temperature: float = 0.7,
        raw: bool | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> NextTokens:
        """The ``top`` most probable next tokens after ``text``. For models of the demo world each has its true
        probability, and the five most probable tokens in truth are listed, too."""
        whole(top=top)
        if top < 0:
            raise UsageError(f"top is {top}: it must be a whole number from 0 up.")
        drawn = _sampling(temperature, sampling)
        check_sampling(drawn, self.vocabulary or 1 << 31)
        prompt = prompt_of(self.opened, text, raw)
        fit_limit(self.opened, prompt, 1)
        # the whole distribution: the truth's tokens may be far down in it
        distribution = self.opened.source.next([prompt], top=-1)[0]
        truth = None
        if self.opened.native is not None:
            from klype.runs.provenance import next_truth

            truth = next_truth(self.opened.found, self.opened.loaded.tokenizer, text, self.opened.as_raw(raw))
        return self.table(distribution, drawn, prompt, truth, top)

    def score(self, text: str, answer: str, raw: bool | None = None) -> Answer:
        """Scores a given answer: the probability of each of its tokens under the model, and of the end-of-answer token
        where there is one. Nothing is sampled."""
        prompt = prompt_of(self.opened, text, raw)
        said = self.answer_tokens(text, answer, raw)
        if len(said) > fit_limit(self.opened, prompt, len(said)):
            raise UsageError(f"The answer has {len(said)} tokens: more than the window of {self.window} leaves.")
        (trace,) = self.opened.source.score([prompt], [said])
        return self.answer(replace(trace, ended="stop") if self.opened.stop else trace)

    def tree(
        self,
        text: str,
        budget: int | None = None,
        temperature: float = 0.7,
        limit: int = 32,
        until: Literal["mass", "mode", "budget"] = "mass",
        raw: bool | None = None,
        judge: str | Judge | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerTree:
        """The most probable whole answers with certain bounds on their probabilities, and the unexplored probability.

        ``budget``: forward passes at most (by default 4,000 for small vocabularies, else 500). ``until`` "mode": until
        the most probable answer is certain; "mass": until less than 1 % is unexplored; "budget": neither. ``judge``:
        who says what means the same, as for ``klype.examine``.
        """
        whole(limit=limit, budget=1 if budget is None else budget)
        ask = self.context(text, raw, judge)
        return self.grow(ask, self.tree_settings(ask, _sampling(temperature, sampling), limit, budget, until))

    def forks(
        self,
        text: str,
        answer: str | None = None,
        samples: int = 32,
        temperature: float = 0.7,
        limit: int = 32,
        seed: int = 0,
        raw: bool | None = None,
        judge: str | Judge | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerForks:
        """Finds the token at which the meaning of an answer was decided: of ``answer``, or of one that is drawn.

        ``samples`` continuations are drawn at every token (Bigelow et al. 2024, arXiv:2412.07961). ``judge``: as for
        ``tree``.
        """
        whole(limit=limit, samples=samples, seed=seed)
        ask = self.context(text, raw, judge)
        said = None if answer is None else self.answer_tokens(text, answer, raw)
        return self.find_forks(ask, _sampling(temperature, sampling), (limit, samples, seed), said)

    # what the command line, server and studio also need

    def context(self, text: str, raw: bool | None = None, judge: str | Judge | None = None) -> PromptContext:
        """The prompt for ``text`` and how its answers are judged; a judge that is a MODEL is opened as this one was."""
        how = self.opened.how
        return prompt_context(self.opened, text, raw, open_judge(judge, self.opened, (how.precision, how.device)))

    def request(self, prompt: tuple[int, ...], sampling: Sampling, limit: int, seed: int) -> Request:
        """A request for one answer of at most ``limit`` tokens, or what the window leaves."""
        whole(limit=limit, seed=seed)
        check_sampling(sampling, self.vocabulary or 1 << 31)
        return Request(
            prompt, limit=fit_limit(self.opened, prompt, limit), sampling=sampling, seed=seed, stop=self.opened.stop
        )

    def answer_tokens(self, text: str, answer: str, raw: bool | None = None) -> list[int]:
        """The token ids of a given answer, its end included, tokenized as the model would write it: as its template
        writes answers, or after plain text with or without a space, whichever is more probable."""
        if not isinstance(answer, str):
            raise UsageError(f"The answer should be a string (it is of type {type(answer).__name__}).")
        opened, codec = self.opened, self.opened.source.codec
        if not isinstance(codec, NativeCodec):  # a server's own tokens
            return [*opened.encode_answer(answer), *opened.stop[:1]]
        if not opened.as_raw(raw):
            return codec.answer([{"role": "user", "content": text}], answer)
        bare, spaced = (codec.with_end_token(opened.encode_answer(spelled)) for spelled in (answer, f" {answer}"))
        # no choice: the tokens are the same, or there is white space between text and answer already
        if bare == spaced or not answer or (text[-1:] + answer[:1]).split() != [text[-1:] + answer[:1]]:
            return bare
        prompt = prompt_of(opened, text, raw)
        fit_limit(opened, prompt, 1)
        found = opened.source.score([prompt] * 2, [said[: opened.window - len(prompt)] for said in (bare, spaced)])
        likely = [sum(step.logp for step in trace.steps) for trace in found]
        return spaced if likely[1] > likely[0] else bare

    def draw(self, request: Request) -> list[Answer]:
        """Generates the answers to a request."""
        (traces,) = answers(self.opened.source, [request])
        return [self.answer(trace) for trace in traces]

    def write(self, request: Request) -> AnswerStream:
        """Streams the answer to a request."""
        return AnswerStream(self, stream(self.opened, request))

    def answer(self, trace: Trace) -> Answer:
        """The ``Answer`` of a trace."""
        opened = self.opened

        def token(step: Step) -> Token:
            p = math.exp(min(0.0, step.logp)) if math.isfinite(step.logp) else None
            return Token(opened.token_text(step.token), step.token, p)

        tokens = tuple(token(step) for step in trace.steps if step.token not in opened.stop)
        logp = trace.logp if math.isfinite(trace.logp) else None
        return Answer(opened.source.codec.decode(trace.tokens), tokens, logp, trace.ended, trace)

    def table(
        self, distribution: Distribution, sampling: Sampling, prompt: Tokens, truth: dict[int, float] | None, top: int
    ) -> NextTokens:
        """The table of a distribution's ``top`` tokens: their probabilities as sampled after ``prompt`` (bounds, if the
        distribution is partial), and the truth {token id: p} where it is known."""
        ids = distribution.ids.tolist()
        p = dict(zip(ids, np.exp(distribution.logp).tolist(), strict=True))
        if distribution.whole:  # by the function that samples answers
            drawn_V = shape_whole(distribution, sampling, (prompt, ()), self.vocabulary).exp()
            low = high = dict(enumerate(drawn_V.tolist()))
        else:
            at = sampling_bounds(distribution, sampling, self.vocabulary)
            low, high = (dict(zip(ids, end.tolist(), strict=True)) for end in (at.low_K, at.high_K))
        listed = ids[:top]
        # tokens that are probable in truth are listed even if the model finds them improbable
        truest = sorted(truth, key=lambda token: -truth[token])[:LISTED] if truth else []
        listed += [token for token in truest if token not in listed]

        def row(token: int) -> NextToken:
            most, true = None if distribution.whole else high[token], None if truth is None else truth.get(token, 0.0)
            return NextToken(self.opened.token_text(token), token, p.get(token, 0.0), low[token], most, true)

        return NextTokens(tuple(map(row, listed)), max(0.0, 1.0 - sum(p.get(token, 0.0) for token in listed)))

    def tree_settings(
        self, ask: PromptContext, sampling: Sampling, limit: int, budget: int | None, until: Any, eps: float = 0.01
    ) -> TreeSettings:
        """The settings for ``grow``; the default ``budget`` and the batch size depend on the vocabulary."""
        small = self.vocabulary <= 4096
        # passes are expensive with a large vocabulary, and with a server
        usual = 4000 if self.opened.exact and self.vocabulary > 0 and small else 500
        most = usual if budget is None else budget
        limit = fit_limit(self.opened, ask.prompt, limit)
        return TreeSettings(sampling, limit, most, until, eps, 16 if small else 8, self.vocabulary)

    def grow(
        self, ask: PromptContext, settings: TreeSettings, progress: Callable[[int, float], None] | None = None
    ) -> AnswerTree:
        """Explores the tree of a question's answers. ``progress(expansions, unexplored)`` is called meanwhile: prefixes
        read so far, and the probability that is unexplored."""
        token_bytes = self.opened.token_bytes if self.opened.exact else None
        (tree,) = grow(ask.source, [ask.prompt], settings, token_bytes, [ask.meaning], progress)
        return AnswerTree(tree, ask.judge, ask.error_rate)

    def find_forks(
        self, ask: PromptContext, sampling: Sampling, size: tuple[int, int, int], answer: list[int] | Trace | None
    ) -> AnswerForks:
        """The forks of an answer: given as tokens or as the trace of one that was drawn, or (None) drawn here.
        ``size``: maximum number of tokens, samples at every token, seed."""
        limit, samples, seed = size
        limit = fit_limit(self.opened, ask.prompt, limit)
        if isinstance(answer, Trace):
            trace = answer
        elif answer is None:
            trace = answers(ask.source, [self.request(ask.prompt, sampling, limit, seed)])[0][0]
        else:
            trace = ask.source.score([ask.prompt], [answer[:limit]])[0]
        settings = ForkSettings(sampling, max(limit, len(trace.steps)), samples, seed)
        found = forks(ask.source, trace, settings, ask.meaning, ask.right)
        tokens = tuple(self.opened.token_text(position.token) for position in found.positions)
        others = tuple(self.opened.token_text(other.token) for other in found.others)
        return AnswerForks(found, tokens, others, ask.judge, ask.error_rate)


def _sampling(temperature: float, options: SamplingOptions) -> Sampling:
    """The ``Sampling`` of these options. Raises UsageError for an unknown one."""
    known = SamplingOptions.__annotations__
    if unknown := options.keys() - known.keys():
        raise UsageError(f"Unknown option {sorted(unknown)[0]}.", f"Available: {', '.join(known)}.")
    return Sampling(temperature, **options)


def load(
    name: str | PathLike[str] | Model | None = None, precision: str = "float32", budget: str = "", device: str = "auto"
) -> Model:
    """Opens a MODEL: a run's folder (its newest stage), ``RUN/finetune`` for an earlier one, a checkpoint or Hugging
    Face folder, ``hf:owner/name``, a GGUF file, or a server's ``http://host:port/v1#model``; ``demo`` is the one
    that comes with klype. Without a name it is the newest run in ``runs``, else ``demo``, and stderr says which. A
    ``Run`` is its folder; a ``Model`` is opened already.

    ``precision``: float32, bfloat16, int8 or auto. ``budget``: a server's limits, such as
    "500requests,20000tokens". ``device``: auto (what is there: cuda, mps, else cpu), cpu, cuda, cuda:1 or mps. Raises
    KlypeError when there is no such model or device, or the model is damaged.
    """
    if isinstance(name, Model):
        return name
    name = default_model(language()) if name is None else name
    for what, value in (("A model's name", name), ("budget", budget), ("device", device)):
        if not isinstance(value, str) and not (value is name and isinstance(value, PathLike)):
            raise UsageError(f"{what} should be a string (it is {value!r}).")
    return Model(open_model(resolve(str(fspath(name))), precision, budget=budget, device=device))
