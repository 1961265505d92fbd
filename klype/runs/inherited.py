"""What a stage takes over from the run that it goes on from, where nothing else is given."""

from __future__ import annotations

from klype.config import make, overridden
from klype.errors import KlypeError, UsageError
from klype.runs.folder import read_run
from klype.runs.options import StageOptions
from klype.runs.recipe import Recipe, saved
from klype.sources.find import Found

INPUTS = ("text", "instructions", "preferences", "data", "encoding", "text_field", "skip_bad")


def with_inputs_of(start: Found | None, options: StageOptions) -> StageOptions:
    """With the texts, questions and rankings that the run was given, where none are given now."""
    given = options.text or options.data or options.instructions or options.preferences
    content = read_run(start.run) if start is not None and start.run is not None and not given else {}
    if not {"settings", "asked"} <= content.keys():
        return options
    asked = {name: content["asked"][name] for name in INPUTS if name in content["asked"]}
    return make(StageOptions, {**vars(options), **asked})


def recipe_of(start: Found, options: StageOptions) -> Recipe:
    """The run's own recipe, with what is overridden now. UsageError for a model without a run.

    Its rewards are not taken over: code is run when it is named, not because a run's folder names it.
    """
    if start.run is None:
        raise UsageError(f"{options.from_} is no run with a fine-tuned model.", "Give a run's folder.")
    settings = read_run(start.run).get("settings")
    if settings is None:
        raise KlypeError(f"The run {start.run} does not say what recipe made it.")
    return make(Recipe, overridden(saved(settings), ("align.rewards={}", *options.overrides)))
