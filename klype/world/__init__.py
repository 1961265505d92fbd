"""A small bilingual language whose truth is known: documents, questions, right answers, exact distributions."""

from klype.world.automaton import END, Filter
from klype.world.vocabulary import Spellings, TokenFilter
from klype.world.world import Document, World

__all__ = ["END", "Document", "Filter", "Spellings", "TokenFilter", "World"]
