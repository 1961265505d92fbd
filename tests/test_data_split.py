"""Splits leak nothing and stay as data grows; tasks are the text's own words; baselines obey arithmetic."""

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.data.documents import blocks, is_held_out, split
from klype.data.ngram import ngram_bits_per_byte, xz_bits_per_byte
from klype.data.readers import TextDocument
from klype.data.text_tasks import language, make_tasks
from klype.errors import KlypeError


def documents(texts: list[str]) -> list[TextDocument]:
    return [TextDocument(t, "f", i) for i, t in enumerate(texts, 1)]


WORDS = st.sampled_from(["vann", "på", "stien.", "\n\n", "Kåre", "gikk", "\n", "en to tre fire. "])
TEXTS = st.lists(st.lists(WORDS, min_size=30, max_size=80).map(" ".join), min_size=1, max_size=60)


@pytest.mark.slow
@given(TEXTS)
def test_no_side_is_empty_and_no_text_is_on_both(texts: list[str]) -> None:
    made = split(documents(texts))
    train, held = ({d.text.strip() for d in side} for side in (made.train, made.held_out))
    assert train
    assert held
    assert not train & held
    assert len(train) == len(made.train)


def test_documents_stay_on_their_side_when_data_grows() -> None:
    texts = [f"Dokument {i} om vann. " * 5 for i in range(400)]
    few, many = split(documents(texts[:100])), split(documents(texts))
    assert {d.text for d in few.held_out} <= {d.text for d in many.held_out}
    assert {d.text for d in few.train} <= {d.text for d in many.train}
    assert 8 <= len(many.held_out) <= 36


def test_blocks_of_a_growing_file_stay_on_their_side() -> None:
    text = "".join(f"Avsnitt {i} handler om {'vann ' * (i % 9 + 1)}.\n\n" for i in range(12_000))
    short, long = (split(documents([t])) for t in (text[: len(text) // 2], text))
    last = {d.text for d in short.train + short.held_out} - {d.text for d in long.train + long.held_out}
    assert len(last) <= 1
    assert {d.text for d in short.held_out} - last <= {d.text for d in long.held_out}
    assert {d.text for d in short.train} - last <= {d.text for d in long.train}


@given(st.text(alphabet="ab \n.", max_size=3000), st.integers(20, 200))
def test_blocks_are_the_document(text: str, length: int) -> None:
    made = [b.text for b in blocks(TextDocument(text, "f"), length)]
    assert "".join("".join(made).split()) == "".join(text.split())
    assert all(len(b) <= 1.5 * length for b in made)


def test_a_text_too_short_to_split_is_refused() -> None:
    with pytest.raises(KlypeError, match="too short"):
        split(documents(["hei"]))


def test_tasks_are_the_texts_own_words() -> None:
    text = "Kåre gikk en tur. Hunden drakk vann. Kari bor i Bergen! Det snødde på fjellet."
    tasks = make_tasks(documents([text]), 8, seed=3)
    assert tasks == make_tasks(documents([text]), 8, seed=3)
    kinds = set()
    for task in tasks:
        question, answer = (m["content"] for m in task)
        lead, shown = re.split(r"(?<=[:?]) ", question, maxsplit=1)
        kinds.add(lead)
        assert (f"{shown} {answer}" if lead == "Fortsett teksten:" else shown.replace("___", answer)) in text
    assert kinds == {"Fortsett teksten:", "Hvilket ord mangler (___)?"}
    assert len({task[0]["content"] for task in tasks}) == len(tasks)
    with pytest.raises(KlypeError, match="no two sentences"):
        make_tasks(documents(["hei"]), 3)


def test_language() -> None:
    assert language("Jeg gikk en tur på stien og så en elg.") == "nb"
    assert language("I went for a walk on the path and saw a moose.") == "en"
    assert language("12345") == "en"


def test_a_byte_gram_is_a_distribution() -> None:
    """For a context, the probabilities of all 256 bytes sum to one; known and unknown contexts alike."""
    train = b"hunden drakk vann og hunden drakk melk og katten drakk vann " * 3
    for context in (b"hund", b"drak", b"zzzz", b"k va"):
        whole = [len(context + b"x") * ngram_bits_per_byte(train, context + bytes([b])) for b in range(256)]
        before = len(context) * ngram_bits_per_byte(train, context)
        assert np.isclose(sum(2.0 ** -(bits - before) for bits in whole), 1.0)


def test_baselines_know_noise_from_repetition() -> None:
    noise = random.Random(0).randbytes(20_000)
    assert 7.9 < ngram_bits_per_byte(noise[:10_000], noise[10_000:]) < 8.5
    assert xz_bits_per_byte(noise) > 8
    assert ngram_bits_per_byte(b"abcd" * 1000, b"abcd" * 100) < 0.1
    assert ngram_bits_per_byte(b"", b"abc") == 8


def test_many_short_documents_are_held_out_one_by_one_by_their_hash() -> None:
    """However short they are together, none waits for the others to know its side."""
    texts = [f"Dokument {i} om vann." for i in range(300)]
    sides = split(documents(texts))
    assert {d.text for d in sides.held_out} == {text for text in texts if is_held_out(text)}
