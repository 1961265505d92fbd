"""Builds the documentation in both languages: from docs/ and from the code, strictly and without a network.

Usage: .venv/bin/python scripts/docs.py [OUT]   (or: make docs; OUT is site/)

Each language is a site of its own (OUT/en, OUT/nb): the pages of docs/ that have this language, the English one where
there is no other, and the pages that scripts/docs_reference.py writes from the code. A warning (a link, an anchor or a
picture that leads nowhere) ends the build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import docs_reference
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs"
LANGUAGES = {"en": "English", "nb": "Norsk"}
NORWEGIAN = {
    "Tutorials": "Innføringer",
    "How-to": "Slik gjør du",
    "Explanation": "Forklaringer",
    "Reference": "Oppslag",
    "Laboratory": "Laboratoriet",
}
ONLY_ENGLISH = '!!! note "Bare på engelsk"\n    Denne siden finnes ikke på norsk ennå.\n\n'
CHOICE = """<!doctype html><meta charset="utf-8"><title>klype</title>
<script>location.replace(/^(nb|nn|no|da|sv)/.test(navigator.language) ? "nb/index.html" : "en/index.html")</script>
<a href="en/index.html">English</a> · <a href="nb/index.html">Norsk</a>
"""


def page_of(file: Path, lang: str) -> Path | None:
    """Where a file of docs/ stands in the site of a language; None where it does not."""
    place = file.relative_to(PAGES)
    if file.suffix != ".md":
        return place
    plain = Path(re.sub(r"\.nb\.md$", ".md", str(place)))
    if lang == "en":
        return None if plain != place else place
    return None if plain == place and file.with_suffix(".nb.md").exists() else plain


def text_of(file: Path, lang: str) -> str:
    """A page's text; links to Norwegian pages lead to where those stand in the Norwegian site."""
    text = file.read_text(encoding="utf-8")
    if lang == "nb" and not file.name.endswith(".nb.md"):
        text = re.sub(r"(?m)^(# .*\n+)", lambda title: title[0] + ONLY_ENGLISH, text, count=1)
    return re.sub(r"\.nb\.md(?=[)#])", ".md", text)


def write_pages(folder: Path, lang: str) -> None:
    """The source of one language's site."""
    for file in sorted(PAGES.rglob("*")):
        if file.is_file() and (place := page_of(file, lang)) is not None:
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".md":
                target.write_text(text_of(file, lang), encoding="utf-8")
            else:
                shutil.copyfile(file, target)
    for name, page in docs_reference.PAGES.items():
        written = page(lang)
        (folder / "reference" / name).write_text(written, encoding="utf-8")


def config_of(lang: str) -> dict[str, Any]:
    """mkdocs.yml as it is for one language."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"docs_dir": f"docs/{lang}", "site_dir": f"site/{lang}"}
    config["theme"]["language"] = lang
    config["extra"]["alternate"] = [
        {"name": name, "link": f"../{one}/index.html", "lang": one} for one, name in LANGUAGES.items()
    ]
    if lang == "nb":
        config["nav"] = [
            {NORWEGIAN.get(title, title): pages for title, pages in one.items()} if isinstance(one, dict) else one
            for one in config["nav"]
        ]
    for plugin in config["plugins"]:
        if isinstance(plugin, dict) and "mkdocstrings" in plugin:
            handler = plugin["mkdocstrings"]["handlers"]["python"]
            handler["paths"] = [str(ROOT)]
            handler["options"]["extensions"] = [str(ROOT / "scripts" / "docs_doctest.py")]
    return config


def build(out: Path) -> None:
    """Both sites, and the page that leads to them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for lang in LANGUAGES:
            write_pages(folder / "docs" / lang, lang)
            file = folder / f"{lang}.yml"
            file.write_text(yaml.safe_dump(config_of(lang), allow_unicode=True), encoding="utf-8")
            command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(file)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = re.sub("\x1b\\[[0-9;]*m", "", done.stdout + done.stderr)
                sys.exit(said.partition("Traceback")[0])  # its own end is no news
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder / "site", out)
    (out / "index.html").write_text(CHOICE, encoding="utf-8")
    print(out / "index.html")


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "site")
