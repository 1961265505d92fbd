"""Decoders through klype's own server, in process, decide as they do on the same model here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from klype.answers import decoders
from klype.answers.decoder_requests import Check, DecodeQuestion
from klype.answers.decoders import decide
from klype.sources.capabilities import probe
from klype.sources.http_client import HttpClient, RetryPolicy
from klype.sources.remote import RemoteSource
from tests.test_sources_remote import ASKED, InProcess, own, served


@pytest.fixture(scope="module")
def remote() -> RemoteSource:
    pytest.importorskip("fastapi")
    client = httpx.Client(transport=InProcess(served()))
    wire = HttpClient("http://localhost/v1", retry=RetryPolicy(client=client))
    return RemoteSource(wire, probe(wire))


@pytest.mark.parametrize("name", ["greedy", "sample", "consensus", "search", "backtrack", "verify-likelihood"])
def test_remote_decides_as_native(remote: RemoteSource, name: str) -> None:
    native = own()

    def asked(codec: Any) -> list[DecodeQuestion]:
        prompt = tuple(codec.prompt(ASKED))
        known: dict[str, Check] = {"likelihood": decoders.likelihood_check}
        return [
            DecodeQuestion(prompt, lambda text: text.lower(), 8, tuple(codec.stop), seed, checks=known)
            for seed in (0, 3)
        ]

    theirs, mine = (decide(source, asked(source.codec), name, 4.0) for source in (remote, native))
    for a, b in zip(theirs, mine, strict=True):
        assert a.choice.chosen.tokens == b.choice.chosen.tokens
        assert (a.passes, a.positions, a.plain_passes) == (b.passes, b.positions, b.plain_passes)
        assert a.choice.chosen.logp == pytest.approx(b.choice.chosen.logp, abs=1e-4)
        assert a.passes <= 4 * a.plain_passes
