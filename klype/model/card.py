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
