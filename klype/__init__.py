"""klype: train a small language model through all its stages, and see, measure and reduce its divergence.

>>> import klype
>>> model = klype.load(run)
>>> model.ask("Hvor er Kari?", temperature=0)[0].text
'...'
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from klype.errors import KlypeError

if TYPE_CHECKING:
    from klype.api.examination import Examination, examine
    from klype.api.judging import Judge, Same, same
    from klype.api.model import AnswerStream, Model, load
    from klype.api.results import Answer, AnswerForks, AnswerTree, NextToken, NextTokens, Token
    from klype.api.run import Metrics, Rankings, Run, RunReport, train
    from klype.values import Figure, Sampling

__version__ = "0.2.0"
__all__ = [
    "Answer", "AnswerForks", "AnswerStream", "AnswerTree", "Examination", "Figure", "Judge", "KlypeError", "Metrics",
    "Model", "NextToken", "NextTokens", "Rankings", "Run", "RunReport", "Same", "Sampling", "Token", "__version__",
    "examine", "load", "same", "train",
]  # fmt: skip
# the modules of klype.api in which public names are; the others are in klype.api.results
_MODULES = {
    "examination": ("Examination", "examine"),
    "judging": ("Judge", "Same", "same"),
    "model": ("AnswerStream", "Model", "load"),
    "run": ("Metrics", "Rankings", "Run", "RunReport", "train"),
}


class _Surface(ModuleType):
    """Keeps ``klype.examine`` the function although there is a package of that name: importing a package would put
    itself in the function's place. The package's modules are attributes of the function, as they are of the package."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Surface


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: ``klype --help`` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'klype' has no attribute {name!r}")
    if name in ("Figure", "Sampling"):
        return getattr(import_module("klype.values"), name)
    module = next((module for module, names in _MODULES.items() if name in names), "results")
    found = getattr(import_module(f"klype.api.{module}"), name)
    if name in ("examine", "train"):  # keeps `klype.train.loop` reachable
        found.__dict__ = vars(import_module(f"klype.{name}"))
    return found


def __dir__() -> list[str]:
    return __all__
