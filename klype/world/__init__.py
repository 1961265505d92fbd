"""A small bilingual language whose truth is known: documents, questions, right answers, exact distributions."""

from klype.world.automaton import END, Filter
from klype.world.vocabulary import Spellings, TokenFilter
from klype.world.world import World, WorldDocument

__all__ = ["END", "Filter", "Spellings", "TokenFilter", "World", "WorldDocument"]
