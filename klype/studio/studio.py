"""What all pages of one studio share: its models at work, conversations, examinations, and a home for what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klype.errors import UsageError
from klype.studio.conversation import Conversations
from klype.studio.examining import Examinations
from klype.studio.models import Model, Voice
from klype.studio.ranking_tally import Tallies


@dataclass
class Studio:
    """``home`` is klype's own folder: results of long work are kept there. ``command`` starts ``klype``.
    ``questions`` are some to begin with, by language. ``store``: a file or url where rankings are kept instead of each
    run's own place; ``runs``: where runs are looked for and made, when it is neither ``runs`` nor ``home``."""

    models: Sequence[Model]
    home: Path
    command: Sequence[str]
    questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    store: str = ""
    runs: Path | None = None
    conversations: Conversations = field(default_factory=Conversations)
    tallies: Tallies = field(default_factory=Tallies)
    voices: dict[str, Voice] = field(init=False)
    examinations: Examinations = field(init=False)

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"Two models are called '{twice}'.", "Give one another name: NAME=MODEL.")
        self.voices = {model.name: Voice(model) for model in self.models}
        self.examinations = Examinations(self.home / "examinations", self.command)

    def voice(self, name: str) -> Voice:
        """By a name that a browser sent."""
        if name not in self.voices:
            raise UsageError(f"There is no model {name[:100]!a} here.")
        return self.voices[name]

    def stop(self) -> None:
        self.examinations.stop()
        for voice in self.voices.values():
            voice.stop()
