"""A few questions put to a checkpoint, or to a checkpoint with the weights of a state that training saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TEMPERATURE = 0.7
"""That of the figures of a run."""


def answers(folder: Path, weights: Path | None, questions: Sequence[str], limit: int) -> list[str]:
    """One answer to each question, the same every time. Raises KlypeError and OSError for what cannot be read."""
    from safetensors.torch import load

    from klype.device import set_threads
    from klype.engine.engine import Engine
    from klype.model import checkpoint
    from klype.values import Request, Sampling

    set_threads(1)
    loaded = checkpoint.load(folder)
    if weights is not None:
        state = load(weights.read_bytes())
        loaded.model.load_state_dict({name: state[name] for name in loaded.model.state_dict()})
    tokenizer, out = loaded.tokenizer, []
    for seed, question in enumerate(questions):
        prompt = tuple(loaded.chat.prompt([{"role": "user", "content": question}]))
        room = min(limit, loaded.config.window - len(prompt))
        if room < 1:
            out.append("")
            continue
        request = Request(prompt, 1, room, Sampling(temperature=TEMPERATURE), seed, tokenizer.ends)
        ((trace,),) = Engine(loaded.model, decode_bytes=tokenizer.token_bytes).run([request])
        out.append(tokenizer.decode_answer(trace.tokens))
    return out
