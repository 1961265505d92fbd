"""``klype rank``: a run's answers put in order by you, by simulated annotators or by a model that judges."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.guard import INTERRUPTED
from klype.cli.progress import starting
from klype.cli.terminal import Terminal
from klype.errors import KlypeError, UsageError
from klype.option import Option, Options

if TYPE_CHECKING:
    from klype.preferences.store import Store
    from klype.sources.find import Found


@dataclass(frozen=True, kw_only=True)
class RankOptions(Options):
    """Who ranks which answers, and where rankings come from or go to."""

    run: o.Model
    simulate: Annotated[bool, Option("Simulated annotators rank, instead of you.")] = False
    taste: Annotated[
        tuple[str, ...],
        Option("right=2,polite=.7,concise=0,word=.04. Repeated: annotators who disagree."),
    ] = ()
    noise: Annotated[float, Option("How often a simulated annotator swaps neighbours.")] = 0.1
    judge: Annotated[str, Option("A MODEL that ranks, instead of you.")] = ""
    from_: Annotated[tuple[str, ...], Option("First add answers of this MODEL. May be repeated.")] = ()
    temperature: Annotated[tuple[float, ...], Option("Of --from's answers. May be repeated.")] = ()
    n: Annotated[int, Option("How many answers of --from per temperature.", "-n")] = 4
    active: Annotated[bool, Option("Start with the questions a reward model is least sure about.")] = False
    store: Annotated[str, Option("A file or postgresql:// url.", shown="RUN's own")] = ""
    annotator: Annotated[str, Option("Who ranks.", shown="you")] = ""
    steps: Annotated[int, Option("How many questions (0: all).")] = 0
    repeats: Annotated[int, Option("Ask every N-th question twice (0: never).")] = 10
    export: Annotated[Path | None, Option("Write the rankings to a JSONL file.")] = None
    form: Annotated[str, Option("Of --export: ranked, trl, sharegpt or alpaca.", "--format")] = "ranked"
    import_: Annotated[Path | None, Option("Add the rankings of a JSONL file.")] = None
    device: o.Device = "auto"
    seed: o.Seed = 0


def command(terminal: Terminal, asked: RankOptions) -> None:
    """Rank the answers in a run's store (or bring rankings in and out), and see how well the annotators agree."""
    o.a_file("--import", asked.import_)
    with starting(terminal):
        from klype.preferences.database import DamagedError
        from klype.preferences.formats import FORMATS
        from klype.preferences.store import Store
        from klype.runs import rankers, ranking
        from klype.sources.names import called
        from klype.sources.opening import find_model

    if asked.form not in FORMATS:
        raise UsageError(f"--format: there is no format {asked.form}.", f"Use {', '.join(FORMATS)}.")
    if asked.judge and (asked.simulate or asked.taste):
        raise UsageError("Either --simulate or --judge ranks, not both.")
    rankers.check_noise(asked.noise)
    if asked.steps < 0 or asked.repeats < 0:
        raise UsageError("--steps and --repeats should be 0 or more.")
    if asked.n < 1 or any(not 0 <= t <= 10 for t in asked.temperature):
        raise UsageError("-n should be 1 or more, and --temperature from 0 to 10.")
    found = find_model(asked.run)
    if found.run is None and not asked.store:
        raise UsageError(f"{asked.run} belongs to no run, so that it has no store.", "Name one with --store.")
    if not asked.store and asked.import_ is None and not ranking.has_store(_folder(found)):
        name = called(_folder(found).parent)
        raise KlypeError(
            f"{name} has no answers to rank.", f"Make a run that has some: klype train rank --from {name}."
        )
    try:
        with Store.open(asked.store) if asked.store else ranking.open_store(_folder(found)) as opened:
            done = 0
            if asked.from_:
                _drawn(opened, terminal, asked)
            first = _first(opened, found, asked) if asked.active else []
            if asked.import_ is not None:
                from klype.preferences import formats

                done = opened.put(formats.read(asked.import_))
            elif asked.simulate or asked.taste:
                done = _simulated(opened, found, asked, first)
            elif asked.judge:
                done = _judged(opened, asked, first)
            elif asked.export is None and not asked.from_:
                done = _by_hand(opened, terminal, asked)
            _tell(opened, terminal, asked, done)
    except DamagedError as damaged:
        if asked.export is None:
            raise
        _salvaged(damaged, asked.store or _folder(found) / ranking.STORE, asked.export, asked.form)


def _salvaged(damaged: KlypeError, place: str | Path, export: Path, form: Any) -> None:
    """Writes what is whole, and says so: it is a failure all the same."""
    from klype.preferences import formats
    from klype.preferences.store import whole_entries

    entries, lost = whole_entries(place)
    formats.export(export, entries, form)
    kept = f"What is whole of it, {len(entries)} rankings, is in {export}; {lost} are damaged."
    raise KlypeError(
        damaged.message, f"{kept} Put the store away, and take them into a new one with --import {export}."
    )


def _folder(found: Found) -> Path:
    assert found.run is not None
    return found.run / "rank"


def _drawn(store: Store, terminal: Terminal, asked: RankOptions) -> None:
    from klype.runs.collecting import DrawSettings, draw_into
    from klype.sources.opening import open_model

    settings = DrawSettings(asked.temperature or (1.0,), asked.n, most=asked.steps, seed=asked.seed)
    for name in asked.from_:
        new = draw_into(store, name, open_model(name, device=asked.device).source, settings)
        terminal.say("rank.drawn", model=name, new=new)


def _first(store: Store, found: Found, asked: RankOptions) -> list[int]:
    if found.run is None:
        raise UsageError("--active needs a run, whose fine-tuned model reads the answers.", "Give a run's folder.")
    from klype.device import pick_device
    from klype.runs.collecting import prioritise

    return prioritise(store, found.run, asked.seed, pick_device(asked.device))


def _simulated(store: Store, found: Found, asked: RankOptions, first: list[int]) -> int:
    from klype.preferences.annotators import taste
    from klype.runs import rankers

    world = rankers.world_of(found.run)
    wanted = [taste(text) for text in asked.taste or ("",)]
    rankers.checked(store)
    done = 0
    for number, one in enumerate(wanted):
        called = rankers.label(asked.annotator if len(wanted) == 1 else "", one)
        rank = rankers.by_taste(one, world.judge, asked.noise, called)
        done += rankers.rank_all(store, rank, "simulated", asked.steps, asked.seed + number, first)
    return done


def _judged(store: Store, asked: RankOptions, first: list[int]) -> int:
    from klype.preferences.annotators import ModelJudge
    from klype.runs import rankers
    from klype.sources.opening import open_model

    rankers.checked(store)
    source = open_model(asked.judge, device=asked.device).source
    return rankers.rank_all(store, rankers.by_model(ModelJudge(source)), "model", asked.steps, asked.seed, first)


def _by_hand(store: Store, terminal: Terminal, asked: RankOptions) -> int:
    from klype.cli.progress import Plain
    from klype.runs import rankers
    from klype.runs.rankers import Sitting, rank_by_hand

    rankers.checked(store)
    name, new = asked.annotator or "you", uuid.uuid4().hex
    sitting = Sitting(name, asked.steps, again_every=asked.repeats, lang=terminal.lang, id=new)
    say = Plain(terminal.console, terminal.lang, time.monotonic)
    try:
        return rank_by_hand(store, sitting, say, lambda prompt: terminal.console.input(prompt, markup=False))
    except KeyboardInterrupt:
        raise BrokenOff("Interrupted.", "The same command goes on from there.") from None


class BrokenOff(KlypeError):  # noqa: N818 - an end that was asked for
    """Stopped by Ctrl-C, with everything that was ranked saved."""

    exit_code = INTERRUPTED


def _tell(store: Store, terminal: Terminal, asked: RankOptions, done: int) -> None:
    from klype.cli.progress import print_table
    from klype.preferences import formats
    from klype.runs import rankers
    from klype.words import number

    entries = store.entries()
    document: dict[str, Any] = {"run": asked.run, "store": store.place, "new": done, "entries": len(entries)}
    document |= rankers.summary(entries)
    if asked.export is not None:
        form: Any = asked.form
        rows_written = formats.export(asked.export, entries, form)
        document["exported"] = {"file": str(asked.export), "format": form, "rows": rows_written}
        terminal.say("rank.exported", rows=rows_written, file=asked.export)

    def shown(figure: dict[str, Any]) -> str:
        return "–" if figure["value"] is None else number(figure["value"], terminal.lang, 2)

    rows = [(a["name"], str(a["rankings"]), shown(a["with_oneself"])) for a in document["annotators"]]
    columns = (terminal.words("rank.who"), terminal.words("rank.rankings"), terminal.words("rank.with_oneself"))
    if rows:
        print_table(terminal.console, "", columns, rows)
    for pair in document["between"]:
        a, b = pair["annotators"]
        if pair["tau_b"]["value"] is not None:
            terminal.say("rank.between", a=a, b=b, tau=shown(pair["tau_b"]))
    tell_habits(terminal, document["annotators"])
    terminal.document(document)


def tell_habits(terminal: Terminal, annotators: Sequence[Mapping[str, Any]]) -> None:
    """Who puts what is shown first on top more often than chance explains, and mostly."""
    for one in annotators:
        if one["always_first"]:
            habit = one["first_shown"]
            terminal.say("rank.always_first", who=one["name"], times=habit["times"], of=habit["of"])
