"""The model card: README.md of a checkpoint, with the header that model hubs read, made from what run.json says."""

from __future__ import annotations

import json
from typing import Any

from klype.model.config import ModelConfig
from klype.model.convert import OWN, model_type


def model_card(config: ModelConfig, about: dict[str, Any]) -> str:
    """Markdown with a YAML header. ``about``'s "name", "licence", "language" and "summary" are used where present."""
    name = str(about.get("name") or "A klype model")
    languages = about.get("language") or ["nb", "en"]
    header = [
        f"language: [{', '.join(map(str, languages))}]",
        f"license: {json.dumps(str(about.get('licence') or 'other'))}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [klype, {model_type(config)}]",
    ]
    shape = {
        "parameters": f"{config.parameters:,}",
        "layers × width": f"{config.layers} × {config.width}",
        "heads (keys)": f"{config.heads} ({config.kv_heads})",
        "vocabulary": f"{config.vocab_size:,}",
        "window": f"{config.window:,} tokens",
        "convolution": str(config.conv or "none"),
    }
    use = "Load it with `klype chat FOLDER`, or with transformers"
    use += " after `import klype.hf`." if model_type(config) == OWN else " as it is."
    made = {k: v for k, v in about.items() if k not in ("name", "licence", "language", "summary")}
    lines = ["---", *header, "---", "", f"# {name}", ""]
    lines += [str(about["summary"]), ""] if about.get("summary") else []
    lines += [
        "A small language model trained with klype, which shows, measures and reduces the divergence of its answers.",
        "It is meant for study, not for advice: what it says is often wrong.",
        "",
        use,
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in shape.items()),
        "",
    ]
    if made:
        told = json.dumps(made, indent=2, ensure_ascii=False, default=str)
        lines += ["## What made it", "", "```json", told, "```", ""]
    return "\n".join(lines)


def hub_card(config: ModelConfig, about: dict[str, Any], name: str) -> str:
    """The card of a repository on a hub: as ``model_card``, with intended use, data, measures and energy of its run.

    ``about["run"]`` is the run's run.json. What it does not say is said to be unknown, never made up.
    """
    run = about.get("run") or {}
    plain = {key: value for key, value in about.items() if key != "run"}
    lines = [model_card(config, {"name": name.rpartition("/")[2], **plain}), "## Intended use", ""]
    lines += ["Study of how language models answer. Not for advice, decisions about people, or unattended use.", ""]
    lines += ["## Data and licences", "", *_told(run.get("data") or about.get("data")), ""]
    lines += ["## Measures", "", *_measures(run), ""]
    energy = run.get("joules") or about.get("joules")
    seconds = (run.get("seconds") or {}).get("total")
    lines += ["## Energy", ""]
    lines += [f"{energy:,.0f} J, measured by the processor's own counter." if energy else "Not measured."]
    lines += [f"Trained in {seconds:,.0f} seconds."] if isinstance(seconds, int | float) else []
    return "\n".join(lines) + "\n"


def _told(data: Any) -> list[str]:
    if not data:
        return ["The run does not say. Licence: see the header."]
    rows = data if isinstance(data, list) else [data]
    return [f"- {json.dumps(row, ensure_ascii=False, default=str) if isinstance(row, dict) else row}" for row in rows]


def _measures(run: dict[str, Any]) -> list[str]:
    """A table of the run's figures with their intervals, by stage."""
    rows = [
        f"| {stage} | {name} | {figure['value']:.4g} | {figure['low']:.4g} to {figure['high']:.4g} | {figure['n']} |"
        for stage, figures in (run.get("stages") or {}).items()
        if isinstance(figures, dict)
        for name, figure in figures.items()
        if isinstance(figure, dict) and isinstance(figure.get("value"), int | float) and figure.get("low") is not None
    ]
    head = ["| stage | measure | value | 95 % interval | n |", "|---|---|---|---|---|"]
    return [*head, *rows] if rows else ["The run has none."]
