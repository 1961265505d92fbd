"""Mistakes counted by edit distance: a word said for another, one too many and one left out are one error each."""

from __future__ import annotations

from klype.world.automaton import END, Filter, Levels, arcs


class EditFilter(Filter):
    """The readings of a prefix that need the fewest edits; ``slips`` counts those.

    A shift by one word is one error here, and one at every word after it where only substitution is allowed. What can
    follow is what the readings with the fewest edits allow; their weights are no probabilities.
    """

    def _begun(self) -> Levels:
        return _left_out(super()._begun())

    def _advance(self, levels: Levels, word: str) -> Levels:
        out = super()._advance(levels, word)
        for k, states in enumerate(levels[:-1]):
            for state, weight in states.items():  # one word too many: nothing of the language was said
                out[k + 1][state] = out[k + 1].get(state, 0.0) + weight
        return _left_out(out)


def _left_out(levels: Levels) -> Levels:
    """With the states after words that were left out, each an edit; the end is never left out."""
    for k, states in enumerate(levels[:-1]):
        for state, weight in states.items():
            for said, p, after in arcs(state):
                if said != END:
                    levels[k + 1][after] = levels[k + 1].get(after, 0.0) + weight * p
    return levels
