"""Recorded shapes parse; a faulty server gives one clear sentence and never a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, get_args

import httpx
import pytest

from klype.errors import KlypeError, UsageError, short_error
from klype.samplers import OWN, SAMPLERS
from klype.sources.capabilities import Capabilities, Kind, probe
from klype.sources.http_client import Budget, Call, HttpClient, RetryPolicy, retry_after
from klype.sources.remote import RemoteSource
from klype.sources.response_parsing import choices_of
from klype.sources.source import answers
from klype.values import Request, Sampling
from klype.words.sentences import Sentences

OPENAI_CHAT = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "logprobs": {
                "content": [
                    {"token": "Hello", "logprob": -0.1, "bytes": [72, 101, 108, 108, 111],
                     "top_logprobs": [{"token": "Hello", "logprob": -0.1, "bytes": [72, 101, 108, 108, 111]},
                                      {"token": "Hi", "logprob": -3.0, "bytes": [72, 105]}]},
                    {"token": "!", "logprob": -9999.0, "bytes": [33],
                     "top_logprobs": [{"token": ".", "logprob": -0.01, "bytes": [46]}]},
                ]
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}  # fmt: skip
VLLM = {
    "choices": [
        {
            "index": 0,
            "text": " Paris",
            "logprobs": {
                "text_offset": [0, 6],
                "token_logprobs": [-0.2, -0.5],
                "tokens": ["token_id:3681", "token_id:2"],
                "top_logprobs": [{"token_id:3681": -0.2, "token_id:77": -2.0}, {"token_id:2": -0.5}],
            },
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
LLAMA = {
    "choices": [
        {
            "index": 0,
            "text": " Paris",
            "logprobs": {
                "content": [
                    {"id": 3681, "token": " Paris", "bytes": [32, 80, 97, 114, 105, 115], "logprob": -0.2,
                     "top_logprobs": [{"id": 3681, "token": " Paris", "bytes": [], "logprob": -0.2}]}
                ]
            },
            "finish_reason": "length",
        }
    ],
    "usage": {"completion_tokens": 1, "prompt_tokens": 5, "total_tokens": 6},
}  # fmt: skip
MERGED = {
    "choices": [
        {
            "index": 0,
            "text": " på 😂",
            "logprobs": {
                "content": [
                    {"id": 5, "token": " på", "bytes": [32, 112, 195, 165], "logprob": -0.5, "top_logprobs": []},
                    {"id": 224, "token": " 😂", "bytes": [32, 240, 159, 152, 130], "logprob": -0.1, "top_logprobs": []},
                ]
            },
            "finish_reason": "length",
        }
    ],
    "usage": {"completion_tokens": 3, "prompt_tokens": 2, "total_tokens": 5},
}
"""llama.cpp's server: the token before the one that ends a character is not told (process_token in server.cpp)."""
LM_STUDIO = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "Hello there!", "tool_calls": []}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    "stats": {}, "system_fingerprint": "m",
}  # fmt: skip
OLLAMA = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "fp_ollama",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"},
                 "logprobs": {"content": [{"token": "Hi", "logprob": -0.3, "bytes": [72, 105],
                                           "top_logprobs": [{"token": "Hi", "logprob": -0.3, "bytes": [72, 105]},
                                                            {"token": "Yo", "logprob": -2.0, "bytes": [89, 111]}]}]}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}  # fmt: skip
OFFER = Capabilities("other", "m", ("m",), chat=True, chat_top=2)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(OPENAI_CHAT))
    change(answer)
    return answer


def source(*responses: httpx.Response | Exception, budget: Budget | None = None) -> tuple[RemoteSource, list[float]]:
    """A server that says these things in turn, then the last again."""
    queue, slept = list(responses), []

    def handle(request: httpx.Request) -> httpx.Response:
        now = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(now, Exception):
            raise now
        return httpx.Response(now.status_code, headers=now.headers, content=now.content)

    client = httpx.Client(transport=httpx.MockTransport(handle))
    retry = RetryPolicy(tries=4, client=client, sleep=slept.append)
    return RemoteSource(HttpClient("http://there/v1", "key", budget=budget, retry=retry), OFFER), slept


def ask(asked: RemoteSource, n: int = 2) -> Any:
    prompt = tuple(asked.codec.prompt([{"role": "user", "content": "Hi"}]))
    return answers(asked, [Request(prompt, n=n, limit=4)])


def test_tokens_of_a_stream_are_counted_once_though_every_event_tells_them() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        told = [{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": n}} for n in (1, 2, 3)]
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in told)
        return httpx.Response(200, text=lines + "data: [DONE]\n\n", headers={"content-type": "text/event-stream"})

    http = HttpClient("http://there/v1", retry=RetryPolicy(client=httpx.Client(transport=httpx.MockTransport(handle))))
    assert len(list(http.stream(Call("chat/completions", {})))) == 3
    assert (http.budget.prompt_tokens, http.budget.answer_tokens) == (5, 3)


def test_recorded_shapes() -> None:
    (said,) = choices_of(OPENAI_CHAT, 1, "there")
    assert said.tokens is not None
    assert [heard.key for heard in said.tokens] == [b"Hello", b"!"]
    assert math.isnan(said.tokens[1].logp)
    assert said.tokens[0].top == ((b"Hello", -0.1), (b"Hi", -3.0))
    (said,) = choices_of(VLLM, 1, "there")
    assert said.tokens is not None
    assert [(heard.key, heard.logp) for heard in said.tokens] == [(3681, -0.2), (2, -0.5)]
    (said,) = choices_of(LLAMA, 1, "there")
    assert said.tokens is not None
    assert (said.tokens[0].key, said.finish) == (3681, "length")


def test_an_untold_part_of_a_character_costs_its_own_probabilities_only() -> None:
    """The text is whole; tokens that spell it take the place of those that were not told, without probabilities."""
    spelled = {5: " på", 26525: " \ufffd", 224: "\ufffd"}

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/detokenize":
            return httpx.Response(200, json={"content": "".join(spelled[token] for token in body["tokens"])})
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": [26525, 224] if body["content"] == " 😂" else [1, 1]})
        return httpx.Response(200, json=MERGED)

    http = HttpClient("http://there/v1", retry=RetryPolicy(client=httpx.Client(transport=httpx.MockTransport(handle))))
    asked = RemoteSource(http, Capabilities("llama.cpp", "m", ("m",), completions=True, completion_top=2, ids=True))
    ((trace, _),) = answers(asked, [Request((1, 2), n=2, limit=4)])
    assert trace.tokens == (5, 26525, 224)
    assert [math.isnan(step.logp) for step in trace.steps] == [False, True, True]
    fewer = json.loads(json.dumps(MERGED))
    fewer["usage"]["completion_tokens"] = 12
    with pytest.raises(KlypeError, match="says that it wrote 12 tokens and tells 2"):
        choices_of(fewer, 1, "there")


@pytest.mark.parametrize(
    ("owner", "answer", "kind", "told"),
    [("organization_owner", LM_STUDIO, "lmstudio", "unavailable"), ("library", OLLAMA, "ollama", "whole")],
)
def test_lm_studio_and_ollama_as_documented(owner: str, answer: dict[str, Any], kind: str, told: str) -> None:
    """LM Studio answers unknown paths with status 200 and an error; Ollama takes no ids and ignores n."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(
                200, json={"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}]}
            )
        if request.url.path == "/v1/chat/completions":
            return httpx.Response(200, json=answer)
        if request.url.path == "/v1/completions":
            (choice,) = answer["choices"]
            plain = {"index": 0, "text": choice["message"]["content"], "finish_reason": "stop", "logprobs": None}
            return httpx.Response(200, json={**answer, "choices": [plain]})
        unknown = {"error": f"Unexpected endpoint or method. (POST {request.url.path})"}
        return httpx.Response(200 if owner == "organization_owner" else 404, json=unknown)

    http = HttpClient("http://there/v1", retry=RetryPolicy(client=httpx.Client(transport=httpx.MockTransport(handle))))
    offer = probe(http)
    assert (offer.kind, offer.chat, offer.completions, offer.ids, offer.n) == (kind, True, True, False, False)
    assert (offer.measures()["probability_of_drawn_tokens"], offer.measures()["tree"]) == (told, "unavailable")
    asked = RemoteSource(http, offer)
    prompt = tuple(asked.codec.prompt([{"role": "user", "content": "Hi"}]))
    ((one, two),) = answers(asked, [Request(prompt, n=2, limit=8)])
    said = answer["choices"][0]["message"]["content"]
    assert asked.codec.decode(one.tokens) == asked.codec.decode(two.tokens) == said
    assert math.isnan(one.steps[0].logp) == (told == "unavailable")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["choices"].append(a["choices"][0]), "gave 2 answers where 1"),
        (lambda a: a["choices"][0].update(index=1), "numbers its answers"),
        (lambda a: a["choices"][0].update(finish_reason=None), "without saying why"),
        (lambda a: a["usage"].update(completion_tokens=9), "says that it wrote 9 tokens and tells 2"),
        (lambda a: a["choices"][0]["logprobs"]["content"][0].update(logprob=0.5), "which cannot be"),
        (lambda a: a["choices"][0]["message"].update(content="Goodbye"), "do not spell"),
        (lambda a: a["choices"][0]["logprobs"]["content"][0].pop("token"), "cannot be read|do not spell"),
        (lambda a: a.pop("choices"), "gave no answers"),
        (lambda a: a["choices"][0].update(index=math.inf), "cannot be read"),
        (lambda a: a["choices"][0]["logprobs"]["content"][0].update(bytes=10**12), "that cannot be read"),
        (lambda a: a["choices"][0]["logprobs"]["content"][0].update(id=0, bytes=10**12), "that cannot be read"),
        (lambda a: a["choices"][0]["logprobs"]["content"][0].update(id=10**30), "that cannot be read"),
    ],
)
def test_a_contradiction_is_not_used(change: Callable[[dict[str, Any]], object], message: str) -> None:
    answer = changed(change)
    if message.startswith("cannot"):
        answer["choices"][0]["logprobs"]["content"][0].pop("bytes", None)
    asked, _ = source(httpx.Response(200, content=json.dumps(answer)))
    with pytest.raises(KlypeError, match=message):
        ask(asked)
    assert asked.http.cache._execute("SELECT count(*) FROM answers WHERE key NOT LIKE 'piece %'") == (0,)


def test_html_and_refusals_are_one_sentence() -> None:
    for response, message in (
        (httpx.Response(200, html="<h1>Welcome</h1>"), "answers with text/html"),
        (httpx.Response(200, content=b"[" * 100_000), "answers with"),
        (httpx.Response(400, content=b"[" * 100_000), "refused: status 400"),
        (httpx.Response(401, json={"error": {"message": "bad key"}}), "KLYPE_API_KEY"),
        (httpx.Response(400, json={"error": {"message": "no such thing"}}), "refused: no such thing"),
        (httpx.ConnectError("refused"), "No server answers"),
    ):
        asked, slept = source(response)
        with pytest.raises(KlypeError, match=message) as caught:
            ask(asked)
        assert "key" not in str(caught.value).replace("KLYPE_API_KEY", "").replace("wants a key", "")
        assert slept == []


@pytest.mark.parametrize(
    ("why", "nb"),
    [
        ("[Errno 111] Connection refused", "Tilkoblingen ble avvist"),
        ("[Errno -2] Name or service not known", "Navnet er ikke kjent"),
    ],
)
def test_why_no_server_answers_is_said_in_the_readers_language(why: str, nb: str) -> None:
    asked, _ = source(httpx.ConnectError(why))
    with pytest.raises(KlypeError) as caught:
        ask(asked)
    assert Sentences("nb")(caught.value.message) == f"Ingen server svarer på {asked.http.base} ({nb})."
    assert short_error(OSError(f"Got: ConnectError: {why}")) == why.partition("] ")[2]


@pytest.mark.parametrize("told", [math.nan, math.inf, "many", [5], {"a": 1}, -3, None])
def test_what_is_no_number_is_not_told(told: Any) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            row = {"id": "m", "max_model_len": told, "meta": {"n_ctx": told, "n_vocab": told}}
            return httpx.Response(200, content=json.dumps({"data": [row]}))
        usage = {**OPENAI_CHAT["usage"], "completion_tokens_details": told}  # type: ignore[dict-item]
        return httpx.Response(200, content=json.dumps({**OPENAI_CHAT, "usage": usage}))

    http = HttpClient("http://there/v1", retry=RetryPolicy(client=httpx.Client(transport=httpx.MockTransport(handle))))
    offer = probe(http)
    assert (offer.window, offer.vocabulary, offer.chat) == (0, 0, True)


def test_a_server_that_lists_nothing_is_asked_for_a_name() -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []})))
    with pytest.raises(UsageError, match="lists no model") as caught:
        probe(HttpClient("http://there/v1", retry=RetryPolicy(client=client)))
    assert caught.value.hint == "Name the one to ask: http://there/v1#MODEL."


def test_storms_are_waited_out() -> None:
    fine = httpx.Response(200, json=OPENAI_CHAT)
    asked, slept = source(httpx.Response(429, headers={"retry-after": "7"}), httpx.Response(503), fine)
    assert ask(asked, 2)[0][0].ended == "stop"
    assert 7.0 in slept
    asked, slept = source(httpx.Response(429))
    with pytest.raises(KlypeError, match="4 tries"):
        ask(asked)
    asked, _ = source(httpx.Response(429, headers={"retry-after": "9999"}))
    with pytest.raises(KlypeError, match="asks to wait 9999"):
        ask(asked)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30.0
    assert retry_after("soon", now) is None


def test_cut_streams() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "logprobs": None, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    kind = {"content-type": "text/event-stream"}

    def body(*events: Any) -> bytes:
        rows = (e if isinstance(e, str) else json.dumps(e) for e in events)
        return "".join(f"data: {row}\n\n" for row in rows).encode()

    for events in ((chunk, end, "[DONE]"), (chunk, end)):  # transformers' server leaves [DONE] out
        asked, _ = source(httpx.Response(200, headers=kind, content=body(*events)))
        (trace,) = ask(asked, 1)[0]
        assert (asked.codec.decode(trace.tokens), trace.ended) == ("Hello", "stop")
        assert math.isnan(trace.logp)
    for events, message in (
        ((chunk,), "cut its answer off"),
        ((chunk, "[DONE]"), "cut its answer off"),
        ((chunk, "{"), "not JSON"),
        ((chunk, end, chunk, "[DONE]"), "goes on after the end"),
        ((chunk, {"error": {"message": "overloaded"}}), "broke off: overloaded"),
    ):
        asked, _ = source(httpx.Response(200, headers=kind, content=body(*events)))
        with pytest.raises(KlypeError, match=message):
            ask(asked, 1)


def test_the_budget() -> None:
    assert (Budget.parse("500requests").requests, Budget.parse("2e4tokens").tokens) == (500, 20_000)
    for wrong in ("many", "-3tokens", "0requests"):
        with pytest.raises(UsageError):
            Budget.parse(wrong)
    asked, _ = source(httpx.Response(200, json=OPENAI_CHAT), budget=Budget(tokens=20))
    for sample in range(2):
        asked.http.post(Call("chat/completions", {"a": sample}))
    with pytest.raises(KlypeError, match="budget is used up"):
        asked.http.post(Call("chat/completions", {"a": 2}))
    assert asked.http.budget.asked == 2


def test_each_try_is_paid_for() -> None:
    fine = httpx.Response(200, json=OPENAI_CHAT)
    asked, _ = source(httpx.Response(503), httpx.Response(503), fine, budget=Budget(requests=3))
    asked.http.post(Call("chat/completions", {"a": 0}))
    assert asked.http.budget.asked == 3
    asked, _ = source(httpx.Response(503), budget=Budget(requests=2))
    with pytest.raises(KlypeError, match="budget is used up: 2 requests"):
        asked.http.post(Call("chat/completions", {"a": 0}))


def test_an_echo_that_contradicts_itself_is_none() -> None:
    """llama.cpp's server ignores ``echo``: it tells the one token that it wrote, and counts one."""
    told = {"id": 5, "token": "x", "bytes": [120], "logprob": -0.5,
            "top_logprobs": [{"id": 5, "token": "x", "bytes": [120], "logprob": -0.5}]}  # fmt: skip
    said = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": {"content": [told]}}

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "llamacpp"}]})
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": [1, 2]})
        if request.url.path.startswith("/v1/chat"):
            return httpx.Response(404, json={"error": {"message": "no"}})
        n = json.loads(request.content).get("n", 1)
        rows = [{**said, "index": i} for i in range(n)]
        return httpx.Response(200, json={"choices": rows, "usage": {"completion_tokens": n, "prompt_tokens": 2}})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    offer = probe(HttpClient("http://there/v1", retry=RetryPolicy(client=client)))
    assert (offer.echo, offer.ids, offer.completion_top) == (False, True, 1)


def test_a_request_for_an_echo_that_fails_is_no_answer_about_it() -> None:
    """Else a server that was busy once would be asked a request for each token of what is scored from then on."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "vllm"}]})
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": [1, 2]})
        body = json.loads(request.content)
        if body.get("echo"):
            return httpx.Response(503)
        top = {"token_id:5": -0.5} if body.get("return_tokens_as_token_ids") else {"x": -0.5}
        told = {"tokens": [*top], "token_logprobs": [-0.5], "top_logprobs": [top], "text_offset": [0]}
        rows = [{"index": i, "text": "x", "finish_reason": "length", "logprobs": told} for i in range(body.get("n", 1))]
        return httpx.Response(200, json={"choices": rows, "usage": {"completion_tokens": 1, "prompt_tokens": 2}})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    with pytest.raises(KlypeError, match="did not answer"):
        probe(HttpClient("http://there/v1", retry=RetryPolicy(tries=2, client=client, sleep=lambda _: None)))


def test_an_untold_token_is_no_end_where_the_limit_ended_the_answer() -> None:
    answer = json.loads(json.dumps(LLAMA))
    answer["usage"]["completion_tokens"] = 2
    with pytest.raises(KlypeError, match="says that it wrote 2 tokens and tells 1"):
        choices_of(answer, 1, "there")
    row = answer["choices"][0]
    row["text"] = row.get("text", "") + "\ufffd"  # … unless it came within a character
    assert len(choices_of(answer, 1, "there")) == 1


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_sampler_is_asked_for_in_the_servers_own_name_or_refused(kind: Kind) -> None:
    """Nothing is dropped in silence: what is not in the request was refused before it."""
    sent: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        choice = {"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}
        return httpx.Response(200, json={"choices": [choice]})

    http = HttpClient("http://there/v1", retry=RetryPolicy(client=httpx.Client(transport=httpx.MockTransport(handle))))
    source = RemoteSource(http, Capabilities(kind, "m", ("m",), completions=True, completion_top=2))
    prompt = tuple(source.codec.encode("Hi"))
    for name, row in SAMPLERS.items():
        value = row.slider[1] if row.slider[1] != row.off else row.slider[0]
        request = Request(prompt, n=2, limit=4, sampling=Sampling(**{name: int(value) if row.whole else value}))  # type: ignore[arg-type]
        if kind not in row.servers:
            with pytest.raises(UsageError, match=f"takes no {name}"):
                answers(source, [request])
            continue
        answers(source, [request])
        assert sent[-1][row.servers[kind] or name] == value
    with pytest.raises(UsageError, match="logit_bias") if kind not in OWN else nullcontext():
        answers(source, [Request(prompt, n=2, limit=4, sampling=Sampling(logit_bias=((5, -1.0),)))])


def test_the_names_of_samplers_are_those_that_servers_document() -> None:
    takes = {kind: {row.servers[kind] or name for name, row in SAMPLERS.items() if kind in row.servers}
             for kind in get_args(Kind)}  # fmt: skip
    openai = {"temperature", "top_p", "presence_penalty", "frequency_penalty"}
    assert takes["openai"] == takes["ollama"] == takes["other"] == openai
    assert takes["vllm"] == openai | {"top_k", "min_p", "repetition_penalty"}  # no typical_p: it would be ignored
    assert takes["llama.cpp"] == openai | {"top_k", "min_p", "typical_p", "repeat_penalty"}
    assert takes["lmstudio"] == openai | {"top_k", "repeat_penalty"}
    assert takes["klype"] == set(SAMPLERS)
