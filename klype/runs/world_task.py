"""The task of a run about the demo world, whose true probabilities are known."""

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice, tee
from typing import Literal

import torch

from klype.data.batches import PaddedBatches
from klype.data.example_batches import BLOCK, STEPS, Example
from klype.data.seeds import mix
from klype.engine.engine import Engine
from klype.examine.intervals import mean_by_question
from klype.examine.run_facts import JsonObject, StageName
from klype.examine.truth import DocumentTruth, Reader, point, s_and_kl
from klype.model.transformer import Transformer
from klype.runs.recipe import Recipe
from klype.runs.task import QuestionStream, Task
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Batch, Batches, Figure, Question, Request, Sampling, Verdict
from klype.words import in_all_languages
from klype.world import Filter, Spellings, TokenFilter, World, WorldDocument

SHOWN = ("Jeg gikk en tur på", "I walked on the")
FIXED_ASKED = 100  # questions about fixed facts, of which there are not many more
LATE = 1000  # steps, of which the last tenth counts as late
DRAWN = 4  # draws at most for each distinct question: a small world has few of them


def _distinct(draw: Callable[[], Question], n: int) -> list[Question]:
    """The first ``n`` distinct questions drawn."""
    found: dict[str, Question] = {}
    for _ in range(DRAWN * n):
        if len(found) == n:
            break
        question = draw()
        found.setdefault(question.prompt, question)
    return list(found.values())


class WorldTask(Task):
    """Endless documents and questions with known answers, judged by the grammar, which does not err, and ranked by an
    annotator of stated taste. Every document and question is new, so that the training loss is a held-out loss."""

    annotator_name = "likes right, polite and short answers"
    judge_name = "the world's grammar"

    def __init__(self, recipe: Recipe, seed: int, tokenizer: Tokenizer | None = None) -> None:
        self.recipe, self.seed, self.annotator = recipe, seed, in_all_languages("run", "annotator.world")
        self.world = World(recipe.world)
        if tokenizer is None:
            rng = random.Random(mix(seed, 0, 2))
            texts = [" " + self.world.text(self.world.document(rng).words) for _ in range(2000)]
            every_word = " ".join(self.world.words)  # so that the rarest has a token, too
            tokenizer = Tokenizer.train([*texts, " " + every_word], recipe.tokenizer.size, TEMPLATE)
        self.chat = Chat(tokenizer)
        self.spellings = Spellings(self.world.words, tokenizer.encode, tokenizer.end)
        rng = random.Random(mix(seed, 0, 1))
        # costly to make, and the same for all models of a run: every copy of a tee starts at the beginning
        (self._read,) = tee(self._held_out_documents(), 1)
        self._told = {hard: tee(self._stories(hard), 1)[0] for hard in (True, False)}
        most = max(recipe.examine.questions, recipe.rank.held_out)
        self.held_out = _distinct(lambda: self.world.question(rng, heldout=True, fixed=False), most)
        self.reader = lambda question: Reader(lambda: TokenFilter(self.world.filter(question), self.spellings))
        self.held_out_fixed = _distinct(lambda: self.world.question(rng, heldout=True, fixed=True), FIXED_ASKED)
        name, thanks = f"klype's demo world ({len(self.world.words)} words)", in_all_languages("run", "source.world")
        self.languages = ["nb", "en"]
        self.data = [{"name": name, "licence": "Apache-2.0", "attribution": thanks}]

    # data

    def _documents(self, part: int, styled_from: int = 0, easy_until: int = 0) -> "WorldSamples":
        begin, weight, seed = self.chat.tokenizer.begin, self.recipe.pretrain.answer_weight, mix(self.seed, part, 3)
        return WorldSamples(self.world, self.spellings, begin, seed, weight, styled_from, easy_until)

    def pretraining(self, steps: int, background: bool) -> PaddedBatches:
        lesson = self.recipe.pretrain
        pools = replace(self.pools(lesson.rows, lesson.training.micro_batches), passes=lesson.passes)
        examples = pools.distinct(-(-steps // STEPS))
        documents = self._documents(0, int(lesson.plain * examples), int(lesson.easy * examples))
        return PaddedBatches(documents, pools, background)

    def late_batches(self) -> Batches:
        batches, whole = self.pretraining(LATE, False), BLOCK * self.recipe.pretrain.passes
        pools = int(0.9 * LATE) // STEPS // whole * whole  # documents are made when a block begins
        batches.index = pools * STEPS * self.recipe.pretrain.training.micro_batches
        return batches

    def finetuning(self, background: bool) -> Batches:
        turns = ChatSamples(self.world, self.chat, mix(self.seed, 0, 4))
        lesson = self.recipe.finetune
        return PaddedBatches(turns, self.pools(lesson.rows, lesson.training.micro_batches), background)

    def rehearsal(self, rows: int, pieces: int = 1) -> Callable[[int], Batch]:
        return PaddedBatches(self._documents(1), self.pools(rows, pieces)).batch

    def questions(self, part: int) -> QuestionStream:
        return lambda index: self.world.question(random.Random(mix(self.seed, index, 20 + part)))

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        return self.world.judge(question, answer, finished)

    def scores(self, words: int) -> tuple[float, float]:
        return self.world.scores(words)

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]:
        rng = random.Random(mix(self.seed, seed, 5))
        return [self.world.answer(question, "wrong", rng) for _ in range(n)]

    @torch.no_grad()
    def before_finetuning(self, model: Transformer) -> None:
        """Initialises the chat's control tokens with the embeddings of their plain-text counterparts: the beginning of
        a text, and the dash before an answer."""
        tokenizer = self.chat.tokenizer
        dash = self.spellings.of["–"][-1]
        model.embed.weight[tokenizer.assistant] = model.embed.weight[dash]
        model.embed.weight[tokenizer.user] = model.embed.weight[tokenizer.begin]

    # measures

    def _stories(self, hard: bool) -> Iterator[tuple[str, Question]]:
        """Texts with their questions, in turn for the two manners of answering."""
        rng = random.Random(mix(self.seed, int(hard), 7))
        while True:
            yield self.world.retrieval(rng, "bare", hard)
            yield self.world.retrieval(rng, "sentence", hard)

    def _held_out_documents(self) -> Iterator[DocumentTruth]:
        """Documents with held-out stories, with the true distribution of every next token."""
        rng, samples = random.Random(mix(self.seed, 0, 6)), self._documents(0)
        while True:
            document = self.world.document(rng, heldout=True)
            tokens, _ = samples.example(document)
            truth, following = TokenFilter(self.world.filter(), self.spellings), []
            for token in tokens[1:]:
                following.append(truth.next())
                truth.push(token)
            yield DocumentTruth.of(tokens, following, len(document.words) + 1)

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        """S and KL(p‖q) on documents drawn from p, and retrieval from hard and ordinary stories told as plain text."""
        collects = gc.isenabled()
        gc.disable()  # nothing here is garbage, and collecting takes half of the time
        try:
            documents = list(islice(copy(self._read), max(1, self.recipe.examine.documents // (4 if few else 1))))
        finally:
            if collects:
                gc.enable()
        with torch.inference_mode():
            tokens = (torch.tensor([d.tokens[:-1]], device=model.embed.weight.device) for d in documents)
            logp_DTV = [model(tokens_1T)[0].log_softmax(-1).cpu().numpy() for tokens_1T in tokens]
        figures = s_and_kl(documents, logp_DTV)
        tokenizer, asked = self.chat.tokenizer, 200 if few else 400
        cold, stop = Sampling(temperature=0.0), tuple(self.spellings.of["."])
        for name, hard in (("retrieval_hard", True), ("retrieval_text", False)):
            texts, questions = zip(*islice(copy(self._told[hard]), asked), strict=True)
            prompts = [(tokenizer.begin, *tokenizer.encode(" " + text)) for text in texts]
            answers = Engine(model).run([Request(prompt, limit=30, sampling=cold, stop=stop) for prompt in prompts])
            said = [tokenizer.decode(trace.tokens).strip().removeprefix("–") for (trace,) in answers]
            right = [float(bool(self.world.judge(q, text).right)) for q, text in zip(questions, said, strict=True)]
            figures[name] = mean_by_question(right, [str(i) for i in range(asked)], "share", self.judge_name)
        return figures

    def next_words(self, model: Transformer) -> list[JsonObject]:
        """The model's and the true next-token probabilities after the article's example and an English one."""
        out: list[JsonObject] = []
        for text in SHOWN:
            words: Filter = self.world.filter()
            tokens = [self.chat.tokenizer.begin]
            for word in self.world.words_of(text):
                words.push(word)
                tokens += self.spellings.of[word]
            truth = TokenFilter(words, self.spellings).next()
            (q,) = Engine(model).next([tokens])
            compared, decode = point(truth, q), self.chat.tokenizer.decode
            likely = dict.fromkeys([*q.ids[:6].tolist(), *sorted(truth, key=lambda t: -truth[t])[:8]])
            shown = [{"token": decode([t]), "id": t, "p": q.p(t) or 0.0, "truth": truth.get(t, 0.0)} for t in likely]
            shown.sort(key=lambda t: -t["p"])
            rest, truth_rest = (max(0.0, 1 - sum(t[side] for t in shown)) for side in ("p", "truth"))
            about = {"prompt": text, "tokens": shown, "rest": rest, "truth_rest": truth_rest}
            out.append({**about, "s": compared.s_low, "kl": compared.kl})
        return out

    def further_questions(self, model: StageName) -> dict[str, Sequence[Question]]:
        """Questions about fixed facts, which the training text tells often."""
        return {"right_fixed": self.held_out_fixed}

    def sample_text(self, model: Transformer, trained: str) -> str:
        rng = random.Random(mix(self.seed, len(trained), 8))
        question = self.world.question(rng, heldout=True, fixed=False)
        tokenizer = self.chat.tokenizer
        if trained == "pretrain":
            prompt = [tokenizer.begin, *tokenizer.encode(" " + question.prompt)]
            ends = (*tokenizer.ends, self.spellings.of["."][-1])
        else:
            prompt, ends = self.chat.prompt(question.messages()), tokenizer.ends
        request = Request(tuple(prompt), limit=30, sampling=Sampling(temperature=0.0), stop=ends)
        trace = Engine(model).run([request])[0][0]
        return f"{question.question} → {tokenizer.decode(trace.tokens).strip()}"


# endless training examples: example i is a pure function of i, so that a position is one number


@dataclass(frozen=True)
class WorldSamples:
    """Pre-training documents, with plain answers only before example ``styled_from`` and all manners after.

    Before example ``easy_until`` some stories have two facts at most: all at first, then fewer and fewer.
    ``answer_weight``: loss weight of words inside answers, which are rare and matter most.
    """

    world: World
    spellings: Spellings
    begin: int
    seed: int
    answer_weight: float
    styled_from: int = 0
    easy_until: int = 0

    def __call__(self, index: int) -> Example:
        rng = random.Random(mix(self.seed, index, 11))
        easy = rng.random() * self.easy_until > index
        return self.example(self.world.document(rng, index >= self.styled_from, most_facts=2 if easy else None))

    def example(self, document: WorldDocument) -> Example:
        tokens, weights = [self.begin], [0.0]
        for word, inside in zip((*document.words, "</s>"), (*document.answers, False), strict=True):
            spelling = self.spellings.of[word]
            tokens += spelling
            weights += [self.answer_weight if inside else 1.0] * len(spelling)
        return tokens, weights


@dataclass(frozen=True)
class ChatSamples:
    """Fine-tuning conversations: a question and a right answer, in manners drawn by their shares."""

    world: World
    chat: Chat
    seed: int

    def __call__(self, index: int) -> Example:
        rng = random.Random(mix(self.seed, index, 12))
        question = self.world.question(rng)
        manners = self.world.manners
        manner: Literal["bare", "sentence", "polite", "boring"] = rng.choices(list(manners), list(manners.values()))[0]  # type: ignore[assignment]
        answer = self.world.answer(question, manner, rng)
        ids, learnt = self.chat.conversation(question.messages(answer))
        return ids, [float(x) for x in learnt]
