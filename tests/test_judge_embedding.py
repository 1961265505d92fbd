"""Sentence embeddings as a judge: a tiny encoder of transformers', saved and opened as a user's would be."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from klype.api.judging import open_judge
from klype.errors import KlypeError, UsageError
from klype.judge.embedding import EmbeddingJudge, open_embedding
from klype.values import Question
from tests.toys import clusters

transformers = pytest.importorskip("transformers")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "kari", "ola", "har", "en", "hund", "katt")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_vectors_are_of_length_one_and_do_not_depend_on_their_company(encoder: Path) -> None:
    texts = ["Kari", "Ola har en hund", "katt katt", "Kari har en katt " * 9]
    together = open_embedding(encoder)(texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4))
    alone = open_embedding(encoder)
    for text, vector in zip(texts, together, strict=True):
        assert alone([text])[0] == pytest.approx(vector, abs=1e-5)


def test_the_vector_is_the_mean_of_the_hidden_states(encoder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([[4, 6, 7, 8]])).last_hidden_state[0].mean(0)
    assert open_embedding(encoder)(["Kari har en hund"])[0] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-5)


def test_it_decides_between_its_thresholds_and_says_when_it_cannot() -> None:
    places = {"a": [1.0, 0.0], "same": [0.9, 0.19**0.5], "between": [0.7, 0.51**0.5], "other": [0.0, 1.0]}
    judge = EmbeddingJudge(lambda texts: np.array([places[text] for text in texts]), "toy")
    question = Question("q", "?", answers=("a",))
    for rule in (judge.right, lambda question, answer: judge.same(question, "a", answer)):
        assert [rule(question, text) for text in ("same", "between", "other")] == [True, None, False]
    assert judge.right(question, " ") is False
    assert judge.right(Question("q", "?"), "same") is None
    assert clusters(judge, question, ["a", "other", "same", "A."]) == [0, 1, 0, 0]
    assert judge.name == "sentence embedding toy at 0.8"
    assert judge.error_rate("same", "en") is None
    with pytest.raises(UsageError):
        EmbeddingJudge(lambda texts: np.zeros((1, 1)), "toy", alike=0.2, unlike=0.5)


def test_what_is_no_encoder_is_one_sentence(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no encoder"):
        open_embedding(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    with pytest.raises(KlypeError, match="cannot be opened"):
        open_embedding(tmp_path)


def test_an_encoder_is_a_judge_by_its_folder(encoder: Path) -> None:
    judge = open_judge(f"{encoder}@0.95")
    assert isinstance(judge, EmbeddingJudge)
    assert judge.name == f"sentence embedding {encoder.name} at 0.95"
    assert open_judge(str(encoder)).name.endswith("at 0.8")  # type: ignore[union-attr]
    assert judge.same(Question("q", "?"), "Kari har en hund", "kari HAR en hund!") is True


def test_the_packaged_encoder_is_found_and_its_module_not_imported(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    with ZipFile(package / "model.zip", "w") as packed:
        for file in encoder.iterdir():
            packed.write(file, file.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = open_judge("minilm")
    assert judge is not None
    assert judge.name == "sentence embedding minilm at 0.8"
    assert judge.same(Question("q", "?"), "Kari har en hund", "Kari har hund en") is True
