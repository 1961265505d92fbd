"""The report as text: it says what the facts say, in both languages, and nothing in it can act."""

import base64
import hashlib
import itertools
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_facts import hostile_facts, smallest_facts, text_facts, world_facts

from klype.cli.terminal import program
from klype.errors import KlypeError, UsageError
from klype.examine import answer_pictures, html, run_report
from klype.examine.charts import (
    DARK,
    LIGHT,
    PROBABILITY_EDGES,
    echarts_from,
    echarts_script,
    step_of,
)
from klype.examine.run_facts import check, read
from klype.examine.run_report import render, write
from klype.examine.say import Say, visible
from klype.examine.training_pictures import pictures, reward
from klype.examine.verdict import verdict
from klype.studio.elements import FORMATS
from klype.words import LANGUAGES

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)></style></title>\u202egnp.exe{{7*7}}{0}\x00"
KINDS = {
    "world": world_facts,
    "text": text_facts,
    "smallest": smallest_facts,
    "hostile": lambda: hostile_facts(HOSTILE),
}


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of scripts and styles, by language."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {lang: [] for lang in LANGUAGES}
        self._silent, self._lang = False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")
        self._lang = dict(attrs).get("data-view") or self._lang

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent and self._lang:
            self.texts[self._lang].append(data)

    def text(self, lang: str) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts[lang]))


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return {name: Page(render(facts())) for name, facts in KINDS.items()}


@pytest.mark.slow
def test_the_report_and_its_figures_are_written_together(tmp_path: Path) -> None:
    facts = world_facts()
    path = write(tmp_path, facts, "nb")
    assert path == tmp_path / "report.html"
    assert read(tmp_path / "figures.json") == facts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures.json", "report.html"]
    assert '<html lang="nb" data-lang="nb">' in path.read_text(encoding="utf-8")
    assert render(facts, "nb") == path.read_text(encoding="utf-8")


def test_what_a_user_can_do_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no report in"):
        write(tmp_path, world_facts(), "sv")
    with pytest.raises(KlypeError, match="cannot be written"):
        write(tmp_path / "nowhere", world_facts())
    with pytest.raises(KlypeError, match="no figures"):
        read(tmp_path / "figures.json")
    (tmp_path / "figures.json").write_text("{", encoding="utf-8")
    with pytest.raises(KlypeError, match="not JSON"):
        read(tmp_path / "figures.json")
    for broken, where in (
        ({**world_facts(), "seconds": {"total": float("nan")}}, "seconds.total"),
        ({**world_facts(), "colour": 1}, "colour"),
        ({**world_facts(), "stages": {"base": {"right": {"val": 1}}}}, "stages.base.right"),
    ):
        with pytest.raises(KlypeError, match=re.escape(where)):
            check(broken)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", KINDS)
def test_nothing_in_the_page_fetches_or_acts(name: str, pages: dict[str, Page]) -> None:
    scripts = [attrs for tag, attrs in pages[name].elements if tag == "script"]
    assert [s.get("type") for s in scripts] == ["application/json", "module", "module", "module"]
    for tag, attrs in pages[name].elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "link") or attrs.get("href") == "data:,"
        assert not [key for key in attrs if key.startswith("on") or key in ("src", "srcset", "action", "formaction")]
        assert (attrs.get("href") or "#").startswith(("#", "data:,"))


def test_the_policy_allows_exactly_the_scripts_that_are_there() -> None:
    page = render(hostile_facts(HOSTILE))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.S)
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    allowed = policy[1].replace("&#39;", "'")
    assert set(re.findall(r"'sha256-([^']+)'", allowed)) == hashes
    assert len(hashes) == 3
    assert "default-src 'none'" in allowed
    assert "connect-src" not in allowed
    assert "unsafe-inline" not in allowed.split("script-src")[1].split(";")[0]


def test_hostile_text_is_shown_and_inert(pages: dict[str, Page]) -> None:
    for lang in LANGUAGES:
        assert "<script>alert(1)</script>" in pages["hostile"].text(lang)
        assert "⟨U+202E⟩gnp.exe{{7*7}}{0}⟨U+0000⟩" in pages["hostile"].text(lang)
    raw = render(hostile_facts(HOSTILE)).split('<script type="module">')[0]
    assert "\u202e" not in raw
    assert "<script>alert" not in raw
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', raw, re.S)
    assert data is not None
    assert json.loads(data[1])["charts"]["en"]["next"]["rows"][0][0].startswith("<script>")


@given(st.text())
def test_visible_text_has_no_hidden_characters_and_keeps_the_rest(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08\x7f]", shown)
    assert re.sub("⟨U\\+[0-9A-F]{4,6}⟩", "", shown).replace("⟨", "") == "".join(
        c for c in re.sub("⟨U\\+[0-9A-F]{4,6}⟩", "", text).replace("⟨", "") if c in visible(c)
    )


@pytest.mark.parametrize("name", ["world", "text", "smallest"])
def test_no_gap_shows_in_the_text(name: str, pages: dict[str, Page]) -> None:
    for lang in LANGUAGES:
        text = pages[name].text(lang)
        assert not re.search(r"\b(None|nan|NaN|undefined|inf)\b|\{[a-z_]+\}|[a-z]_[a-z]", text)


def test_what_is_missing_is_left_out_or_explained(pages: dict[str, Page]) -> None:
    assert "64% of pairs, and 75% are required" in pages["text"].text("en")
    assert "kravet er 75 %" in pages["text"].text("nb")
    assert "KL" not in pages["text"].text("en")
    assert "no model yet" in pages["smallest"].text("en")
    assert set(pictures(smallest_facts(), Say("en"))) == {"formula"}
    assert "bits_per_byte" not in pages["world"].text("en")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_picture_says_its_finding_and_how_to_read_it(lang: str) -> None:
    shown = pictures(world_facts(), Say(lang))
    assert set(shown) == {
        "curves",
        "stages",
        "reward",
        "truth",
        "next",
        "temperatures",
        "formula",
        "survival",
        "calibration",
    }
    assert "text" in pictures(text_facts(), Say(lang))
    for picture in shown.values():
        assert picture.panels
        assert picture.rows
        assert all(len(row) == len(picture.columns) for row in picture.rows)
        assert len(re.findall(r"[.!](?= |$)", picture.how)) >= 2
        if picture.id != "curves":
            assert re.search(r"\d|ⁿ", picture.title)
        for panel in picture.panels:
            for name in strings(panel.option):
                assert not name.startswith("fn:") or name.removeprefix("fn:") in FORMATS
                assert not re.fullmatch(r"\$[a-z]+", name) or name[1:] in LIGHT
            for key in ("xAxis", "yAxis"):
                assert panel.option[key]["type"] in ("value", "category")


def test_every_part_of_a_document_is_shown_and_inert() -> None:
    """All of it may hold what a model or a user wrote."""
    told = "<script>alert(1)</script>\u202e"
    parts = [html.Text(told, "small"), html.Table(told, [told], [[told, told]]), html.Glossary([(told, told)]), None]
    sections = [html.Section(parts, told, "whole"), html.Section([None], "nothing in it")]
    page = html.render(lambda say: html.Document(say, told, told, sections), "nb")
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩") == 1 + len(LANGUAGES) * 11
    assert all(page.count(f'<section id="section-whole-{code}">') == 1 for code in LANGUAGES)
    assert "nothing in it" not in page
    with pytest.raises(UsageError, match="no report in"):
        html.render(lambda say: html.Document(say, told, told, []), "xx", told)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_an_examination_draws_equal_figures_as_a_run_does(lang: str) -> None:
    facts, say = world_facts(), Say(lang)
    swept = facts["temperatures"]["rows"]
    for curve in facts["survival"]:
        curve["r"], curve["k"] = ([{**f, "t": i} for i, f in enumerate(curve[key][:10], 1)] for key in ("r", "k"))
    told = facts["calibration"][-1]
    main = f"{facts['survival'][0]['temperature']:g}"
    figures = {f"{row['temperature']:g}": dict(row["figures"]) for row in swept}
    figures.setdefault(main, {})["calibration"] = told["error"]
    document = {
        "model": say.stage(told["stage"]), "main": main, "figures": figures,
        **{name: {f"{c['temperature']:g}": c.get(key, []) for c in facts["survival"]}
           for name, key in {"survival": "r", "would_survive": "k", "by_position": "by_position",
                             "difference": "difference"}.items()},
        "calibration": {main: told["bins"]}, "after_error": {}, "selective": {}, "trees": [],
    }  # fmt: skip
    run, examined = pictures(facts, say), answer_pictures.pictures(document, say)
    for name in ("survival", "temperatures", "formula"):
        assert run[name] == examined[name]
    assert run["calibration"].rows[-len(told["bins"]) :] == examined["calibration"].rows
    assert run["calibration"].title == examined["calibration"].title


def test_a_flow_leads_every_answer_to_its_meaning_and_reads_braces_as_text() -> None:
    answers = [("{b}", 0.4, "yes"), ("of course", 0.2, "yes"), ("no", 0.3, "no")]
    children = [{"text": text, "mass": mass, "children": [], "meaning": meaning} for text, mass, meaning in answers]
    one = {"question": "?", "answers": [{}], "branches": {"text": "", "mass": 0.9, "children": children}}
    drawn = answer_pictures.flow({"trees": [one]}, Say("en"))
    assert drawn is not None
    (series,) = drawn.panels[0].option["series"]
    label = {node["name"]: node["label"]["formatter"] for node in series["data"]}
    flows = [(label[link["source"]], label[link["target"]], link["value"]) for link in series["links"]]
    assert sorted(value for _, end, value in flows if end.startswith("yes")) == [0.2, 0.4]
    assert [value for source, end, value in flows if "less likely" in end] == [pytest.approx(0.1)]
    assert not [text for text in label.values() if "{" in text]
    assert [row[2] for row in drawn.rows] == [pytest.approx(share) for share in (0.6, 0.3, 0.1)]


def test_operations_are_no_shares() -> None:
    figures = {"0.7": {"flops": {"value": 2e6}, "right": {"value": 0.5}}}
    drawn = answer_pictures.cost({"figures": figures, "main": "0.7"}, Say("en"))
    assert drawn is not None
    option = drawn.panels[0].option
    assert option["series"][0]["data"] == [4.0]
    assert option["tooltip"]["valueFormatter"] == "fn:value"


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


def test_the_verdict_says_the_figures_of_the_facts() -> None:
    facts, en, nb = world_facts(), Say("en"), Say("nb")
    english, norwegian = " ".join(verdict(facts, en)), " ".join(verdict(facts, nb))
    right = facts["stages"]["aligned"]["right"]
    assert f"{round(100 * right['value'])}% [{round(100 * right['low'])}, {round(100 * right['high'])}]" in english
    assert "94\u00a0% [92; 97]" in norwegian
    assert "0.118 [0.112, 0.124]" in english
    assert "0,118 [0,112; 0,124]" in norwegian
    assert "6 of 8 gates were passed (within the uncertainty: 1; missed: 1)" in english
    assert "of the base model’s probability" in english  # S and KL are the base model's, all else here the last one's
    assert "legger grunnmodellen" in norwegian
    assert "18% to 98%" in english
    assert not re.search(r"\d\.\d", norwegian)


def test_the_formulas_sliders_take_the_s_that_the_curves_beside_them_are_made_of() -> None:
    """S of documents is another figure: with it, Sⁿ at the sliders and in the picture would be two."""
    facts = world_facts()
    of_text, own = facts["stages"]["aligned"]["s"]["value"], facts["survival"][0]["s"]["value"]
    assert of_text != own
    assert f'data-model-s="{own}"' in render(facts)
    del facts["survival"]
    assert f'data-model-s="{of_text}"' in render(facts)


def test_an_annotators_agreement_with_itself_is_no_bound_and_not_told_where_nobody_knows_it() -> None:
    facts = world_facts()
    assert "two rankings of the annotator’s own agree on" in " ".join(verdict(facts, Say("en")))
    for lang, bound, beside in (
        ("en", r"most one can hope|\bceiling\b", "That is no bound"),
        ("nb", r"\btaket\b", "Det er ingen øvre grense"),
    ):
        shown = reward(facts, Say(lang))
        assert shown is not None
        assert not re.search(bound, f"{shown.title} {shown.how}")
        assert beside in shown.how
    facts["reward"]["ceiling"] = {"value": None, "low": None, "high": None, "n": 0}
    assert "agrees with the annotator on" in (said := " ".join(verdict(facts, Say("en"))))
    assert "rankings of the annotator" not in said
    picture = reward(facts, Say("nb"))
    assert picture is not None
    assert "samme rangerer" not in f"{picture.title} {picture.how}"
    assert len(picture.rows) == 1


def test_the_rewards_are_told_with_their_weights_before_and_after_and_their_names_are_inert() -> None:
    page = render(world_facts(), "en")
    for shown in (
        "the reward model</bdi>",
        "belønningsmodellen</bdi>",
        "&lt;b&gt;.py:short",
        "<bdi>0.25</bdi></td>",
        "<bdi>0,25</bdi></td>",
    ):
        assert shown in page
    assert "\u22127.5 [\u22128.0, \u22127.0]" in page
    facts = world_facts()
    facts.pop("rewards")
    assert "the reward model</bdi>" not in render(facts, "en")


def test_the_verdict_does_not_call_noise_a_change() -> None:
    facts = world_facts()
    assert "It is uncertain whether alignment changed the share of right" in " ".join(verdict(facts, Say("en")))
    facts["stages"]["aligned"]["right"] = {"value": 0.5, "low": 0.45, "high": 0.55, "n": 400}
    assert "took the share of right answers down, from 93% to 50%" in " ".join(verdict(facts, Say("en")))
    facts["stages"]["aligned"]["polite"] = facts["stages"]["finetuned"]["polite"]
    assert "It is uncertain whether alignment made answers politer" in " ".join(verdict(facts, Say("en")))
    assert "took the share of right answers down, from 93% to 50%" in " ".join(verdict(facts, Say("en")))
    assert pictures(facts, Say("en"))["stages"].title == "Aligned: 50% of answers are right"
    for name in ("finetuned", "aligned"):
        facts["stages"][name]["polite"] = {"value": 0.0, "low": 0.0, "high": 0.01, "n": 400}
    assert "polite" not in " ".join(verdict(facts, Say("en")))
    assert "høflig" not in pictures(facts, Say("nb"))["stages"].title
    assert "answers got worse" not in " ".join(verdict(facts, Say("en")))
    facts["stages"]["finetuned"]["annotator"] = {"value": 1.10, "low": 1.06, "high": 1.15, "n": 119}
    facts["stages"]["aligned"]["annotator"] = {"value": 0.62, "low": 0.57, "high": 0.67, "n": 119}
    assert "the answers got worse, from 1.10 [1.06, 1.15] to 0.62 [0.57, 0.67]" in " ".join(verdict(facts, Say("en")))
    assert "Etter de poengene er den finjusterte modellen bedre" in " ".join(verdict(facts, Say("nb")))


@pytest.mark.slow
@settings(max_examples=50)
@given(st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 0.2))
def test_any_share_can_be_said_in_both_languages(value: float, below: float, above: float) -> None:
    figure = {"value": value, "low": max(0.0, value - below), "high": min(1.0, value + above)}
    en, nb = (Say(lang).figure(figure, "right") for lang in ("en", "nb"))
    assert re.fullmatch(r"\d+(\.\d+)?%( \[\d+(\.\d+)?, \d+(\.\d+)?\])?", en)
    assert re.fullmatch(r"\d+(,\d+)?\u00a0%( \[\d+(,\d+)?; \d+(,\d+)?\])?", nb)
    assert ("[" in en) == ("[" in nb)
    assert "[" in en or figure["high"] - figure["low"] < 2e-4  # an interval that reads as the figure is not written


@pytest.mark.parametrize("value", [0.001, 0.004, 0.996, 0.999])
def test_a_share_that_is_neither_none_nor_all_is_not_written_as_either(value: float) -> None:
    """“One example is enough: 0% of the words” was said of two in a thousand, for its interval is wide."""
    figure = {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
    for lang, sign in (("en", "%"), ("nb", "\u00a0%")):
        assert not re.match(rf"(0|100){sign}", Say(lang).figure(figure, "right"))
    assert Say("en").figure({"value": 1.0, "low": 0.95, "high": 1.0}, "right") == "100% [95, 100]"


def test_durations_and_large_numbers() -> None:
    en, nb = Say("en"), Say("nb")
    said = [en.seconds(s).replace("\u00a0", " ") for s in (0.0042, 0.25, 9.4, 59.0, 60.0, 291.6, 7500.0)]
    assert said == ["4.2 ms", "250 ms", "9.4 s", "59 s", "1 min", "4 min 52 s", "2 h 5 min"]
    assert nb.seconds(7500.0) == "2\u00a0t 5\u00a0min"
    assert (en.big(7_800_000), nb.big(7_800_000), en.big(1234)) == ("7.8 million", "7,8 millioner", "1,234")
    assert (en.share(0.9951), en.share(0.5), nb.share(0.005)) == ("99.5%", "50%", "0,5\u00a0%")
    assert [nb.plain(t) for t in (0.0, 0.7, 1.0, 1.25)] == ["0", "0,7", "1", "1,25"]


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_can_be_read_and_the_scale_is_even(dark: bool) -> None:
    theme = DARK if dark else LIGHT
    scale = [(theme[f"p{i}"], theme[f"q{i}"]) for i in range(6)]
    assert len(scale) == len(PROBABILITY_EDGES) + 1
    for background, ink in scale:
        assert contrast(background, ink) >= 4.5
    for name in (name for name in theme if name not in ("paper", "card", "line") and not re.match(r"[pq]\d", name)):
        assert contrast(theme[name], theme["paper"]) >= 4.5
        assert contrast(theme[name], theme["card"]) >= 4.5
    assert contrast(theme["accent"], theme["card"]) >= 4.5
    light = [lightness(background) for background, _ in scale]
    steps = [b - a for a, b in itertools.pairwise(light)]
    assert all(step * steps[0] > 0 for step in steps)
    assert max(map(abs, steps)) <= 1.15 * min(map(abs, steps))


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio, 1 to 21; text needs 4.5."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lightness(colour: str) -> float:
    """OKLab L, from the definition."""
    c = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in c)
    lms = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
           0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
           0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)  # fmt: skip
    return sum(k * x ** (1 / 3) for k, x in zip((0.2104542553, 0.7936177850, -0.0040720468), lms, strict=True))


@given(st.floats(0, 1))
def test_a_less_likely_token_is_never_paler(p: float) -> None:
    assert 0 <= step_of(p) <= len(PROBABILITY_EDGES)
    assert step_of(p / 2) >= step_of(p)


def test_echarts_is_found_where_nicegui_keeps_it_and_missed_with_a_sentence(tmp_path: Path) -> None:
    text = echarts_script()
    assert "</script" not in text
    assert re.search(r"globalThis\.echarts=[\w$]+;$", text)
    with pytest.raises(KlypeError, match="Cannot find ECharts"):
        echarts_from(tmp_path)
    dist = tmp_path / "elements" / "echart" / "dist"
    dist.mkdir(parents=True)
    (dist / "index.js").write_text(
        'import{b as x,c as y}from"./core.js";export{x as echarts,y as gl};', encoding="utf-8"
    )
    (dist / "core.js").write_text(
        'var z={"a":"</script>"};export{q as a,z as b,w as c};\n//# sourceMappingURL=c.map', encoding="utf-8"
    )
    assert echarts_from(tmp_path) == 'var z={"a":"<\\/script>"};globalThis.echarts=z;'
    (dist / "core.js").write_text("var z=1;", encoding="utf-8")
    with pytest.raises(KlypeError, match="Cannot find ECharts"):
        echarts_from(tmp_path)


@pytest.mark.slow
def test_the_same_facts_give_the_same_bytes() -> None:
    assert render(world_facts()) == render(world_facts())


def test_a_near_miss_of_a_gate_is_seen() -> None:
    facts = world_facts()
    facts["gates"] = [
        {"name": "aligned_polite", "value": 0.946, "threshold": 0.95, "passed": False},
        {"name": "s", "value": 0.968, "threshold": 0.97, "passed": False},
        {"name": "kl", "value": None, "threshold": 0.15, "passed": False, "below": True},
    ]
    text = Page(render(facts)).text("en")
    assert "94.6% at least 95%" in text
    assert "0.968 at least 0.97" in text
    assert "not reached at most 0.15" in text


@pytest.mark.parametrize(("lang", "told"), [("en", "within the uncertainty"), ("nb", "innenfor usikkerheten")])
def test_a_gate_is_shown_with_its_interval_and_its_three_states(lang: str, told: str) -> None:
    facts = world_facts()
    facts["too_few"] = [{"name": "reward_pairs", "n": 3}]
    text = Page(render(facts)).text(lang)
    expected = {
        "en": (
            "94.6% [93.1, 96.1], n\xa0=\xa01,500",
            "fewer than 30",
            "reward model: agreement with the annotator (n\xa0=\xa03)",
        ),
        "nb": (
            "94,6\xa0% [93,1; 96,1], n\xa0=\xa01500",
            "under 30",
            "Belønningsmodellen: enighet med den som rangerer (n\xa0=\xa03)",
        ),
    }[lang]
    assert told in text
    for part in expected:
        assert part.replace("\xa0", " ").lower() in text.replace("\xa0", " ").lower()


@pytest.mark.parametrize(("lang", "stories", "fixed"), [
    ("en", "Asked about 400 stories that it had not read", "about what is always true"),
    ("nb", "spørsmål om 400 historier den ikke hadde lest", "det som alltid er sant"),
])  # fmt: skip
def test_stories_and_what_is_always_true_are_told_apart(lang: str, stories: str, fixed: str) -> None:
    said = " ".join(verdict(world_facts(), Say(lang)))
    assert stories in said
    assert fixed in said


@pytest.mark.parametrize("called", ["klype", ".venv/bin/klype"])
@pytest.mark.parametrize("address", ["runs/world-2026-11-29-1", "/a b/it's"])
def test_its_commands_can_be_typed_as_they_stand(called: str, address: str) -> None:
    """A shell splits each into klype, what it does, the run where it lies, and the very question with its context."""
    question = {"context": "Per kom.", "question": 'Hvor er "Per" ($HOME, `ls`)?', "answers": {}}
    facts = {**world_facts(), "address": address, "program": called, "questions": [question]}
    facts.pop("commands", None)
    typed = [shlex.split(command) for command, _ in run_report.commands(facts, Say("en"))]  # type: ignore[arg-type]
    assert all(words[0] == called and words[2] == address for words in typed)
    assert {words[1] for words in typed} == {"chat", "ask", "next", "tree", "examine", "studio"}
    assert {words[1]: words[3] for words in typed if words[1] in ("ask", "tree")} == dict.fromkeys(
        ("ask", "tree"), 'Per kom. Hvor er "Per" ($HOME, `ls`)?'
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_klype_is_called_as_the_shell_finds_it(tmp_path: Path, elsewhere: Path) -> None:
    def python(folder: Path) -> str:
        folder.mkdir(parents=True)
        return str(folder / "python")

    def klype(folder: Path) -> Path:
        (folder / "klype").write_text("#!/bin/sh\n")
        (folder / "klype").chmod(0o755)
        return folder / "klype"

    own, here = python(tmp_path / "my env" / "bin"), python(elsewhere / "my env" / "bin")
    assert program({}, own) == f"'{own}' -m klype"
    script, other = klype(Path(own).parent), klype(tmp_path)
    assert program({"PATH": str(script.parent)}, own) == "klype"
    assert program({"PATH": f"{other.parent}:{script.parent}"}, own) == f"'{script}'"  # another klype comes first
    klype(Path(here).parent)
    assert program({"PATH": "/nowhere"}, here) == "'my env/bin/klype'"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_figure_that_the_report_has_never_heard_of_is_shown(lang: str) -> None:
    """Whoever adds a measure puts its figures among the facts, and has nothing to do here."""
    facts = world_facts()
    figure = {"value": 0.314, "low": 0.271, "high": 0.352, "n": 77}
    answers, hot, spent = facts["stages"]["aligned"], facts["temperatures"]["rows"][0], facts["cost"]["aligned"]
    places = (answers, hot["figures"], spent["figures"])
    for place in places:
        place["cheerfulness_of_tone"] = figure
    assert Page(render(facts)).text(lang).count("cheerfulness of tone") == len(places)


@pytest.mark.parametrize(("figure", "value", "below"), [
    ({"value": 0.5, "low": 0.4, "high": 0.6}, "50%", "[40,\xa060]"),
    ({"value": 0.5, "why": "too few errors"}, "50%", "(too few errors)"),
    ({"value": 2e7, "why": "too few errors", "unit": "FLOPs"}, "20.0 million", "(too few errors)"),
    ({"value": None, "why": "nothing was measured"}, "–", ""),
])  # fmt: skip
def test_a_cell_has_the_interval_or_its_absence_below(figure: dict[str, Any], value: str, below: str) -> None:
    name = "flops" if figure.get("unit") else "right"
    table = html.figures([{name: figure}], ["model"], Say("en"))[0]
    assert isinstance(table, html.Table)
    cell = table.rows[0][1]
    assert isinstance(cell, html.RichText)
    assert (cell.text, cell.below) == (value, below)
