"""What makes a request impossible, each in one sentence, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from klype.engine.sampling import check_sampling
from klype.errors import UsageError
from klype.values import Request


def check_request(request: Request, window: int, vocab_size: int, decodes: bool) -> None:
    check_prompt(request.prompt, window, vocab_size)
    if request.limit < 1:
        raise UsageError(f"limit is {request.limit}: an answer needs at least one token.")
    if request.n < 1:
        raise UsageError(f"n is {request.n}: ask for at least one answer.")
    if request.top < -1:
        raise UsageError(f"top is {request.top}: it must be -1 (whole), 0 (none) or more.")
    if request.first_sample < 0:
        raise UsageError(f"first_sample is {request.first_sample}: samples are numbered from 0.")
    if any(not 0 <= token < vocab_size for token in request.stop):
        raise UsageError(f"A stop token is not one of the model's {vocab_size} tokens.")
    if any(not isinstance(text, str) or not text for text in request.stop_texts):
        raise UsageError("A stop text must be a string that is not empty.")
    if request.stop_texts and not decodes:
        raise UsageError("Stop texts need a tokenizer, and this engine was made without one.")
    check_sampling(request.sampling, vocab_size)


def check_prompt(prompt: Sequence[int], window: int, vocab_size: int) -> None:
    if not prompt:
        raise UsageError("The prompt is empty: give at least one token (a begin token will do).")
    if len(prompt) > window:
        raise UsageError(f"The prompt has {len(prompt)} tokens, more than the model's window of {window}.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(token for token in prompt if not 0 <= token < vocab_size)
        raise UsageError(f"The prompt contains token {wrong}; the model knows 0 to {vocab_size - 1}.")


def check_answer(prompt: Sequence[int], answer: Sequence[int], window: int, vocab_size: int) -> None:
    if len(prompt) + len(answer) > window + 1:
        raise UsageError(
            f"Prompt and answer have {len(prompt) + len(answer)} tokens, more than the model's window of {window}."
        )
    if answer and not 0 <= min(answer) <= max(answer) < vocab_size:
        wrong = next(token for token in answer if not 0 <= token < vocab_size)
        raise UsageError(f"The answer contains token {wrong}; the model knows 0 to {vocab_size - 1}.")
