"""A run about somebody's own text: nobody knows its truth, so that what is measured is said to be measured by rules."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from klype.data.baselines import ngram_bits_per_byte, xz_bits_per_byte
from klype.data.batches import PackedBatches, conversation_batches, fit
from klype.data.order import mix
from klype.data.pools import Example, PoolSettings
from klype.data.readers import BadRows, TextDocument, TextOptions, files_of, read_texts
from klype.data.rows import Conversation, read_instructions, read_preferences
from klype.data.shards import Documents
from klype.data.split import Split, is_held_out, split
from klype.data.tasks import make_tasks
from klype.engine.engine import Engine
from klype.errors import KlypeError, UsageError
from klype.examine.facts import DataFacts, NextFacts, NextTokenFacts, Text, TextFacts
from klype.examine.intervals import ratio_of_means
from klype.judge.text import normalise, normalised_match
from klype.model.transformer import Transformer
from klype.runs.options import InputOptions
from klype.runs.recipe import Recipe
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Batch, Batches, Figure, Question, Ranking, Request, Sampling, Verdict

TASKS = 3000
POLITE = re.compile(r"^(takk|gjerne|så hyggelig|thank|gladly|how nice|of course|sure|certainly|selvfølgelig)", re.I)
RULE: Text = {
    "en": "simulated by a rule: answers that are whole, short, not repetitive, and share words with the question or "
    "its reference",
    "nb": "simulert etter en regel: svar som er hele, korte, uten gjentakelser, og som deler ord med spørsmålet eller "
    "fasiten",
}
MADE: Text = {
    "en": "No instructions were given: the questions were made from the text itself (what comes next, which word is "
    "missing), and an answer counts as right only when it is the text's own.",
    "nb": "Ingen instruksjoner ble gitt: Spørsmålene er laget av teksten selv (hva kommer nå, hvilket ord mangler), og "
    "et svar regnes som riktig bare når det er tekstens eget.",
}


class TextSubject:
    """Own text in blocks or files, instructions given or made from it, preferences given or a stated rule."""

    annotator_name = "a stated rule: whole, short, not repetitive, on the question's words"
    judge_name = "normalised match with the reference"

    def __init__(self, recipe: Recipe, seed: int, options: InputOptions, tokenizer: Tokenizer | None = None) -> None:
        self.recipe, self.seed, self.options = recipe, seed, options
        self._bad = BadRows(skip=options.skip_bad)
        self._split = self._read()
        self.chat = Chat(tokenizer or self._tokenizer())
        self._notes: list[Text] = []
        self._conversations, self.held_out = self._instructions()
        self._rankings = self._preferences()
        self.annotator: Text = (
            {"en": f"the rows of {options.preferences}", "nb": f"radene i {options.preferences}"}
            if options.preferences
            else RULE
        )
        self._train_shards = self._tokens(self._split.train)

    # input

    def _paths(self) -> tuple[str, ...]:
        data = (str(self.options.data),) if self.options.data else ()
        return (*self.options.text, *data)

    def _read(self) -> Split:
        paths = self._paths()
        if not paths:
            raise UsageError("This recipe needs text.", "Give --text FILES or --data FOLDER.")
        found = split(read_texts(paths, TextOptions(encoding=self.options.encoding, bad=self._bad)))
        length = sum(len(d.text) for d in found.train)
        if length < 2 * self.recipe.model.window:
            raise KlypeError(
                f"The text is too short to learn from: {length} characters, and a window of the model holds "
                f"{self.recipe.model.window} tokens.",
                "Give more text.",
            )
        return found

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.train((d.text for d in self._split.train), self.recipe.tokenizer.size, TEMPLATE)

    def _tokens(self, documents: Sequence[TextDocument]) -> Documents:
        return Documents.of(self.chat.tokenizer.encode_documents([d.text for d in documents]))

    def _instructions(self) -> tuple[list[Conversation], list[Question]]:
        if self.options.instructions:
            conversations = read_instructions([self.options.instructions], self._bad)
        else:
            made = [make_tasks(side, TASKS, self.seed) for side in (self._split.train, self._split.held_out)]
            conversations = [task.messages for tasks in made for task in tasks]
            self._notes.append(MADE)
        train: list[Conversation] = []
        held_out: list[Question] = []
        too_long = 0
        for messages in conversations:
            asked, answer = messages[-2]["content"], messages[-1]["content"]
            if not self._fits(asked):
                too_long += 1
            elif not is_held_out(asked, 0.1):
                train.append(messages)
            elif len(messages) == 2:
                name = hashlib.sha256(asked.encode()).hexdigest()[:12]
                held_out.append(Question(name, asked, answers=(answer,)))
        if not train or not held_out:
            raise KlypeError(
                f"{len(conversations) - too_long} instructions that fit the model's window are too few to keep some "
                "back for the examination.",
                "Give twenty or more, or a recipe with a larger model.window.",
            )
        if too_long:
            self._notes.append(
                {
                    "en": f"{too_long} instructions were longer than the model's window and left out.",
                    "nb": f"{too_long} instruksjoner var lengre enn modellens vindu og ble utelatt.",
                }
            )
        random.Random(self.seed).shuffle(held_out)
        return train, held_out

    def _fits(self, asked: str) -> bool:
        prompt = self.chat.prompt([{"role": "user", "content": asked}])
        longest = max(self.recipe.rank.limit, self.recipe.align.limit)
        return len(prompt) + longest <= self.recipe.model.window

    def _preferences(self) -> list[Ranking]:
        if not self.options.preferences:
            return []
        rankings = read_preferences([self.options.preferences], self._bad)
        fitting = [r for r in rankings if self._fits(r.question.prompt)]
        if not fitting:
            raise KlypeError(f"No preference in {self.options.preferences} fits the model's window.")
        return fitting

    # data

    def pretraining(self, steps: int, background: bool) -> Batches:
        return PackedBatches(self._train_shards, self.recipe.pretrain.rows, self.recipe.model.window, self.seed)

    def late(self, steps: int) -> dict[str, Any]:
        """Windows are all of one length: the beginning is as good as the end."""
        return self.pretraining(steps, False).state()

    def finetuning(self, background: bool) -> Batches:
        examples: list[Example] = []
        for messages in self._conversations:
            ids, learnt = self.chat.conversation(messages)
            examples.append(fit((ids, [float(x) for x in learnt]), self.recipe.model.window))
        settings = PoolSettings(self.recipe.finetune.rows, pad=self.chat.tokenizer.pad, seed=self.seed)
        return conversation_batches(examples, settings)

    def rehearsal(self, rows: int) -> Batches:
        return _ByPosition(self._train_shards, rows, self.recipe.model.window // 2, mix(self.seed, 3))

    def questions(self, part: int) -> _Asked:
        single = [m for m in self._conversations if len(m) == 2] or self._conversations
        return _Asked([m[-2]["content"] for m in single], [m[-1]["content"] for m in single], part)

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        """Right: the reference after normalising. The score rewards what the rule says, and nothing else."""
        words = answer.split()
        right = normalised_match(question, answer).right if question.answers else None
        wanted = set(normalise(" ".join((question.prompt, *question.answers))).split())
        own = normalise(answer).split()
        overlap = sum(word in wanted for word in own) / len(own) if own else 0.0
        repeated = 1 - len(set(own)) / len(own) if own else 1.0
        whole = finished and bool(own)
        score = 1.0 * whole + 1.0 * overlap - 1.0 * repeated - 0.02 * len(words) + 1.0 * bool(right)
        reference = max((len(a.split()) for a in question.answers), default=12)
        concise = whole and len(words) <= max(12, 2 * reference)
        return Verdict(right and finished, bool(POLITE.match(answer.strip())), concise, len(words), score)

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]:
        """Answers of other questions: they are well-formed, and not to this question."""
        rng = random.Random(mix(self.seed, seed, 5))
        return [rng.choice(self._conversations)[-1]["content"] for _ in range(n)]

    def given_rankings(self) -> list[Ranking]:
        return self._rankings

    def before_finetuning(self, model: Transformer) -> None:
        """Nothing in plain text stands for the chat's marks."""

    # measures

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        """Bits per byte of the held-out text, document by document."""
        budget = 60_000 if few else 400_000
        documents, size = [], 0
        for document in self._split.held_out:
            documents.append(document)
            size += len(document.text.encode())
            if size > budget:
                break
        bits, sizes = zip(*(self._bits(model, d.text) for d in documents), strict=True)
        return {"bits_per_byte": ratio_of_means(list(bits), list(sizes), "bits per byte")}

    @torch.inference_mode()
    def _bits(self, model: Transformer, text: str) -> tuple[float, float]:
        """Cross-entropy in bits over windows that overlap by half, so that every token has some context."""
        ids = self.chat.tokenizer.encode_document(text)
        window = self.recipe.model.window
        half, total, done = window // 2, 0.0, 1
        while done < len(ids):
            start = max(0, done - half)
            piece = torch.tensor([ids[start : start + window]])
            logp_TV = model(piece[:, :-1])[0].float().log_softmax(-1)
            targets = piece[0, 1:]
            own = slice(done - start - 1, None)
            total -= float(logp_TV[own].gather(1, targets[own, None]).sum())
            done = start + piece.shape[1]
        return total / math.log(2), float(len(text.encode()))

    def next_words(self, model: Transformer) -> list[NextFacts]:
        """After the first words of a held-out text."""
        words = self._split.held_out[0].text.split()[:8]
        prompt = " ".join(words)
        tokenizer = self.chat.tokenizer
        q = Engine(model).next([[tokenizer.begin, *tokenizer.encode(" " + prompt)]], top=8)[0]
        tokens: list[NextTokenFacts] = [
            {"token": tokenizer.decode([int(i)]), "id": int(i), "p": float(math.exp(lp))}
            for i, lp in zip(q.ids[:8], q.logp[:8], strict=True)
        ]
        return [{"prompt": prompt, "tokens": tokens, "rest": max(0.0, 1 - sum(t["p"] for t in tokens))}]

    def next_right(self, question: Question) -> None:
        return None

    def yardsticks(self) -> TextFacts | None:
        held_out = "\n\n".join(d.text for d in self._split.held_out).encode()
        train = "\n\n".join(d.text for d in self._split.train).encode()
        return {
            "held_out_bytes": len(held_out),
            "xz": xz_bits_per_byte(held_out),
            "ngram": ngram_bits_per_byte(train, held_out),
            "ngram_order": 5,
        }

    def data(self) -> list[DataFacts]:
        files = [*files_of(self._paths()), *(f for f in (self.options.instructions, self.options.preferences) if f)]
        return [
            {"name": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest(), "bytes": f.stat().st_size}
            for f in files[:50]
        ]

    def notes(self) -> list[Text]:
        skipped: list[Text] = []
        if self._bad.count:
            skipped.append(
                {
                    "en": f"{self._bad.count} bad rows were skipped; the first: {self._bad.shown[0]}",
                    "nb": f"{self._bad.count} ødelagte rader ble hoppet over; den første: {self._bad.shown[0]}",
                }
            )
        return [*self._notes, *skipped]

    def speak(self, model: Transformer, trained: str) -> str:
        tokenizer = self.chat.tokenizer
        start = " ".join(self._split.held_out[0].text.split()[:6])
        prompt = [tokenizer.begin, *tokenizer.encode(" " + start)]
        request = Request(tuple(prompt), limit=30, sampling=Sampling(temperature=0.7), stop=tokenizer.ends)
        trace = Engine(model).run([request])[0][0]
        return " ".join(f"{start} … {tokenizer.decode(trace.tokens)}".split())

    def save_inputs(self, folder: Path) -> None:
        rows = [{k: v for k, v in asdict(q).items() if v not in ("", (), {})} for q in self.held_out]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")


class _Asked:
    """The questions of the training side, in a seeded order, endlessly."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str], part: int) -> None:
        self._questions, self._answers, self._part = questions, answers, part

    def __call__(self, index: int) -> Question:
        at = mix(index, self._part) % len(self._questions)
        return Question(f"t{at}", self._questions[at], answers=(self._answers[at],))


class _ByPosition:
    """Packed windows whose state is one number, as the world's rehearsal has: batch k is a function of k."""

    def __init__(self, documents: Documents, rows: int, window: int, seed: int) -> None:
        self._documents, self._rows, self._window, self._seed = documents, rows, window, seed
        self._at = 0

    def __iter__(self) -> _ByPosition:
        return self

    def __next__(self) -> Batch:
        batches = PackedBatches(self._documents, self._rows, self._window, mix(self._seed, self._at))
        self._at += 1
        return next(batches)

    def state(self) -> dict[str, int]:
        return {"position": self._at}

    def restore(self, state: dict[str, int]) -> None:
        self._at = int(state["position"])
