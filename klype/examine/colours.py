"""The report's colours: one set of names in two themes, and the scale of probabilities."""

from __future__ import annotations

import math

LIGHT = {
    "paper": "#faf8f3",
    "card": "#ffffff",
    "ink": "#1d2024",
    "muted": "#5a616a",
    "line": "#dedad0",
    "accent": "#0b5e6b",
    "base": "#686e76",
    "finetuned": "#a85708",
    "aligned": "#1263a8",
    "truth": "#0a7653",
    "bad": "#a62f4c",
}
DARK = {
    "paper": "#14171a",
    "card": "#1c2024",
    "ink": "#ebe8e1",
    "muted": "#a6adb5",
    "line": "#343a41",
    "accent": "#6cc6d3",
    "base": "#9ba2aa",
    "finetuned": "#efa24e",
    "aligned": "#6fb2ee",
    "truth": "#4fc49a",
    "bad": "#f08ba2",
}
PROBABILITY_EDGES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""A token's step is how many of these its probability is below: 0 (nearly certain, pale) to 5 (a surprise, strong)."""


def step_of(p: float) -> int:
    return sum(p < edge for edge in PROBABILITY_EDGES)


def probability_scale(dark: bool) -> list[tuple[str, str]]:
    """(background, text) of the six steps: lightness in equal parts (OKLCH), from near the paper to strong."""
    steps = len(PROBABILITY_EDGES) + 1
    scale = []
    for i in range(steps):
        part = i / (steps - 1)
        lightness = 0.30 + 0.52 * part if dark else 0.965 - 0.525 * part
        background = oklch(lightness, 0.012 + (0.088 if dark else 0.118) * part, 75 - 35 * part)
        inks = (DARK["ink"], "#0b0d0f") if dark else (LIGHT["ink"], "#ffffff")
        scale.append((background, max(inks, key=lambda ink: contrast(ink, background))))
    return scale


def oklch(lightness: float, chroma: float, hue: float) -> str:
    """sRGB of an OKLCH colour (Ottosson 2020), clipped to what a screen can show."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    l_, m_, s_ = (
        (lightness + x * a + y * b) ** 3
        for x, y in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
    )
    linear = (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(1.0, max(0.0, c)))):02x}" for c in linear)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio, 1 to 21; text needs 4.5."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _gamma(c: float) -> float:
    return 12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055
