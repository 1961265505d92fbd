"""Laws of the tokenizer: any text comes back, no text becomes a control token, training is a function of its input."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klype.errors import KlypeError, UsageError
from klype.text.tokenizer import LONG_TEXT, Tokenizer

SENTENCES = [
    "Jeg gikk en tur på stien.",
    "Kåre spiste blåbær, ærfugl og økologisk brød!",
    "Hunden drakk vann.",
]
WHOLE = Tokenizer.train(SENTENCES, 2000)
MERGED = Tokenizer.train(SENTENCES * 3, 300)
TOKENIZERS = st.sampled_from([WHOLE, MERGED])
HOSTILE = st.sampled_from([*Tokenizer.CONTROL, "<|end|", "|>", "</s>", "\x00", "\r\n", " ", "\u200d", "😀", "å"])
TEXTS = st.lists(st.text() | HOSTILE | st.sampled_from(SENTENCES), max_size=6).map("".join)


@given(TOKENIZERS, TEXTS)
def test_any_text_comes_back_and_holds_no_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= len(Tokenizer.CONTROL) for i in ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(TOKENIZERS, TEXTS)
def test_offsets_cover_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert {at for a, b in offsets for at in range(a, b)} == set(range(len(text)))


@given(st.lists(TEXTS, max_size=4))
def test_many_documents_at_once_are_each_alone(texts: list[str]) -> None:
    assert MERGED.encode_documents(texts) == [MERGED.encode_document(t) for t in texts]


@settings(max_examples=15)
@given(TOKENIZERS, st.lists(st.sampled_from([" vann", " Den", " hunden.", " å 🫐", " xyz"]), min_size=1, max_size=9))
def test_a_long_text_is_cut_as_a_short_one(tokenizer: Tokenizer, words: list[str]) -> None:
    text, times = "".join(words), 1 + LONG_TEXT // len(words)
    ids, offsets = tokenizer.encode_with_offsets(text * times)
    assert ids == tokenizer.encode(text * times) == tokenizer.encode(text) * times
    assert {at for a, b in offsets for at in range(a, b)} == set(range(len(text) * times))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encode", "encode_beginning", "encode_answer"])
def test_while_a_long_text_is_cut_other_threads_go_on(name: str) -> None:
    """Where the library holds Python's lock, this thread would see one or two of its turns."""
    text, turns = " ".join(SENTENCES) * 10_000, 0
    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(getattr(MERGED, name), text)
        while not cutting.done():
            time.sleep(0.001)
            turns += 1
    assert MERGED.decode(cutting.result()).strip() == text.strip()
    assert turns >= 20


def test_every_word_has_a_token_of_its_own_when_all_fit() -> None:
    words = WHOLE.encode_document(SENTENCES[1])
    assert [WHOLE.decode([i]) for i in words[1:7]] == [" Kåre", " spiste", " blåbær", ",", " ærfugl", " og"]
    assert words[0] == WHOLE.begin == 1
    assert words[-1] == WHOLE.end == 2
    assert WHOLE.encode("Hunden") != WHOLE.encode(" Hunden") == [WHOLE.encode_document("Hunden")[1]]


def test_ids_are_dense_and_the_size_is_kept() -> None:
    assert MERGED.vocab_size == MERGED.asked == 300
    assert sorted(WHOLE._definition["model"]["vocab"].values()) == list(range(WHOLE.vocab_size))
    assert WHOLE.vocab_size < WHOLE.asked == 2000


def test_the_same_text_gives_the_same_vocabulary() -> None:
    again = Tokenizer.train(iter(SENTENCES * 3), 300)
    assert again._definition == MERGED._definition


def test_a_saved_tokenizer_is_the_same(tmp_path) -> None:
    MERGED.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(SENTENCES[1]) == MERGED.encode(SENTENCES[1])
    names = ("pad", "begin", "end", "user", "assistant", "system", "vocab_size", "ends", "template")
    assert [getattr(loaded, n) for n in names] == [getattr(MERGED, n) for n in names]


@pytest.mark.parametrize("text", ["\ud800", "abc\udfff"])
def test_half_a_character_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(KlypeError, match=f"at character {len(text) - 1}"):
        MERGED.encode(text)


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(UsageError, match="262"):
        Tokenizer.train(SENTENCES, 261)
    with pytest.raises(KlypeError, match="no text"):
        Tokenizer.train(["", ""], 300)


def test_a_missing_or_broken_file_is_named(tmp_path) -> None:
    with pytest.raises(KlypeError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(KlypeError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


def of_another_maker(folder: Path, begin: int) -> Path:
    """A tokenizer that begins every text with a token of this id."""
    definition = json.loads(json.dumps(MERGED._definition).replace("<|begin|>", "<s>"))
    known = {"<s>": {"id": "<s>", "ids": [begin], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}
    (folder / "tokenizer.json").write_text(json.dumps({**definition, "post_processor": post}))
    return folder


def test_a_beginning_that_is_no_token_is_refused(tmp_path: Path) -> None:
    assert Tokenizer.load(of_another_maker(tmp_path, 1)).lead == [1]
    with pytest.raises(KlypeError, match="begins a text with the token 999,999"):
        Tokenizer.load(of_another_maker(tmp_path, 999_999))


def test_a_tokenizer_is_opened_where_nothing_can_be_remembered_of_it(tmp_path: Path) -> None:
    full = tmp_path / "a file, no folder"
    full.write_text("")
    assert Tokenizer.load(of_another_maker(tmp_path, 1), full).lead == [1]
    Tokenizer.load(tmp_path, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1


def test_other_makers_special_tokens_are_found(tmp_path) -> None:
    """Names in special_tokens_map or config, several end tokens in generation_config, added tokens that are no text."""
    definition = json.loads(json.dumps(MERGED._definition).replace("<|end|>", "</s>").replace("<|user|>", "<think>"))
    definition["added_tokens"][3]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "chat_template": "x"}')
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.begin, loaded.end, loaded.pad, loaded.ends, loaded.user) == (1, 2, 2, (2, 4), -1)
    assert loaded.template == "x"
    assert not set(loaded.encode("</s><think>")) & set(range(6))
    assert loaded.decode([3, 2]) == "<think>"


@pytest.mark.soak
def test_a_hundred_thousand_texts_come_back() -> None:
    """Random code points, control tokens' spellings and bytes' neighbours; none gives a control token."""
    rng = random.Random(0)
    spellings = [*Tokenizer.CONTROL, "<|", "|>", "\u200d", "\x00", " ", "\r\n"]
    letters = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x110000))]
    for _ in range(100_000):
        parts = [rng.choice(spellings) if rng.random() < 0.3 else rng.choice(letters) for _ in range(rng.randrange(12))]
        text = "".join(parts)
        ids = MERGED.encode(text)
        assert MERGED.decode(ids) == text
        assert min(ids, default=6) >= 6
