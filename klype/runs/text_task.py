"""The task of a run about the user's own text: the truth is unknown, and answers are judged by stated rules."""

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from klype.data.batches import PackedBatches, conversation_batches, fit, once
from klype.data.documents import Documents, sample_hash, training_shards
from klype.data.example_batches import Example
from klype.data.readers import BadRows, TextDocument
from klype.data.rows import Conversation
from klype.data.seeds import mix
from klype.data.text_tasks import language, make_tasks
from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.examine.run_facts import JsonObject, LocalText, StageName
from klype.judge.rule_judge import RuleJudge
from klype.judge.text import normalise
from klype.model.transformer import Transformer
from klype.runs import run_data
from klype.runs.dictionary import JUDGE, DictionaryExam, WellFormedness, is_right
from klype.runs.recipe import Recipe
from klype.runs.run_data import Material
from klype.runs.run_options import InputOptions, StageOptions
from klype.runs.task import QuestionStream, Task
from klype.runs.text_measures import TextMeasures
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Batch, Batches, Figure, Question, Request, Sampling, Verdict
from klype.words import in_all_languages, words

TASKS = 3000
WINDOWS = 16  # of held-out text for validation during training
# held-out questions for validation during training; none where there are fewer: weights would be chosen by chance
MIN_WATCHED, MAX_WATCHED = 8, 32
WATCHED_SHARE = 0.2  # of the held-out questions, at most
OVERLAP = "a stated rule: whole, short, not repetitive, on the question's words"
EXAMPLES = 3  # answers to one question, at most, to train on
POLITE = re.compile(r"^(takk|gjerne|så hyggelig|thank|gladly|how nice|of course|sure|certainly|selvfølgelig)", re.I)


class TextTask(Task):
    """The user's text, with instructions and preferences as given, or made from the text and ranked by a stated rule.

    ``exam``: None without a dictionary. ``held_out``: questions that are never trained on. ``known``: hashes of input
    files by absolute path.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        options: InputOptions,
        bad: BadRows,
        tokenizer: Tokenizer | None = None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        material = run_data.read_data(options, recipe.data, bad, known)
        self._split, self.data, notes = material.split, material.data, [*material.notes]
        length = sum(len(d.text) for d in self._split.train)
        if length < 2 * recipe.model.window:
            raise KlypeError(
                f"The text is too short to learn from: {length} characters, and a window of the model holds "
                f"{recipe.model.window} tokens.",
                "Give more text.",
            )
        if tokenizer is None:
            texts = (d.text for d in self._split.train)
            tokenizer = Tokenizer.train(texts, recipe.tokenizer.tokens(length), TEMPLATE)
        self.chat = Chat(tokenizer)
        # pre-training alone needs no questions
        needed = not (isinstance(options, StageOptions) and options.stage == "pretrain")
        self._learnt, self._conversations, kept = self._exercises(material, needed, notes)
        self.examples = len(self._conversations)
        # Held-out questions for validation during training (one wording each), and those for the examination. The split
        # depends on the questions alone, so that stages with different seeds do not mix them.
        keyed = {run_data.held_out_key(question): question for question in kept}
        keys = sorted((key for key in keyed if sample_hash(key) < WATCHED_SHARE), key=sample_hash)
        watched = keys[:MAX_WATCHED] if len(keys) >= MIN_WATCHED else []
        self._watched = [keyed[key] for key in watched]
        self.held_out = [question for question in kept if run_data.held_out_key(question) not in watched]
        asked = set(map(run_data.whole_prompt, (*self.held_out, *self._watched)))
        self.given_rankings = [
            r for r in material.rankings if run_data.whole_prompt(r.question) not in asked and self._fits(r.question)
        ]
        if material.rankings and not self.given_rankings:
            raise KlypeError(f"No preference in {options.preferences or options.data} fits the model's window.")
        ranked = [r.question.messages() for r in self.given_rankings]
        for what, conversations in (("instructions", self._conversations), ("preferences", ranked)):
            # klype's own template writes every message; another model's may leave some out
            omitted = sum(map(self.chat.omits, conversations)) if self.chat.template != TEMPLATE else 0
            notes += [in_all_languages("run", f"note.omitted_{what}", n=omitted)] if omitted else []
        notes += [in_all_languages("run", "note.skipped", n=bad.count, first=bad.shown[0])] if bad.count else []
        self.notes = notes
        some = random.Random(0).sample(self._split.train, min(50, len(self._split.train)))
        own = recipe.data.language
        self.languages = [own] if own else sorted({language(d.text) for d in some})  # of the training text
        dictionary = material.dictionary
        about_words = [q for q in self._learnt if "kind" in q.extra]
        self.exam = None if dictionary is None else DictionaryExam(dictionary, about_words, self._split.train, seed)
        self.deciding = None if self.exam else RuleJudge()
        self.judge_name = JUDGE if self.deciding is None else self.deciding.name
        kind = "rows" if self.given_rankings else "dictionary" if self.exam else "rule"
        self.annotator = in_all_languages("run", f"annotator.{kind}", rows=str(options.preferences or options.data))
        self.annotator_name = words("en", "run")("annotator.dictionary") if self.exam else OVERLAP
        self.measures = TextMeasures(self._split, tokenizer, recipe.model.window)
        if material.share == 1:
            self._train_shards = self._tokens(self._split.train)
        else:  # the text is larger than memory: train from shards in the run's folder, and the dictionary's articles
            assert options.out is not None
            shards = training_shards(material.texts(), tokenizer, options.out / "tokens" / "train")
            articles = dictionary.documents(held_out=False) if dictionary else []
            self._train_shards = shards.concat(self._tokens(articles)) if dictionary else shards
        self.tokens = int(self._train_shards.lengths.sum())

    # input

    def _tokens(self, documents: Sequence[TextDocument]) -> Documents:
        return Documents.of(self.chat.tokenizer.encode_documents([d.text for d in documents]))

    def _exercises(
        self, material: Material, needed: bool, notes: list[LocalText]
    ) -> tuple[list[Question], list[Conversation], list[Question]]:
        """(questions to train on, conversations to train on, held-out questions), made from the text where none are
        given. Those that are too long are left out, with a note. KlypeError where questions are needed and too few."""
        rows, known = material.conversations, material.questions
        if not rows and not known:
            try:
                sides = [make_tasks(side, TASKS, self.seed) for side in (self._split.train, self._split.held_out)]
            except KlypeError:
                if needed:
                    raise
                return [], [], []
            rows = [task for tasks in sides for task in tasks]
            notes.append(in_all_languages("run", "note.made"))
        learnt, taught, kept, too_long = list[Question](), list[Conversation](), list[Question](), 0
        for question, row in [*((q, None) for q in known), *((_question(row), row) for row in rows)]:
            held_out = run_data.held_out(question)
            if not self._fits(question):
                if row and not held_out and self._fits(replace(question, extra={})):
                    taught.append(row)  # its last turns fit and are trained on
                else:
                    too_long += 1
            elif held_out:
                kept.append(question)
            else:
                learnt.append(question)
                taught += [row] if row else [question.messages(answer) for answer in question.answers[:EXAMPLES]]
        if needed and not (learnt and kept):
            raise KlypeError(
                f"{len(rows) + len(known) - too_long} instructions that fit the model's window are too few to keep "
                "some back for the examination.",
                "Give twenty or more, or a recipe with a larger model.window.",
            )
        if too_long:
            notes.append(in_all_languages("run", "note.too_long", n=too_long))
        random.Random(self.seed).shuffle(kept)
        return learnt, taught, kept

    def _fits(self, question: Question) -> bool:
        prompt = self.chat.prompt(question.messages())
        longest = max(self.recipe.rank.limit, self.recipe.align.limit)
        return len(prompt) + longest <= self.recipe.model.window

    # data

    def pretraining(self, steps: int, background: bool) -> Batches:
        rows = self.recipe.pretrain.micro_rows
        return PackedBatches(self._train_shards, rows, self.recipe.model.window, self.seed)

    def validation_batches(self, stage: str) -> list[Batch]:
        lesson = self.recipe.pretrain if stage == "pretrain" else self.recipe.finetune
        rows = lesson.micro_rows
        if stage != "pretrain":
            examples = [self._example(q.messages(q.answers[0])) for q in self._watched]
            return once(examples, self.pools(rows, 1))
        documents = self._tokens(self._split.held_out)
        if documents.lengths.max(initial=0) < 2:
            return []
        batches = PackedBatches(documents, rows, self.recipe.model.window, self.seed)
        return [next(batches) for _ in range(max(1, WINDOWS // rows))]

    def late_batches(self) -> Batches:
        """Batches for timing: windows are all of one length, and any will do."""
        return self.pretraining(0, False)

    def finetuning(self, background: bool) -> Batches:
        examples = [self._example(conversation) for conversation in self._conversations]
        lesson = self.recipe.finetune
        return conversation_batches(examples, self.pools(lesson.rows, lesson.training.micro_batches))

    def _example(self, conversation: Conversation) -> Example:
        ids, learnt = self.chat.conversation(conversation)
        return fit((ids, [float(x) for x in learnt]), self.recipe.model.window)

    def rehearsal(self, rows: int, pieces: int = 1) -> Callable[[int], Batch]:
        documents, rows, window = self._train_shards, max(1, rows // pieces), self.recipe.model.window // 2

        def batch(index: int) -> Batch:
            """Packs just enough random documents to fill the windows: shuffling all would cost more than the step."""
            rng, missing = random.Random(mix(mix(self.seed, 3), index)), rows * window
            drawn: list[list[int]] = []
            while missing > 0:
                drawn.append(documents[rng.randrange(len(documents))][: window + 1].tolist())
                missing -= max(1, len(drawn[-1]) - 1)
            return next(PackedBatches(Documents.of(drawn), rows, window, rng.randrange(2**32)))

        return batch

    def questions(self, part: int) -> QuestionStream:
        return lambda index: self._learnt[mix(index, part) % len(self._learnt)]

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        """Correct if it agrees with the reference. The score follows the stated rule, or with a dictionary whether the
        answer is well-formed."""
        words, own = answer.split(), normalise(answer, articles=True).split()
        whole, repeated = finished and bool(own), 1 - len(set(own)) / len(own) if own else 1.0
        if self.deciding is None:
            assert self.exam is not None
            right = is_right(question, answer, finished) if question.answers else None
            formed = self.exam.well_formed(question, answer, finished)
            liked = 1.5 * formed
        else:
            formed = None
            right = self.deciding.right(question, answer)
            wanted = set(normalise(" ".join((question.prompt, *question.answers))).split())
            liked = sum(word in wanted for word in own) / len(own) if own else 0.0
        score = 1.0 * whole + liked - 1.0 * repeated - 0.02 * len(words) + 1.0 * bool(right)
        reference = max((len(a.split()) for a in question.answers), default=12)
        concise = whole and len(words) <= max(12, 2 * reference)
        polite = bool(POLITE.match(answer.strip())) if self.exam is None else None  # a dictionary has no manners
        return Verdict(right, polite, concise, len(words), score, formed if "kind" in question.extra else None)

    def scores(self, words: int) -> tuple[float, float]:
        return -1.0 - 0.02 * words, 2.0 + (1.0 if self.exam is None else 1.5)

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]:
        """Answers to other questions, of the same kind where there are kinds: well-formed, and wrong here."""
        rng, kind = random.Random(mix(self.seed, seed, 5)), question.extra.get("kind")
        others = [rng.choice(self._learnt) for _ in range(20 * n)]
        alike = [q for q in others if q.extra.get("kind") == kind] or others
        texts = (rng.choice(q.answers) for q in alike)
        return list(islice((text for text in texts if not self.judge(question, text, True).right), n))

    # measures

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        return {"bits_per_byte": self.measures.bits_per_byte(model, few)}

    def next_words(self, model: Transformer) -> list[JsonObject]:
        return self.measures.next_words(model)

    def temperatures(self, model: Transformer) -> list[JsonObject]:
        """Free writing at the recipe's temperatures. Real words: those of the training text and the dictionary, and
        compounds of them."""
        is_word = self.exam.well_formed.is_word if self.exam else WellFormedness(self.measures.vocabulary(), {}).is_word
        return self.measures.temperatures(model, self.recipe.examine.temperatures, is_word, self.seed % 2**20)

    def further_questions(self, model: StageName) -> dict[str, list[Question]]:
        """With a dictionary: questions about trained words, which the base model cannot answer."""
        return {"right_trained": self.exam.trained} if self.exam is not None and model != "base" else {}

    def yardsticks(self) -> JsonObject | None:
        return self.measures.yardsticks()

    def sample_text(self, model: Transformer, trained: str) -> str:
        tokenizer, stop = self.chat.tokenizer, self.chat.tokenizer.ends
        if trained == "pretrain":
            start = self.measures.first_words(6)
            prompt = [*tokenizer.lead, *tokenizer.encode(start)]
        else:
            question = self.held_out[mix(self.seed, len(trained)) % len(self.held_out)]
            start, prompt = question.question, self.chat.prompt(question.messages())
        request = Request(tuple(prompt), limit=30, sampling=Sampling(temperature=0.7), stop=stop)
        trace = Engine(model).run([request])[0][0]
        return " ".join(f"{start} … {tokenizer.decode(trace.tokens)}".split())


def _question(conversation: Conversation) -> Question:
    """The last answered question of a conversation, with the turns before it."""
    roles = [message["role"] if message["content"].strip() else "" for message in conversation]
    first = roles.index("user")
    answer = max(i for i, role in enumerate(roles) if role == "assistant" and i > first)
    asked = max(i for i, role in enumerate(roles[:answer]) if role == "user")
    before = conversation[:asked]
    text = "\n".join(message["content"] for message in conversation[: asked + 1])
    name, extra = hashlib.sha256(text.encode()).hexdigest()[:12], {"before": before} if before else {}
    return Question(name, conversation[asked]["content"], answers=(conversation[answer]["content"],), extra=extra)
