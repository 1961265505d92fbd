"""How an answer comes to be: its prompt, its tokens as they come, or guessed ahead."""

from __future__ import annotations

from dataclasses import replace

from klype.device import EnergyMeter
from klype.engine.speculation import LookupDraft, speculate
from klype.errors import UsageError
from klype.sources.native import NativeSource
from klype.sources.source import Source
from klype.studio.conversation import Answer, Conversation
from klype.studio.models import Model, Voice
from klype.values import Request


def begin(model: Model, conversation: Conversation, question: str) -> list[int]:
    """The prompt of a new turn. The oldest turns leave a window that is full; raises UsageError when even the last
    message does not fit."""
    reserve = min(64, model.window // 4)
    if model.raw:
        prompt = model.codec.encode(question)
        if len(prompt) + 1 > model.window:
            raise UsageError(f"The text has {len(prompt)} tokens, and {model.name} reads {model.window} at most.")
        return prompt
    said = {
        (place, model.name): model.codec.decode(turn.branches[model.name].current.tokens)
        for place, turn in enumerate(conversation.turns)
        if model.name in turn.branches
    }
    messages = conversation.messages(model.name, question, said)
    while True:
        prompt = model.codec.prompt(messages)
        if len(prompt) + reserve <= model.window:
            return prompt
        if len(messages) == 1:
            raise UsageError(f"The message has {len(prompt)} tokens, and {model.name} reads {model.window} at most.")
        messages = messages[2:]


def request_of(model: Model, answer: Answer, limit: int) -> Request:
    """What is still to be written: after a fork the beginning belongs to the prompt. The same seed and place in the
    text have the same noise, so that a fork differs by its token only."""
    prompt = (*answer.prompt, *answer.tokens)
    room = min(limit - len(answer.steps), model.window - len(prompt))
    if room < 1:
        raise UsageError(f"There is no room left: {model.name} reads {model.window} tokens at most.")
    return Request(
        prompt, limit=room, sampling=answer.sampling, seed=answer.seed, stop=tuple(model.codec.stop), top=model.top
    )


async def write(voice: Voice, answer: Answer, limit: int) -> None:
    """Appends to the answer's steps as they come; ``answer.running`` made false ends it."""
    meter = EnergyMeter()
    async for events in voice.write(request_of(voice.model, answer, limit)):
        for event in events:
            answer.steps.append(event.step)
            answer.trace = event.trace or answer.trace
        if not answer.running:
            break
    if answer.trace is not None:
        answer.joules = meter.joules() if answer.trace.joules is None else answer.trace.joules


async def speculated(voice: Voice, answer: Answer, limit: int) -> None:
    """The same answer written with guesses ahead (looked up in the text so far), checked several a pass."""
    request = replace(request_of(voice.model, answer, limit), top=0)

    def work(source: Source) -> None:
        assert isinstance(source, NativeSource), "klype's own engine speculates"
        meter = EnergyMeter()
        traces, counts = speculate(source.engine, request, LookupDraft())
        (scored,) = source.score([request.prompt], [traces[0].tokens], voice.model.top)
        steps = [
            replace(step, distribution=seen.distribution)
            for step, seen in zip(traces[0].steps, scored.steps, strict=True)
        ]
        answer.steps.extend(steps)
        answer.trace, answer.joules = traces[0], meter.joules()
        answer.accepted, answer.proposed = counts.accepted, counts.proposed

    await voice.beside(work)
