"""Environment variables: the folders of klype's own files, API keys, and the language."""

import os
from collections.abc import Mapping
from pathlib import Path

from klype.words import spoken_language


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for klype's own data: KLYPE_HOME, or XDG_STATE_HOME/klype, or ~/.local/state/klype."""
    return _folder(environ, "", "XDG_STATE_HOME", ".local/state")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for what can be made again: KLYPE_HOME/cache, or XDG_CACHE_HOME/klype, or ~/.cache/klype."""
    return _folder(environ, "cache", "XDG_CACHE_HOME", ".cache")


def _folder(environ: Mapping[str, str], part: str, variable: str, usual: str) -> Path:
    if environ.get("KLYPE_HOME"):
        return Path(environ["KLYPE_HOME"]).expanduser() / part
    return Path(environ.get(variable) or Path.home() / usual) / "klype"


def server_key(host: str, environ: Mapping[str, str] = os.environ) -> str:
    """The API key for a server: KLYPE_API_KEY, or OPENAI_API_KEY for OpenAI's own server only; "" if neither is set."""
    if environ.get("KLYPE_API_KEY"):
        return environ["KLYPE_API_KEY"]
    return environ.get("OPENAI_API_KEY", "") if host == "api.openai.com" else ""


def language(environ: Mapping[str, str] = os.environ) -> str:
    """The language of KLYPE_LANG or of the locale; English where klype does not speak that."""
    for name in ("KLYPE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environ.get(name):
            return spoken_language(value) or "en"
    return "en"
