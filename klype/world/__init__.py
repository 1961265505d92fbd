"""The demo language, small and bilingual: documents, questions, correct answers, exact next-word distributions."""

from klype.world.automaton import END, Filter
from klype.world.vocabulary import Spellings, TokenFilter
from klype.world.world import World, WorldDocument

__all__ = ["END", "Filter", "Spellings", "TokenFilter", "World", "WorldDocument"]
