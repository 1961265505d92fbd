"""klype: train a small language model through all its stages, and see, measure and reduce its divergence.

>>> import klype
>>> model = klype.load(run)
>>> model.ask("Hvor er Kari?", temperature=0)[0].text
'...'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from klype.errors import KlypeError

if TYPE_CHECKING:
    from klype.api.model import Model, load
    from klype.api.results import Answer, AnswerForks, AnswerTree, NextToken, NextTokens, Token
    from klype.values import Sampling

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "AnswerForks",
    "AnswerTree",
    "KlypeError",
    "Model",
    "NextToken",
    "NextTokens",
    "Sampling",
    "Token",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: ``klype --help`` shall not wait for torch."""
    if name in ("Model", "load"):
        return getattr(import_module("klype.api.model"), name)
    if name == "Sampling":
        return import_module("klype.values").Sampling
    if name in __all__:
        return getattr(import_module("klype.api.results"), name)
    raise AttributeError(f"module 'klype' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
