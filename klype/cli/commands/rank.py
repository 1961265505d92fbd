"""``klype rank``: a run's answers put in order by you, by simulated annotators or by a model that judges."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.guard import INTERRUPTED
from klype.cli.terminal import Terminal
from klype.errors import KlypeError, UsageError

if TYPE_CHECKING:
    from klype.preferences.store import Store
    from klype.sources.find import Found


def command(
    terminal: Terminal,
    run: o.Model,
    simulate: Annotated[bool, typer.Option("--simulate", help="Simulated annotators rank, instead of you.")] = False,
    taste: Annotated[
        list[str] | None,
        typer.Option("--taste", help="right=2,polite=.7,concise=0,word=.04. Repeated: annotators who disagree."),
    ] = None,
    noise: Annotated[float, typer.Option("--noise", help="How often a simulated annotator swaps neighbours.")] = 0.1,
    judge: Annotated[str, typer.Option("--judge", help="A MODEL that ranks, instead of you.")] = "",
    from_: Annotated[
        list[str] | None, typer.Option("--from", help="First add answers of this MODEL. May be repeated.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="Of --from's answers. May be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many answers of --from a temperature.")] = 4,
    active: Annotated[
        bool, typer.Option("--active", help="First the questions on which a reward model is the least sure.")
    ] = False,
    store: Annotated[str, typer.Option("--store", help="A file or postgresql:// url.", show_default="RUN's own")] = "",
    annotator: Annotated[str, typer.Option("--annotator", help="Who ranks.", show_default="you")] = "",
    steps: Annotated[int, typer.Option("--steps", help="How many questions (0: all).")] = 0,
    repeats: Annotated[int, typer.Option("--repeats", help="Ask every N-th question twice (0: never).")] = 10,
    export: Annotated[Path | None, typer.Option("--export", help="Write the rankings to a JSONL file.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of --export: ranked, trl, sharegpt or alpaca.")] = "ranked",
    import_: Annotated[Path | None, typer.Option("--import", help="Add the rankings of a JSONL file.")] = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
) -> None:
    """Rank the answers in a run's store (or bring rankings in and out), and see how well the rankers agree."""
    from klype.preferences.database import DamagedError
    from klype.preferences.formats import FORMATS
    from klype.preferences.store import Store
    from klype.runs import ranking
    from klype.sources.find import find_model

    if form not in FORMATS:
        raise UsageError(f"--format: there is no format {form}.", f"Use {', '.join(FORMATS)}.")
    if not 0 <= noise < 0.5:
        raise UsageError(f"--noise should be from 0 to below .5 (it is {noise}).")
    if judge and (simulate or taste):
        raise UsageError("Either --simulate or --judge ranks, not both.")
    if steps < 0 or repeats < 0:
        raise UsageError("--steps and --repeats should be 0 or more.")
    if n < 1 or any(not 0 <= t <= 10 for t in temperature or ()):
        raise UsageError("-n should be 1 or more, and --temperature from 0 to 10.")
    found = find_model(run)
    if found.run is None and not store:
        raise UsageError(f"{run} belongs to no run, so that it has no store.", "Name one with --store.")
    try:
        with Store.open(store) if store else ranking.open_store(_folder(found)) as opened:
            done = 0
            if from_:
                _drawn(opened, terminal, (from_, device), (tuple(temperature or (1.0,)), n, steps, seed))
            first = _first(opened, found, seed) if active else []
            if import_ is not None:
                from klype.preferences import formats

                done = opened.put(formats.read(import_))
            elif simulate or taste:
                done = _simulated(opened, found, (taste or [""], noise, annotator), (steps, seed, first))
            elif judge:
                done = _judged(opened, (judge, device), (steps, seed, first))
            elif export is None and not from_:
                done = _by_hand(opened, terminal, annotator or "you", steps, repeats)
            _tell(opened, terminal, {"run": run, "store": opened.place, "new": done}, export, form)
    except DamagedError as damaged:
        if export is None:
            raise
        _salvaged(damaged, store or _folder(found) / ranking.STORE, export, form)


def _salvaged(damaged: KlypeError, place: str | Path, export: Path, form: Any) -> None:
    """Writes what is whole, and says so: it is a failure all the same."""
    from klype.preferences import formats
    from klype.preferences.salvage import whole_entries

    entries, lost = whole_entries(place)
    formats.export(export, entries, form)
    kept = f"What is whole of it, {len(entries)} rankings, is in {export}; {lost} are damaged."
    raise KlypeError(
        damaged.message, f"{kept} Put the store away, and take them into a new one with --import {export}."
    )


def _folder(found: Found) -> Path:
    assert found.run is not None
    return found.run / "rank"


def _drawn(
    store: Store, terminal: Terminal, whose: tuple[list[str], str], how: tuple[tuple[float, ...], int, int, int]
) -> None:
    """``whose``: the models, and where they compute."""
    from klype.runs.drawing import DrawSettings, draw_into
    from klype.sources.opening import open_model

    (names, device), (temperatures, n, steps, seed) = whose, how
    settings = DrawSettings(temperatures, n, most=steps, seed=seed)
    for name in names:
        new = draw_into(store, name, open_model(name, device=device).source, settings)
        terminal.say("rank.drawn", model=name, new=new)


def _first(store: Store, found: Found, seed: int) -> list[int]:
    if found.run is None:
        raise UsageError("--active needs a run, whose fine-tuned model reads the answers.", "Give a run's folder.")
    from klype.runs.choosing import prioritise

    return prioritise(store, found.run, seed)


def _simulated(store: Store, found: Found, how: tuple[list[str], float, str], which: tuple[int, int, list[int]]) -> int:
    from klype.preferences.tastes import taste
    from klype.runs import rankers

    tastes, noise, name = how
    steps, seed, first = which
    world = rankers.world_of(found.run)
    wanted = [taste(text) for text in tastes]
    rankers.checked(store)
    done = 0
    for number, one in enumerate(wanted):
        called = rankers.label(name if len(wanted) == 1 else "", one)
        rank = rankers.by_taste(one, world.judge, noise, called)
        done += rankers.rank_all(store, rank, "simulated", steps, seed + number, first)
    return done


def _judged(store: Store, judge: tuple[str, str], which: tuple[int, int, list[int]]) -> int:
    from klype.preferences.tastes import ModelJudge
    from klype.runs import rankers
    from klype.sources.opening import open_model

    rankers.checked(store)
    steps, seed, first = which
    source = open_model(judge[0], device=judge[1]).source
    return rankers.rank_all(store, rankers.by_model(ModelJudge(source)), "model", steps, seed, first)


def _by_hand(store: Store, terminal: Terminal, name: str, steps: int, repeats: int) -> int:
    from klype.cli.progress import Plain
    from klype.runs import rankers
    from klype.runs.human import Sitting, rank_by_hand

    rankers.checked(store)
    sitting = Sitting(name, steps, again_every=repeats, lang=terminal.lang, id=uuid.uuid4().hex)
    say = Plain(terminal.console, terminal.lang, time.monotonic)
    try:
        return rank_by_hand(store, sitting, say, lambda prompt: terminal.console.input(prompt, markup=False))
    except KeyboardInterrupt:
        raise BrokenOff("Interrupted.", "The same command goes on from there.") from None


class BrokenOff(KlypeError):  # noqa: N818 - an end that was asked for
    """Stopped by Ctrl-C, with everything that was ranked saved."""

    exit_code = INTERRUPTED


def _tell(store: Store, terminal: Terminal, about: dict[str, Any], export: Path | None, form: Any) -> None:
    from klype.cli.progress import print_table
    from klype.preferences import formats
    from klype.runs import rankers
    from klype.words import number

    entries = store.entries()
    document = {**about, "entries": len(entries), **rankers.summary(entries)}
    if export is not None:
        document["exported"] = {"file": str(export), "format": form, "rows": formats.export(export, entries, form)}
        terminal.say("rank.exported", rows=document["exported"]["rows"], file=export)

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
