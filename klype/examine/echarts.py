"""Apache ECharts (Apache-2.0), as NiceGUI brings it: read from the installed package, so that a report needs no net."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from klype.errors import KlypeError

_EXPORT = re.compile(r"export\s*\{([^}]*)\};?\s*(?://#[^\n]*\s*)?$")


def script() -> str:
    """The text of a module script that defines ``globalThis.echarts``; safe between <script> tags."""
    spec = find_spec("nicegui")
    if spec is None or not spec.submodule_search_locations:
        raise KlypeError("The report's charts need NiceGUI, which is not installed.", "Run: pip install nicegui")
    return from_package(Path(next(iter(spec.submodule_search_locations))))


def from_package(package: Path) -> str:
    """From NiceGUI's folder: its module bundle (3.x), or a plain minified ECharts."""
    entry = package / "elements" / "echart" / "dist" / "index.js"
    text = _from_bundle(entry) if entry.is_file() else _plain(package)
    if text is None:
        raise KlypeError(
            f"Cannot find ECharts in {package}: this version of NiceGUI keeps it elsewhere.",
            "Run: pip install 'nicegui>=3,<4'",
        )
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _from_bundle(entry: Path) -> str | None:
    """The entry re-exports the bundle: ``import{aS as a}from"./index-X.js";export{a as echarts}``."""
    text = entry.read_text(encoding="utf-8")
    source = re.search(r"from\s*[\"']\./([\w.-]+\.js)[\"']", text)
    local = re.search(r"export\s*\{[^}]*?([\w$]+) as echarts\b", text)
    if not source or not local:
        return None
    alias = re.search(rf"([\w$]+) as {re.escape(local[1])}\b", text)
    bundle = (entry.parent / source[1]).read_text(encoding="utf-8")
    exports = _EXPORT.search(bundle)
    name = (
        re.search(rf"(?:^|,)\s*([\w$]+) as {re.escape(alias[1])}\s*(?:,|$)", exports[1]) if alias and exports else None
    )
    if not name or not exports:
        return None
    return f"{bundle[: exports.start()]}globalThis.echarts={name[1]};"


def _plain(package: Path) -> str | None:
    found = sorted(package.rglob("echarts*.min.js"))
    return found[0].read_text(encoding="utf-8") if found else None
