"""How a text begins: by klype's own tokenizer with <|begin|> and a space, by others as their files say.

Ids are those of transformers, for plain text and for conversations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from klype.sources.source import NativeCodec
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from tests.serve_toys import post
from tests.test_sources_remote import InProcess

transformers = pytest.importorskip("transformers")

ENGLISH = (
    "The capital of Norway is", "Once upon a time, there was a fox.", "I have 1234 apples, don't you?", "x", "A",
    "def f(x):\n    return x + 1", "Dear Sir or Madam,\n\nthank you", "3.14159 is about 22/7", "It's 5 o'clock.",
    "HELLO WORLD", "snake_case and camelCase", "a  b   c", "tabs\tand\ttabs", "e-mail: a@b.example", "(see [1], p. 4)",
    "“quoted” – dash — ellipsis…", "What is 2 + 2?", "1, 2, 3,", "Yes", "no", "https://example.com/?q=1&r=2", "#tag",
    "The quick brown fox jumps over the lazy dog.", "ALL CAPS, then lower", "newline at the end\n", "$100 or £80?",
)  # fmt: skip
NORWEGIAN = (
    "Hovedstaden i Norge er", "Kåre spiste blåbær, ærfugl og økologisk brød!", "Jeg gikk en tur på stien.", "Å nei!",
    "Hva heter hovedstaden i Frankrike?", "Det var en gang en rev.", "Hunden drakk vann.", "æ ø å Æ Ø Å",
    "Først, så, til slutt", "Klokka er 12.30.", "«Sitat» på norsk", "Blåbærsyltetøy",
    "Vi møtes kl. 9 på Torgallmenningen.", "Nei, takk", "bare små bokstaver", "Sámegiella", "Fem, fire, tre – to, én",
    "100 kr", "Er du der?", "Ja.", "På norsk: «å være»", "ÆRLIG TALT", "d'Artagnan og Per",
)  # fmt: skip
STRANGE = (
    "😀 naïve café",
    "日本語のテキスト",
    "Привет, мир",
    "مرحبا",
    "e\u0301 is é",
    "zero\u200bwidth",
    "a\u00a0b",
    "ﬁ",
)
TEXTS = (*ENGLISH, *NORWEGIAN, *STRANGE)
LEADING = (" a space first", "\n\na line first", "  two")
NUMERALS = "½ ² 1234"  # transformers rebuilds SmolLM2's tokenizer from GGUF without its cut at every numeral
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(kind: str) -> Backend:
    backend = Backend(models.BPE())
    split = [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(False) if kind.startswith("gpt2") else pre_tokenizers.Sequence(split)
    )  # type: ignore[arg-type]
    backend.normalizer = normalizers.NFC() if kind == "qwen" else None  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if kind.startswith("llama3"):
        parts = "<|endoftext|> $A <|im_end|>" if kind == "llama3-ends" else "<|endoftext|> $A"
        begin = processors.TemplateProcessing(parts, special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)])
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return backend


def sentence_piece(kind: str) -> Backend:
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if kind == "llama2-legacy":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False},
    "gpt2-begun": {"add_bos_token": True},
    "qwen": {"add_bos_token": False, "bos_token": None},
    "llama3": {},
    "llama3-told-not": {"add_bos_token": False},
    "llama3-ends": {},
    "llama2": {"add_bos_token": True, "add_eos_token": False},
    "llama2-legacy": {},
    "llama2-told-not": {"add_bos_token": False},
}


def written(folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    pieces = kind.startswith("llama2")
    backend = sentence_piece(kind) if pieces else byte_level(kind)
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if not t["content"].startswith("<0x")]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    names = ("<s>", "</s>", INST) if pieces else ("<|endoftext|>", "<|im_end|>", CHATML)
    about = dict(zip(("bos_token", "eos_token", "chat_template"), names, strict=True))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **about, **KINDS[kind]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def alike(ours: NativeCodec, theirs: Any, texts: tuple[str, ...]) -> None:
    """Every text, plain and as a user's message, also behind an answer. A token at the end is not for a beginning."""
    ends = len(theirs("a")["input_ids"]) > len(theirs("a", add_special_tokens=False)["input_ids"]) + len(
        ours.encode("")
    )
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"][: -1 if ends else None], text
        talk = [{"role": "user", "content": text}]
        for messages in (talk, [*talk, {"role": "assistant", "content": "Ja, Oslo."}, *talk]):
            said = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert ours.prompt(messages) == theirs(said, add_special_tokens=False)["input_ids"], text


def codec_of(tokenizer: Tokenizer) -> NativeCodec:
    return NativeCodec(tokenizer, Chat(tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    assert len(TEXTS) >= 50
    tokenizer = Tokenizer.load(written(tmp_path / "theirs", kind))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    alike(codec_of(tokenizer), theirs, (*TEXTS, *LEADING, NUMERALS))
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert [again.encode_beginning(text) for text in TEXTS] == [tokenizer.encode_beginning(text) for text in TEXTS]


@pytest.mark.slow
def test_ids_are_those_of_transformers_for_a_gguf_file(smollm: Path) -> None:
    pytest.importorskip("gguf")
    from klype.model.gguf import open_gguf

    file = smollm
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    alike(codec_of(open_gguf(file).tokenizer), theirs, (*TEXTS, *LEADING))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_goes_on_where_the_text_stopped(tmp_path: Path, kind: str) -> None:
    """Two parts of a text, cut before a word's own space, are the whole: nothing comes between them."""
    tokenizer = Tokenizer.load(written(tmp_path, kind))
    for text in TEXTS:
        first, space, rest = text.partition(" ")
        if space and rest[:1].isalpha():
            whole = tokenizer.encode_beginning(text)
            parts = [*tokenizer.encode_beginning(first), *tokenizer.encode_answer(f" {rest}")]
            assert tokenizer.decode(parts) == tokenizer.decode(whole), text
            if not kind.startswith("llama2"):  # SentencePiece's merges reach across a space
                assert parts == whole, text
    for text in ("Oslo", " Oslo"):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_answer(text))) == text.encode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen", "llama2", "llama3"])
def test_a_given_answer_is_spelled_as_the_template_spells_it(tmp_path: Path, kind: str) -> None:
    """Prompt and answer are the beginning of the conversation with that answer; its own end is the last token."""
    folder = written(tmp_path / kind, kind)
    codec = codec_of(Tokenizer.load(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[::6]:
        talk = [{"role": "user", "content": "Hva heter hovedstaden?"}, {"role": "assistant", "content": text}]
        whole = theirs(theirs.apply_chat_template(talk, tokenize=False), add_special_tokens=False)["input_ids"]
        ids = [*codec.prompt(talk[:1]), *codec.answer(talk[:1], text)]
        assert ids == whole[: len(ids)], text
        assert codec.tokenizer.name(ids[-1]) in ("</s>", "<|im_end|>")
        assert codec.decode(codec.answer(talk[:1], text)[:-1]) == text


@pytest.mark.slow
def test_a_given_answer_to_plain_text_is_spelled_as_the_model_would(folder: Path) -> None:
    """Of the two spellings, with a space and without, the more probable one; only where none of them is said."""
    import klype

    model = klype.load(folder)
    for text, answer in (("Hovedstaden i Norge er", "Oslo"), ("Hva er 2 + 2?", "fire"), ("Nor", "ge"), ("x", "y")):
        prompt = tuple(model.opened.encode_text(text))
        spelled = [[*model.opened.encode_answer(said), 2] for said in (answer, f" {answer}")]
        likely = [sum(step.logp for step in trace.steps) for trace in model.opened.source.score([prompt] * 2, spelled)]
        assert model.answer_tokens(text, answer, raw=True) == spelled[likely[1] > likely[0]]
        assert model.score(text, answer, raw=True).text == answer
    for text, answer in (("Norge er ", "Oslo"), ("Norge er", " Oslo"), ("Norge er", "\nOslo")):
        assert model.answer_tokens(text, answer, raw=True) == [*model.opened.encode_answer(answer), 2]


def test_klypes_own_begins_with_a_space_as_ever() -> None:
    own = Tokenizer.train(TEXTS, 600, TEMPLATE)
    assert own.lead == [own.begin] == [1]
    assert own.encode_beginning("Hunden") == [1, *own.encode(" Hunden")]
    assert own.encode_document("Hunden") == [1, *own.encode(" Hunden"), 2] == own.encode_documents(["Hunden"])[0]
    assert own.encode_answer("Oslo") == own.encode_answer(" Oslo ") == own.encode(" Oslo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another maker that klype computes itself: of Qwen's kind, nothing begins a text."""
    to = written(tmp_path_factory.mktemp("model") / "qwen", "qwen")
    config = transformers.LlamaConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=256, initializer_range=0.4, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(to)
    return to


@pytest.mark.slow
def test_every_way_to_a_model_reads_the_same(folder: Path) -> None:
    """--raw, a given answer, what decoders put together, the server's completions, and a client of that server."""
    from klype.cli.ask_methods import statement
    from klype.serve.app import app
    from klype.serve.guard import ServeSettings
    from klype.serve.served_model import ServedModel
    from klype.sources.capabilities import probe
    from klype.sources.http_client import HttpClient, RetryPolicy
    from klype.sources.opening import open_model
    from klype.sources.remote import RemoteSource

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    opened = open_model(str(folder))
    server = app([ServedModel("qwen", opened.source)], ServeSettings(completion_top=5))  # type: ignore[arg-type]
    wire = HttpClient("http://localhost/v1", retry=RetryPolicy(client=httpx.Client(transport=InProcess(server))))
    remote = RemoteSource(wire, probe(wire))
    for text in TEXTS[::5]:
        ids = theirs(text)["input_ids"]
        assert opened.user_prompt(text, True) == ids == remote.codec.encode(text)
        assert opened.encode_answer(text) == ids == remote.codec.encode_answer(text)
        first, then = statement(opened, "Hunden drakk.", text)
        assert [*first, *then] == theirs(f"Hunden drakk. {text.strip()}")["input_ids"]
    body = {"prompt": TEXTS[0], "max_tokens": 1, "echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
    told = post(server, "/v1/completions", json={"model": "qwen", **body}).json()["choices"][0]["logprobs"]
    assert told["tokens"][:-1] == [f"token_id:{i}" for i in theirs(TEXTS[0])["input_ids"]]
    assert told["text_offset"][0] == 0


@pytest.mark.slow
def test_the_next_token_is_the_one_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from klype.cli import exits
    from klype.cli.main import call

    assert exits.exit_code(call, ["next", str(folder), "Hovedstaden i Norge er", "--raw", "--json", "--top", "5"]) == 0
    ours = {row["id"]: row["p"] for row in json.loads(capsys.readouterr().out)["tokens"]}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("Hovedstaden i Norge er", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        p_V = model(ids).logits[0, -1].softmax(-1)
    assert ours == pytest.approx({int(i): float(p_V[i]) for i in p_V.topk(5).indices}, abs=1e-5)
