"""An answer does not depend on its company: batched = alone, joined late = joined early, forked = fresh."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klype.device import WAKING
from klype.engine.engine import Engine
from klype.engine.prefix_cache import CachedPrefix, CachedPrompt
from klype.engine.runner import CHUNK, SPARE, NativeRunner
from klype.engine.sampling import draw, noise, shape
from klype.errors import KlypeError, UsageError
from klype.model.attention import WRITTEN
from klype.model.cache import Cache, Indices
from klype.model.transformer import Transformer
from klype.sources.source import EngineSource, answers
from klype.values import Request, Sampling, Trace
from tests.toy_sources import ToyCodec
from tests.toys import SHAPES, toy


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def letters(token: int) -> bytes:
    return bytes([97 + token])


def engine(shape_name: str = "conv", **options: Any) -> Engine:
    return Engine(toy(shape_name), decode_bytes=letters, name="toy", **options)


@torch.inference_mode()
def plainly(model: Transformer, request: Request, sample: int) -> tuple[list[int], str]:
    """The definition: recompute everything for every token, one row, no cache."""
    text, answer, said = list(request.prompt), [], b""
    while True:
        logits = model(torch.tensor([text]))[:, -1]
        u = noise(request.seed, np.array([sample]), np.array([len(text)]))
        token = int(draw(shape(logits, request.sampling), u))
        text.append(token)
        answer.append(token)
        said += letters(token)
        if token in request.stop or any(stop.encode() in said for stop in request.stop_texts):
            return answer, "stop"
        if len(answer) == request.limit or len(text) > model.config.window:
            return answer, "length"


SAMPLINGS = st.sampled_from([Sampling(), Sampling(0.0), Sampling(0.7, top_k=5), Sampling(1.5, top_p=0.8)])
PROMPTS = st.lists(st.integers(0, 22), min_size=1, max_size=20).map(tuple)
REQUESTS = st.builds(
    Request,
    prompt=PROMPTS,
    n=st.integers(1, 4),
    limit=st.integers(1, 9),
    sampling=SAMPLINGS,
    seed=st.integers(-5, 5),
    stop=st.lists(st.integers(0, 22), max_size=3).map(tuple),
    stop_texts=st.sampled_from([(), ("ab",), ("c", "xyz")]),
    first_sample=st.integers(0, 3),
)


@pytest.mark.parametrize("name", SHAPES)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5), max_batch=st.sampled_from([1, 3, 64]))
@settings(max_examples=8, deadline=None)
def test_every_answer_is_what_plain_recomputation_gives(name: str, requests: list[Request], max_batch: int) -> None:
    model = toy(name)
    answers = Engine(model, decode_bytes=letters, max_batch=max_batch).run(requests)
    for request, traces in zip(requests, answers, strict=True):
        assert [trace.sample for trace in traces] == list(range(request.first_sample, request.first_sample + request.n))
        for trace in traces:
            assert (list(trace.tokens), trace.ended) == plainly(model, request, trace.sample)


@pytest.mark.slow
@given(requests=st.lists(REQUESTS, min_size=2, max_size=5), waits=st.lists(st.integers(0, 4), min_size=5, max_size=5))
@settings(max_examples=15, deadline=None)
def test_joined_late_equals_joined_early(requests: list[Request], waits: list[int]) -> None:
    early = engine().run(requests)
    late, ids, told = engine(), [], {}
    for request, wait in zip(requests, waits, strict=False):
        ids.append(late.add(request))
        for _ in range(wait):
            collect(late, told)
    while late.busy:
        collect(late, told)
    for key, traces in zip(ids, early, strict=True):
        for trace in traces:
            tokens, final = told[key, trace.sample]
            assert tuple(tokens) == trace.tokens == final.tokens
            assert final.ended == trace.ended


def collect(running: Engine, told: dict[tuple[int, int], tuple[list[int], Any]]) -> None:
    for event in running.step():
        tokens, final = told.setdefault((event.request, event.sample), ([], None))
        assert final is None, "nothing comes after the end"
        tokens.append(event.step.token)
        told[event.request, event.sample] = (tokens, event.trace)


def test_forked_equals_fresh_and_goes_on_where_it_was() -> None:
    """A continuation from the middle of an answer, with the same seed and sample, is the rest of that answer."""
    one = engine()
    request = Request(tuple(range(20)), n=4, limit=12, seed=3)
    (straight,) = one.run([request])
    forks = [
        Request((*request.prompt, *trace.tokens[:cut]), limit=12 - cut, seed=3, first_sample=trace.sample)
        for trace in straight
        for cut in (1, 5, 11)
    ]
    again = one.run(forks)
    fresh = [engine().run([fork])[0][0] for fork in forks]
    whole = [trace.tokens[cut:] for trace in straight for cut in (1, 5, 11)]
    assert [traces[0].tokens for traces in again] == whole == [trace.tokens for trace in fresh]


def test_a_prompt_shared_by_many_is_computed_once() -> None:
    one, prompt = engine(), tuple(i % 23 for i in range(40))
    one.run([Request(prompt, n=50, limit=3), Request(prompt[:30], n=5, limit=3), Request(prompt, limit=2, seed=9)])
    assert one.native.tokens == 40
    one.run([Request((*prompt, 5, 6), n=3, limit=2)])
    assert one.native.tokens == 42


def test_a_common_beginning_is_computed_once() -> None:
    one, start = engine(), tuple(i % 23 for i in range(40))
    prompts = [(*start, token, token) for token in range(10)]
    got = one.next(prompts)
    assert one.native.tokens == 40 + 10 * 2
    for prompt, distribution in zip(prompts, got, strict=True):
        (alone,) = engine().next([prompt])
        for token in range(23):
            assert distribution.p(token) == pytest.approx(alone.p(token), abs=1e-5)


def test_memory_of_read_prompts_is_bounded() -> None:
    one = engine()
    one.native.index.budget = 200_000
    for i in range(40):
        one.next([tuple((i + j) % 23 for j in range(30)), tuple((i * j) % 23 for j in range(30))])
    recent = [texts for texts, _ in one.native.index._recent]
    live = {id(text.store): text.store for texts in recent for text in texts}
    assert 0 < sum(shelf.nbytes for shelf in live.values()) <= one.native.index.nbytes <= 200_000
    assert {id(text.store) for text in one.native.index._known.values()} <= set(live)


def test_rows_leave_at_once_and_the_rest_of_a_large_request_takes_their_seats() -> None:
    one = engine(max_batch=4)
    one.add(Request((1, 2), n=10, limit=50, stop=(3, 4, 5, 6, 7)))
    seats = []
    while one.busy:
        events = one.step()
        seats.append(len(events))
        assert one.runner._cache.rows == len(events) - sum(event.trace is not None for event in events)
    assert max(seats) == 4
    assert seats[:3] == [4, 4, 4]


def test_score_equals_what_generation_recorded() -> None:
    one = engine("grouped")
    requests = [
        Request((1, 2, 3), n=5, limit=9, stop=(4,)),
        Request((7,), n=3, limit=4, sampling=Sampling(0.5), top=-1),
    ]
    traces = [trace for answers in one.run(requests) for trace in answers]
    scored = engine("grouped").score([t.prompt for t in traces], [t.tokens for t in traces], top=-1)
    for trace, forced in zip(traces, scored, strict=True):
        assert forced.tokens == trace.tokens
        np.testing.assert_allclose([s.logp for s in forced.steps], [s.logp for s in trace.steps], atol=2e-5)
        assert forced.logp == pytest.approx(trace.logp, abs=1e-4)
        for a, b in zip(forced.steps, trace.steps, strict=True):
            assert a.source == "forced"
            assert a.distribution is not None
            assert a.distribution.p(a.token) == pytest.approx(math.exp(a.logp), rel=1e-4)
            if b.distribution is not None:
                assert b.distribution.p(3) == pytest.approx(a.distribution.p(3) or 0, abs=1e-5)
    assert one.score([(1, 2)], [()])[0].steps == ()


def test_logp_is_the_models_and_drawn_logp_that_of_the_distribution_drawn_from() -> None:
    one = engine()
    sampling = Sampling(0.6, top_k=4)
    (trace,) = one.run([Request((1, 2, 3), limit=6, sampling=sampling, top=-1)])[0]
    for step in trace.steps:
        assert step.distribution is not None
        assert math.exp(step.logp) == pytest.approx(step.distribution.p(step.token), rel=1e-4)
        weights = np.exp(np.asarray(step.distribution.logp[:4], np.float64) / 0.6)
        place = list(step.distribution.ids[:4]).index(step.token)
        assert math.exp(step.sampling_logprob) == pytest.approx(weights[place] / weights.sum(), rel=1e-4)


def test_penalties_count_the_prompt_and_the_answer() -> None:
    never_again = Sampling(0.0, frequency_penalty=1e6)
    (trace,) = engine().run([Request((1, 2, 3), limit=23, sampling=never_again)])[0]
    assert sorted(trace.tokens) == list(range(23))
    (other,) = engine().run([Request((1, 2, 3), limit=15, sampling=Sampling(0.0, repetition_penalty=1e6))])[0]
    assert not {1, 2, 3} & set(other.tokens[:10])


def test_partial_distributions_say_what_is_left_out() -> None:
    one = engine()
    (part,), (whole,) = one.next([(1, 2)], top=5), one.next([(1, 2)])
    assert whole.whole
    assert len(part.ids) == 5
    assert part.rest == pytest.approx(1 - np.exp(part.logp.astype(float)).sum(), abs=1e-6)
    assert list(part.ids) == list(whole.ids[:5])
    assert np.exp(whole.logp.astype(float)).sum() == pytest.approx(1, abs=1e-5)


def test_a_full_window_ends_the_answer() -> None:
    one = engine()
    (trace,) = one.run([Request(tuple([5] * 60), limit=100)])[0]
    assert (len(trace.steps), trace.ended) == (5, "length")  # the fifth follows the 64th token
    (last,) = one.run([Request(tuple([5] * 64), limit=100)])[0]
    assert len(last.steps) == 1


def test_cancelling_frees_the_seats_and_returns_what_was_said() -> None:
    one = engine(max_batch=3)
    first, second = one.add(Request((1,), n=5, limit=20)), one.add(Request((2,), n=1, limit=3))
    one.step()
    one.step()
    partial = one.cancel(first)
    assert [(len(t.steps), t.ended) for t in partial] == [(2, "cancelled")] * 3
    left: list[Trace | None] = []
    while one.busy:
        left += [event.trace for event in one.step() if event.request == second]
    (alone,) = engine().run([Request((2,), n=1, limit=3)])[0]
    assert left[-1] is not None
    assert left[-1].tokens == alone.tokens
    assert one.cancel(first) == []
    assert one.step() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    moments=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=6, max_size=6),
    max_batch=st.sampled_from([3, 64]),
)
@settings(max_examples=8, deadline=None)
def test_who_leaves_takes_nothing_from_those_that_stay(
    name: str, requests: list[Request], moments: list[tuple[int, int]], max_batch: int
) -> None:
    """Each comes and goes when it likes: queued, in the middle of its samples, or ended long ago."""
    one = engine(name, max_batch=max_batch)
    found: dict[int, list[Trace]] = {place: [] for place in range(len(requests))}
    ids: dict[int, int] = {}
    left: set[int] = set()
    for now in range(200):
        for place, (comes, stays) in zip(found, moments, strict=False):
            if now == comes:
                ids[one.add(requests[place])] = place
            elif now == comes + stays and place % 2:
                (number,) = (number for number, owner in ids.items() if owner == place)
                left.add(place)
                found[place] += one.cancel(number)
        for event in one.step():
            assert ids[event.request] not in left
            if event.trace is not None:
                found[ids[event.request]].append(event.trace)
        if now > 20 and not one.busy:
            break
    assert not one.busy
    for place, request in enumerate(requests):
        alone = engine(name).run([request])[0]
        mine = sorted(found[place], key=lambda trace: trace.sample)
        if place not in left:
            assert [(t.sample, t.tokens, t.ended) for t in mine] == [(t.sample, t.tokens, t.ended) for t in alone]
        for trace in mine:
            whole = next(t for t in alone if t.sample == trace.sample)
            assert trace.tokens == whole.tokens[: len(trace.tokens)]


def test_events_that_nobody_waits_for_end_the_work() -> None:
    """A generator is closed wherever its owner was: none of its requests goes on."""
    one = engine()
    source = EngineSource(one, ToyCodec((0,), tuple("abcdefghijklmnopqrstuvw")))
    requests = [Request((token,), n=2, limit=9) for token in (1, 2, 3)]
    for taken in (1, 5):
        events = source.generate(requests)
        for _ in range(taken):
            next(events)
        events.close()  # type: ignore[attr-defined]
        assert not one.busy
    assert len(answers(source, requests)[0]) == 2


class LacksMemoryOnce(NativeRunner):
    """When rows leave for the first time."""

    lacks = True

    def remove(self, ended_R: npt.NDArray[np.bool_]) -> Indices:
        if self.lacks:
            self.lacks = False
            raise MemoryError
        return super().remove(ended_R)


def test_after_a_failure_no_two_answers_share_a_line() -> None:
    """It fails while ended rows leave, when half of them have been put away: the next answers are as if alone."""
    one = Engine(LacksMemoryOnce(toy("conv")))
    for token in range(6):
        one.add(Request((token,), limit=2 + token % 2))
    one.step()
    with pytest.raises(MemoryError):
        one.step()
    assert not one.busy
    requests = [Request((token,), n=3, limit=9, seed=token) for token in range(6)]
    assert [[t.tokens for t in group] for group in one.run(requests)] == [
        [t.tokens for t in engine().run([request])[0]] for request in requests
    ]


def test_a_stale_cache_is_refused_until_refreshed() -> None:
    model = toy("conv")
    one = Engine(model, name="toy")
    before = one.run([Request((1, 2, 3), limit=4)])[0][0]
    with torch.no_grad():
        model.head.weight.mul_(-1)
    for ask in (lambda: one.run([Request((1, 2, 3))]), lambda: one.next([(1,)]), lambda: one.score([(1,)], [(2,)])):
        with pytest.raises(KlypeError, match="refresh"):
            ask()
    assert not one.busy
    one.refresh(2)
    after = one.run([Request((1, 2, 3), limit=4)])[0][0]
    assert after.tokens == Engine(model).run([Request((1, 2, 3), limit=4)])[0][0].tokens != before.tokens
    assert (before.model, after.model) == ("toy", "toy@2")


def test_weights_cannot_change_under_a_running_answer() -> None:
    one = engine()
    one.add(Request((1, 2), limit=5))
    one.step()
    with pytest.raises(KlypeError, match="finish or cancel"):
        one.refresh(1)


def test_damaged_weights_are_named() -> None:
    model = toy()
    with torch.no_grad():
        model.head.weight[3, 3] = math.nan
    one = Engine(model, name="broken")
    one.add(Request((1,), n=3))
    for ask in (one.step, lambda: one.run([Request((1,), sampling=Sampling(0.0))]), lambda: one.next([(1,)])):
        with pytest.raises(KlypeError, match=r"broken.*not numbers"):
            ask()
    assert not one.busy


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (1,) * 65}, "65 tokens.*window of 64"),
        ({"prompt": (1, 23)}, "token 23"),
        ({"limit": 0}, "limit is 0"),
        ({"n": 0}, "n is 0"),
        ({"top": -2}, "top is -2"),
        ({"stop": (99,)}, "stop token"),
        ({"stop_texts": ("",)}, "not empty"),
        ({"stop_texts": (3,)}, "string"),
        ({"first_sample": -1}, "first_sample"),
        ({"sampling": Sampling(math.nan)}, "temperature"),
    ],
)
def test_impossible_requests_are_refused_before_anything_runs(wrong: dict[str, Any], says: str) -> None:
    one = engine()
    with pytest.raises(UsageError, match=says):
        one.run([Request(prompt=(1,)), Request(**{"prompt": (1,), **wrong})])
    assert not one.busy
    assert one.native.tokens == 0


def test_impossible_scores_are_refused() -> None:
    for prompt, answer in [((), (1,)), ((1,), (1,) * 65), ((1,), (-1,)), ((1, 99), (1,))]:
        with pytest.raises(UsageError):
            engine().score([prompt], [answer])


def test_many_kinds_of_sampling_do_not_pile_up() -> None:
    one = engine()
    keep = one.add(Request((1,), limit=60))
    for i in range(200):
        one.add(Request((2,), limit=1, sampling=Sampling(0.5 + i / 100)))
        one.step()
        if i == 40:
            one.cancel(keep)
            keep = one.add(Request((1,), limit=60))
    assert len(one._rows.kinds) <= 64


def test_seconds_come_from_the_clock_that_was_passed_in() -> None:
    ticks = itertools.count()
    (trace,) = Engine(toy(), clock=lambda: float(next(ticks))).run([Request((1,), limit=1)])[0]
    assert trace.seconds >= 1
    assert trace.seconds == int(trace.seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_long_ragged_prompts_are_read_in_chunks(name: str) -> None:
    model = toy(name, window=2048)
    one, generator = Engine(model), np.random.default_rng(0)
    prompts = [tuple(generator.integers(0, 23, length).tolist()) for length in (1300, 1500, 1501, 700, 3, 1)]
    prompts.append((*prompts[0][:900], 4, 5, 6))
    for prompt, found in zip(prompts, one.next(prompts), strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt]))[0, -1].softmax(-1)
        for token in range(23):
            assert found.p(token) == pytest.approx(float(expected[token]), abs=1e-4)
    assert one.native.tokens == sum(map(len, prompts)) - 900


def test_wide_reads_use_the_fused_kernel_and_agree() -> None:
    """With others there are too many scores to be written out, alone there are not."""
    model = toy("grouped", window=1200)
    prompts = [tuple((i * j + j) % 23 for j in range(1100)) for i in range(1, 13)]
    assert len(prompts) * 4 * CHUNK * 2 * CHUNK > WRITTEN > 4 * CHUNK * 1100
    for prompt, b in zip(prompts, Engine(model).next(prompts), strict=True):
        (a,) = Engine(model).next([prompt])
        assert [a.p(token) for token in range(23)] == pytest.approx([b.p(token) for token in range(23)], abs=1e-5)


def test_alike_prompts_share_passes_and_unlike_ones_do_not_pad_each_other() -> None:
    one = Engine(toy("conv", vocab_size=23, width=512, hidden=1024, window=600))
    alike = [tuple((i + j) % 23 for j in range(30 + i)) for i in range(4)]
    one.next([*alike, tuple((3 * j) % 23 for j in range(400))])
    assert one.native.passes == 2


@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_what_was_read_before_is_used_as_far_as_it_agrees(name: str) -> None:
    """Branching off inside a known text, going on from it, and asking for its middle, in one call."""
    one, known = engine(name), tuple((7 * j) % 23 for j in range(40))
    one.next([known])
    prompts = [(*known[:20], 9, 9, 9), (*known, 5), known[:18], known[:39], known]
    for prompt, found in zip(prompts, one.next(prompts), strict=True):
        (alone,) = engine(name).next([prompt])
        assert [found.p(t) for t in range(23)] == pytest.approx([alone.p(t) for t in range(23)], abs=1e-5)


def test_where_prompts_lie_in_memory_does_not_order_them() -> None:
    """Else rows would stand in another order in another run, and be rounded otherwise."""
    model = toy("llama")
    stores = sorted((Cache(model.config, 2).to_shared() for _ in range(6)), key=id)
    for lying in (stores, stores[::-1]):
        prompts = [
            CachedPrompt((0,), CachedPrefix(lying[i], slot, 1), torch.zeros(1))
            for i, slot in ((2, 1), (0, 0), (2, 0), (5, 0), (0, 1))
        ]
        assert NativeRunner(model).order(prompts) == [2, 0, 1, 4, 3]


def test_little_of_a_pass_is_padding() -> None:
    """… even where a model is so large that nothing is spare for it."""
    runner = NativeRunner(toy("llama"))
    runner.model.config = runner.model.config.model_copy(update={"hidden": SPARE})
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 23, length).tolist()) for length in rng.integers(1, 60, 50)]
    batches = runner._batches(prompts, {prompt: [len(prompt)] for prompt in prompts})
    assert sorted(prompt for batch in batches for prompt in batch) == sorted(prompts)
    assert len(batches) < 12
    for lengths in ([len(prompt) for prompt in batch] for batch in batches):
        assert len(lengths) * max(lengths) <= sum(lengths) * 1.25


def test_only_large_steps_wake_a_second_thread() -> None:
    small, wide = toy("llama"), toy("llama", width=1024, hidden=2048)
    of = NativeRunner(wide).operations
    assert NativeRunner(small).operations(256) < WAKING < of(1)
    assert of(1) == of(16) < of(64) == 4 * of(16) * 0.8
    whole = of(64)
    assert NativeRunner(wide.bfloat16()).operations(64) == whole / 2


def test_answers_do_not_depend_on_the_threads() -> None:
    requests = [Request((3, 1, 4), n=3, limit=12, seed=1), Request((2, 7), n=2, limit=9, seed=2)]
    said = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        said.append([[t.tokens for t in traces] for traces in engine().run(requests)])
        assert torch.get_num_threads() == threads
    assert said[0] == said[1]
