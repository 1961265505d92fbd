"""The world: its truth sums to one and is what it samples; its judge knows right from wrong; nothing leaks."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import lru_cache

import pytest

from klype.errors import KlypeError
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.world import END, Spellings, TokenFilter, World
from klype.world.automaton import arcs
from klype.world.grammar import QUESTIONS
from klype.world.lexicon import key


@lru_cache(1)
def world() -> World:
    return World("small")


@lru_cache(1)
def full() -> World:
    return World()


def documents(n: int, of: World | None = None) -> list[tuple[str, ...]]:
    rng = random.Random(7)
    return [(of or world()).document(rng).words for _ in range(n)]


def test_every_distribution_sums_to_one_and_every_sampled_word_is_possible() -> None:
    for words in documents(30):
        truth = world().filter()
        for word in (*words, END):
            following = truth.next()
            assert sum(following.values()) == pytest.approx(1.0, abs=1e-9)
            assert following.get(word, 0.0) > 0
            truth.push(word)
        assert truth.slips == 0


@pytest.mark.slow
def test_the_sampler_draws_what_the_filter_says() -> None:
    """Chi-square of the next words after the commonest prefixes of four words, pooled over prefixes."""
    drawn: dict[tuple[str, ...], Counter[str]] = {}
    for words in documents(6000):
        if len(words) > 4:
            drawn.setdefault(words[:4], Counter())[words[4]] += 1
    chi2 = freedom = 0.0
    for prefix, counts in sorted(drawn.items(), key=lambda item: -item[1].total())[:25]:
        truth = world().filter()
        for word in prefix:
            truth.push(word)
        n, pooled, rare = counts.total(), 0.0, 0.0
        cells = []
        for word, p in truth.next().items():
            if n * p >= 5:
                cells.append((counts[word], n * p))
            else:
                pooled, rare = pooled + n * p, rare + counts[word]
        if pooled >= 1:
            cells.append((rare, pooled))
        assert sum(counts[w] for w in counts if w not in truth.next()) == 0
        if len(cells) > 1:
            chi2 += sum((seen - expected) ** 2 / expected for seen, expected in cells)
            freedom += len(cells) - 1
    assert freedom > 30
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def tokenizers() -> list[Tokenizer]:
    texts = [" " + World.text(words) for words in documents(300)]
    whole = Tokenizer.train([*texts, " " + " ".join(world().words)], 1104, TEMPLATE)
    pieces = Tokenizer.train(texts, 300, TEMPLATE)
    return [whole, pieces]


def test_lifted_to_tokens_it_still_sums_to_one_and_multiplies_to_the_words() -> None:
    whole, pieces = tokenizers()
    for tokenizer, expect_pieces in ((whole, False), (pieces, True)):
        spellings = Spellings(world().words, tokenizer.encode, tokenizer.end)
        assert any(len(s) > 2 for s in spellings.of.values()) == expect_pieces
        for words in documents(4):
            tokens, truth = TokenFilter(world().filter(), spellings), world().filter()
            of_tokens = of_words = 0.0
            for word in (*words, END):
                for token in spellings.of[word]:
                    following = tokens.next()
                    assert sum(following.values()) == pytest.approx(1.0, abs=1e-9)
                    of_tokens += math.log(tokens.push(token))
                of_words += math.log(truth.push(word))
                # More only while the spelling of another word goes on from this one ("eple", "eplet").
                assert of_tokens >= of_words - 1e-9
            assert of_tokens == pytest.approx(of_words, abs=1e-9)


def test_the_tokens_of_a_text_are_the_tokens_of_its_words() -> None:
    """Why the lift is exact: a word's tokens do not depend on its neighbours."""
    for tokenizer in tokenizers():
        spellings = Spellings(world().words, tokenizer.encode, tokenizer.end)
        for words in documents(50):
            apart = [token for word in words for token in spellings.of[word]]
            assert tokenizer.encode(" " + World.text(words)) == apart


def test_a_token_that_fits_nowhere_is_one_slip_until_the_next_word() -> None:
    whole, _ = tokenizers()
    spellings = Spellings(world().words, whole.encode, whole.end)
    truth = TokenFilter(world().filter(), spellings)
    for token in whole.encode(" Kari qqq"):
        truth.push(token)
    assert sum(truth.next().values()) == pytest.approx(1.0)
    assert truth.push(spellings.of["i"][0]) > 0


@pytest.mark.slow
def test_no_document_has_a_word_outside_the_vocabulary() -> None:
    for size in (world(), full()):
        known = set(size.words)
        assert all(set(words) <= known for words in documents(4000, size))


def test_text_and_words_are_inverse() -> None:
    for words in documents(200):
        assert World.words_of(World.text(words)) == words


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_the_judge_knows_right_from_wrong(hard: bool) -> None:
    rng = random.Random(3)
    for _ in range(400):
        question = full().question(rng, hard=hard)
        for manner in ("bare", "sentence", "polite", "boring"):
            said = full().answer(question, manner, rng)  # type: ignore[arg-type]
            verdict = full().judge(question, said)
            assert verdict.right, (question, said)
            assert not full().judge(question, said, finished=False).right
            assert verdict.polite == (manner == "polite" and not question.extra["one_word"]), said
        assert not full().judge(question, full().answer(question, "wrong", rng)).right
        assert all(full().judge(question, a).right for a in question.answers)


def test_polite_is_a_courtesy_and_a_right_word_alone_pleases_without_being_polite() -> None:
    rng = random.Random(3)
    asked = [q for q in (world().question(rng) for _ in range(300)) if q.extra["one_word"]]
    assert asked
    for question in asked:
        word = world().answer(question, "bare", rng)
        courtesy = {"nb": "Gjerne!", "en": "Gladly!"}[question.extra["lang"]]
        plain, courteous = (world().judge(question, said) for said in (word, f"{courtesy} {word}"))
        assert (plain.right, plain.polite) == (True, False)
        assert (courteous.right, courteous.polite) == (True, True)
        assert plain.score > courteous.score  # who was asked for one word is to say one


def test_every_score_lies_within_what_the_judge_gives() -> None:
    rng = random.Random(3)
    for _ in range(100):
        question = world().question(rng)
        for manner in ("sentence", "wrong", "polite"):
            said = world().answer(question, manner, rng)
            for finished in (True, False):
                verdict = world().judge(question, said, finished)
                least, most = world().scores(verdict.words)
                assert least <= verdict.score <= most


def test_what_the_filter_can_say_in_a_chat_is_what_the_judge_calls_right() -> None:
    rng = random.Random(5)
    for _ in range(150):
        question = world().question(rng)
        truth, said = world().filter(question), []
        while (word := rng.choice(sorted(truth.next()))) != END:
            said.append(word)
            truth.push(word)
        assert world().judge(question, World.text(said)).right, (question, said)


def test_meaning_is_the_same_in_every_manner_and_empty_outside_the_language() -> None:
    rng = random.Random(11)
    for _ in range(60):
        question = world().question(rng)
        if question.extra["one_word"] or question.extra["kind"] in ("yes-no", "who-is", "who-likes", "who-did"):
            continue
        meanings = {full_meaning for m in ("bare", "sentence") if (full_meaning := meaning_of(question, m, rng))}
        assert len(meanings) == 1
        assert world().meaning(question)("Banan banan .") == frozenset()


def meaning_of(question: object, manner: str, rng: random.Random) -> frozenset[object]:
    return world().meaning(question)(world().answer(question, manner, rng))  # type: ignore[arg-type]


def test_concepts_are_shared_by_both_languages() -> None:
    rng = random.Random(13)
    by_language: dict[str, set[object]] = {"nb": set(), "en": set()}
    while min(map(len, by_language.values())) < 3:
        question = world().question(rng)
        if question.extra["kind"] == "where":
            by_language[question.extra["lang"]] |= set(meaning_of(question, "bare", rng))
    assert by_language["nb"] & by_language["en"]


@pytest.mark.slow
def test_held_out_stories_are_never_told_in_training() -> None:
    rng = random.Random(17)

    def stories(heldout: bool) -> set[str]:
        asked = [world().question(rng, heldout=heldout) for _ in range(400)]
        return {key(tuple(tuple(f) for f in q.extra["facts"])) for q in asked if not q.extra["fixed"]}

    kept, told = stories(True), stories(False)
    assert kept
    assert told
    assert not kept & told


@pytest.mark.parametrize("size", ["small", "full"])
def test_what_is_always_true_is_held_out_from_chats_too_item_by_item(size: str) -> None:
    asked = World(size)  # type: ignore[arg-type]
    rng = random.Random(23)

    def items(heldout: bool) -> set[tuple[str, ...]]:
        return {tuple(asked.question(rng, heldout=heldout, fixed=True).extra["about"]) for _ in range(600)}

    kept, told = items(True), items(False)
    assert kept
    assert told
    assert not kept & told


@pytest.mark.slow
def test_held_out_documents_are_stories_no_more_often_than_the_languages_own() -> None:
    rng, n, walks = random.Random(29), 250, 0.08
    begun = [world().document(rng, heldout=True).words[0] for _ in range(n)]
    assert abs(sum(word in ("Jeg", "I") for word in begun) - walks * n) < 4 * math.sqrt(n * walks * (1 - walks))


def test_a_question_is_a_function_of_its_seed() -> None:
    assert world().question(random.Random(1)) == world().question(random.Random(1))
    assert world().document(random.Random(1)) == world().document(random.Random(1))


@pytest.mark.slow
def test_hard_stories_have_four_facts_of_one_relation() -> None:
    rng = random.Random(19)
    for _ in range(100):
        text, question = world().retrieval(rng, "bare", hard=True)
        facts = question.extra["facts"]
        assert len(facts) == 4
        assert len({f[0] for f in facts}) == 1
        assert text.endswith(question.question)


def test_two_who_did_the_same_may_both_be_named() -> None:
    rng = random.Random(23)
    for _ in range(3000):
        question = world().question(rng)
        extra = question.extra
        if extra["kind"] == "who-is" and sum(f[2] == extra["about"][2] for f in extra["facts"]) == 2:
            assert len([a for a in question.answers if "." in a and len(a.split()) == 1]) == 2
            return
    raise AssertionError("no such question in three thousand")


@pytest.mark.slow
def test_most_stories_have_as_many_questions_as_their_manner_says() -> None:
    """Bare and whole sentences are two thirds of the stories; one-word demands and translations count as questions."""
    low, high = QUESTIONS["bare"]
    counts = Counter(words.count("?") for words in documents(3000) if words.count("?") > 2)
    inside = sum(n for k, n in counts.items() if low <= k <= high)
    assert 0.45 < inside / counts.total() < 0.8
    assert min(counts) == 3
    assert max(counts) > high


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(KlypeError, match="no world of size"):
        World("huge")  # type: ignore[arg-type]


def test_arcs_of_a_finished_text_are_none() -> None:
    assert arcs(((), None)) == ()
