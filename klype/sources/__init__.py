"""Models to ask, whatever runs them: all speak ``klype.sources.source.Source``."""
