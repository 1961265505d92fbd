"""``klype chat`` as a person meets it: typed at a terminal, word by word, interrupted, ended."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

pexpect = pytest.importorskip("pexpect")
WINDOW, LONG = 96, 4096
PATIENCE_S = 240  # a loaded machine takes its time to import torch


def babbler(place: Path, window: int) -> Path:
    """A model that never ends: only a limit or the user can stop it."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.train(["Hunden drakk vann.", "Kari gikk en tur på veien."], 300, TEMPLATE)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=window)
    model = Transformer(config)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    with torch.no_grad():
        model.head.weight[list(tokenizer.ends)] = 0.0
    checkpoint.save(place, model, tokenizer, {})
    return place


def chat(folder: Path, home: Path, limit: int) -> Any:
    environ = {**os.environ, "KLYPE_HOME": str(home), "KLYPE_LANG": "en", "NO_COLOR": "1", "TERM": "dumb"}
    argv = ["-m", "klype", "chat", str(folder), "--limit", str(limit), "--temperature", "1"]
    return pexpect.spawn(
        sys.executable, argv, env=environ, encoding="utf-8", timeout=PATIENCE_S, dimensions=(40, 200), echo=False
    )


@pytest.mark.slow
def test_a_conversation_at_a_terminal(tmp_path: Path, home: Path) -> None:
    talk = chat(babbler(tmp_path / "babbler", WINDOW), home, limit=8)
    talk.expect(r"/help\s+shows\s+the\s+commands")  # the folder's length decides where the line is broken
    talk.expect_exact("you> ")
    talk.sendline("Hunden drakk?")
    talk.expect_exact("cut at 8 tokens")
    talk.expect_exact("you> ")
    talk.sendline("/temperature 0")
    talk.expect_exact("temperature is 0 now.")
    answers = []
    for _ in range(2):  # without chance, the same message has one answer
        talk.expect_exact("you> ")
        talk.sendline("/again")
        talk.expect_exact("(the answer was cut")
        answers.append(talk.before.strip())
    assert answers[0] == answers[1]
    talk.expect_exact("you> ")
    talk.sendline("/probs")
    talk.expect_exact("instead")
    talk.expect_exact("you> ")
    assert len(re.findall(r"\d+\s*%", talk.before)) >= 8
    for _ in range(8):
        talk.sendline("Kari gikk en tur på veien?")
        talk.expect_exact("you> ")
        if "are left out from here on" in " ".join(talk.before.split()):
            break
    else:
        pytest.fail("a full window was not told")
    talk.sendline("qzx " * 60)
    talk.expect(rf"does\s+not\s+fit\s+into\s+the\s+model's\s+window\s+of\s+{WINDOW}\s+tokens")  # lines wrap
    talk.expect_exact("you> ")
    talk.sendcontrol("d")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_not_the_conversation(tmp_path: Path, home: Path) -> None:
    talk = chat(babbler(tmp_path / "babbler", LONG), home, limit=LONG)
    talk.expect_exact("you> ")
    talk.sendline("Hunden drakk?")
    talk.expect(r"\S+ ?\S+")  # it streams: there is text long before the end
    talk.sendintr()
    talk.expect_exact("(stopped)")
    talk.expect_exact("you> ")
    for _ in range(PATIENCE_S // 5):  # Python's input() does not hear a Ctrl-C of the moment before it waits
        talk.send("half a")
        talk.sendintr()
        if talk.expect_exact(["(/quit or Ctrl-D ends)", pexpect.TIMEOUT], timeout=5) == 0:
            break
    else:
        pytest.fail("Ctrl-C was not heard")
    talk.expect_exact("you> ")
    talk.sendline("/quit")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0
