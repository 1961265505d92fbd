"""What a model's methods return: immutable values with ``to_json``, ``to_pandas`` and a display in notebooks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from klype.answers.forks import Forks, ForkToken
from klype.answers.tree import Tree
from klype.errors import KlypeError
from klype.judge.meaning import label
from klype.values import Figure, Trace

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def judge_and_error(judge: str, error_rate: Figure | None) -> Row:
    """The JSON fields ``judge`` and ``error_rate``; the latter is left out if the judge cannot err."""
    return {"judge": judge} | ({} if error_rate is None else {"error_rate": error_rate.json()})


def fields_of(value: object, *names: str) -> Row:
    return {name: getattr(value, name) for name in names}


def data_frame(rows: Sequence[Row]) -> "pd.DataFrame":
    """Rows as a pandas data frame. Raises KlypeError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError:
        raise KlypeError("Data frames are made by pandas, which is not installed.", "pip install pandas") from None
    return pd.DataFrame(list(rows))


def html_table(rows: Sequence[Row], columns: Sequence[str], bars: Sequence[str] = ()) -> str:
    """An HTML table with escaped text and four significant digits. ``bars``: columns of probabilities that are drawn as
    bars, too."""

    def cell(value: object, bar: bool) -> str:
        if not isinstance(value, float):
            return f'<td style="text-align:left">{escape("" if value is None else str(value))}</td>'
        filled = f"background:linear-gradient(90deg,rgba(66,133,244,.4) {value:.1%},transparent 0);min-width:7em"
        return f'<td style="text-align:left;{filled if bar else ""}">{value:.4g}</td>'

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(cell(row.get(c), c in bars) for c in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure_rows(key: str, figures: Mapping[Any, Mapping[str, Row]]) -> list[Row]:
    """One row per group (called ``key``) and measure: value, low, high, n, unit."""
    columns = ("value", "low", "high", "n", "unit")
    return [
        {key: group, "measure": name, **{column: figure.get(column) for column in columns}}
        for group, measures in figures.items()
        for name, figure in measures.items()
    ]


def figure_table(names: Sequence[str], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """An HTML table of measures, a column per group."""
    from klype.examine.say import Say

    say = Say("en")
    rows = [
        {"": say.measure(name), **{group: say.figure(one.get(name), name) for group, one in figures.items()}}
        for name in names
    ]
    return html_table(rows, ["", *figures])


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer. ``p``: its probability at temperature 1; None where a server does not return it."""

    text: str
    id: int
    p: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with the probability of every token.

    ``logprob``: natural logarithm of the probability of this token sequence at temperature 1, the end of the answer
    included; None where a token's probability is unknown. ``ended``: "stop" (by the model), "length" (by the limit) or
    "cancelled". ``trace``: everything that was recorded.
    """

    text: str
    tokens: tuple[Token, ...] = field(repr=False)
    logprob: float | None
    ended: str
    trace: Trace = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> Row:
        return {**fields_of(self, "text", "logprob", "ended"), "tokens": [asdict(token) for token in self.tokens]}

    def to_pandas(self) -> "pd.DataFrame":
        """One row per token: text, id, p."""
        return data_frame(self.to_json()["tokens"])

    def _repr_html_(self) -> str:
        from klype.examine.charts import LIGHT, step_of

        parts = []
        for token in self.tokens:
            step = None if token.p is None else step_of(token.p)
            background, ink = ("transparent", "inherit") if step is None else (LIGHT[f"p{step}"], LIGHT[f"q{step}"])
            title = "?" if token.p is None else f"{token.p:.4g}"
            style = f"background:{background};color:{ink};white-space:pre-wrap;border-radius:3px"
            parts.append(f'<span style="{style}" title="{title}">{escape(token.text)}</span>')
        return f"<p>{''.join(parts)}{'' if self.ended == 'stop' else ' …'}</p>"


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token that may come next, with its probabilities.

    ``p``: at temperature 1. ``p_tempered``: as it is sampled; a lower bound with the upper bound ``p_tempered_high``
    where a server lists only its most probable tokens. ``truth``: in the demo world; None where that is unknown.
    """

    token: str
    id: int
    p: float
    p_tempered: float
    p_tempered_high: float | None = None
    truth: float | None = None


@dataclass(frozen=True, slots=True)
class NextTokens:
    """The most probable next tokens, most probable first; ``rest``: the probability of all others."""

    tokens: tuple[NextToken, ...]
    rest: float

    def to_json(self) -> Row:
        rows = [{name: value for name, value in asdict(one).items() if value is not None} for one in self.tokens]
        return {"tokens": rows, "rest": self.rest}

    def to_pandas(self) -> "pd.DataFrame":
        """One row per token: token, id, p, p_tempered, and truth where it is known."""
        return data_frame(self.to_json()["tokens"])

    def _repr_html_(self) -> str:
        rows = self.to_json()["tokens"]
        columns = ["token", "p", "p_tempered", *(["truth"] if any("truth" in row for row in rows) else [])]
        return html_table([*rows, {"token": "…", "p": self.rest}], columns, columns[1:])


@dataclass(frozen=True, slots=True)
class AnswerTree:
    """The distribution of whole answers, as far as it was explored; its bounds are certain, not statistical.

    ``tree``: answers (text, low, high, meaning) and clusters of one meaning, most probable first, the unexplored
    probability, and entropies in nats. ``judge``: what decides which answers mean the same; ``error_rate``: how often
    it errs, without a value where that was not measured, None if it cannot err.
    """

    tree: Tree
    judge: str
    error_rate: Figure | None = None

    def __repr__(self) -> str:
        first = self.tree.answers[0] if self.tree.answers else None
        most = f", first {first.text!r} [{first.low:.3g}, {first.high:.3g}]" if first else ""
        return f"<AnswerTree: {len(self.tree.answers)} answers{most}, {self.unexplored:.3g} unexplored>"

    @property
    def answers(self) -> tuple[Row, ...]:
        return tuple(self.to_json()["answers"])

    @property
    def unexplored(self) -> float:
        return self.tree.unexplored

    def to_json(self) -> Row:
        """The document that ``klype tree --json`` prints; an infinite upper bound of an entropy is null."""
        tree = self.tree
        bounds = {"entropy": tree.entropy, "meaning_entropy": tree.meaning_entropy}
        return {
            "answers": [{**fields_of(a, "text", "low", "high"), "meaning": label(a.meaning)} for a in tree.answers],
            **fields_of(tree, "unexplored", "expansions", "lost", "stopped"),
            "meanings": [
                {"meaning": label(c.meaning), **fields_of(c, "low", "high", "text", "answers")} for c in tree.clusters
            ],
            **{name: [end if math.isfinite(end) else None for end in ends] for name, ends in bounds.items()},
            **judge_and_error(self.judge, self.error_rate),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """One row per answer: text, low, high, meaning."""
        return data_frame(self.answers)

    def _repr_html_(self) -> str:
        left = f"<p>unexplored: {self.unexplored:.4g}; same meaning by: {escape(self.judge)}</p>"
        return html_table(self.answers[:20], ["text", "low", "high"], ["low", "high"]) + left


@dataclass(frozen=True, slots=True)
class AnswerForks:
    """Where the meaning of one answer was decided.

    ``tokens``: the text of each token, one for each of ``found.positions``. ``others``: the texts of the alternatives
    at the fork. ``judge``, ``error_rate``: see ``AnswerTree``.
    """

    found: Forks
    tokens: tuple[str, ...]
    others: tuple[str, ...]
    judge: str
    error_rate: Figure | None = None

    def __repr__(self) -> str:
        at = "nowhere" if self.fork is None else f"at {self.tokens[self.fork]!r}"
        return f"<AnswerForks of {self.found.text!r}: decided {at}>"

    @property
    def fork(self) -> int | None:
        """Index of the token that decided the meaning; None if what was seen may be chance."""
        return self.found.fork

    def to_json(self) -> Row:
        """The document that ``klype forks --json`` prints."""
        found = self.found

        def meanings(other: ForkToken) -> list[Row]:
            return [{"meaning": label(meaning), "share": share} for meaning, share in other.meanings[:5]]

        return {
            "answer": found.text,
            "positions": [
                {"token": token, "strength": p.strength.json(), **fields_of(p, "variation", "own", "right")}
                for token, p in zip(self.tokens, found.positions, strict=True)
            ],
            **fields_of(found, "fork", "p"),
            "before": dict(zip(("own", "right"), found.before, strict=True)),
            "lost": found.lost,
            "others": [
                {"token": token, "p": other.p, "meanings": meanings(other)}
                for token, other in zip(self.others, found.others, strict=True)
            ],
            "samples": found.samples,
            **judge_and_error(self.judge, self.error_rate),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """One row per token: token, strength, own (share of answers that mean the same after it), fork."""
        return data_frame(self._rows())

    def _rows(self) -> list[Row]:
        return [
            {"token": token, "strength": p.strength.value, "own": p.own, "fork": i == self.fork}
            for i, (token, p) in enumerate(zip(self.tokens, self.found.positions, strict=True))
        ]

    def _repr_html_(self) -> str:
        return html_table(self._rows(), ["token", "strength", "own", "fork"], ["own"])
