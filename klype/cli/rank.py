"""``klype rank``: a run's answers put in order by you, by simulated annotators or by a model that judges."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from klype.cli import options as o
from klype.cli.exits import INTERRUPTED
from klype.cli.terminal import PlainProgress, Terminal, announce_start, print_table
from klype.errors import KlypeError, UsageError
from klype.option import Option, Options, a_file
from klype.words import number

if TYPE_CHECKING:
    from klype.preferences.store import Store


@dataclass(frozen=True, kw_only=True)
class RankOptions(Options):
    """``klype rank``: who ranks which answers, and the files that rankings come from or go to."""

    run: o.ModelName
    simulate: Annotated[bool, Option("Simulated annotators rank, instead of you.")] = False
    taste: Annotated[
        tuple[str, ...], Option("right=2,polite=.7,concise=0,word=.04. Repeated: annotators who disagree.")
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
    a_file("--import", asked.import_)
    with announce_start(terminal):
        from klype.preferences import formats
        from klype.preferences.database import DamagedError
        from klype.preferences.store import Store, whole_entries
        from klype.runs import rankers, ranking
        from klype.sources.model_files import shorten_path
        from klype.sources.opening import find_model

    if asked.form not in formats.FORMATS:
        raise UsageError(f"--format: there is no format {asked.form}.", f"Use {', '.join(formats.FORMATS)}.")
    if asked.judge and (asked.simulate or asked.taste):
        raise UsageError("Either --simulate or --judge ranks, not both.")
    rankers.check_noise(asked.noise)
    if asked.steps < 0 or asked.repeats < 0:
        raise UsageError("--steps and --repeats should be 0 or more.")
    if asked.n < 1 or any(not 0 <= t <= 10 for t in asked.temperature):
        raise UsageError("-n should be 1 or more, and --temperature from 0 to 10.")
    run = find_model(asked.run).run
    if run is None and not asked.store:
        raise UsageError(f"{asked.run} belongs to no run, so that it has no store.", "Name one with --store.")
    folder = None if run is None else run / "rank"
    if folder is not None and not asked.store and asked.import_ is None and not ranking.has_store(folder):
        name = shorten_path(folder.parent)
        raise KlypeError(
            f"{name} has no answers to rank.", f"Make a run that has some: klype train rank --from {name}."
        )
    try:
        with Store.open(asked.store) if folder is None or asked.store else ranking.open_store(folder) as store:
            tell_agreement(store, terminal, asked, rank(store, terminal, asked, run))
    except DamagedError as damaged:
        if asked.export is None:
            raise
        entries, lost = whole_entries(asked.store or f"{folder}/{ranking.STORE}")
        formats.export(asked.export, entries, cast(Any, asked.form))
        kept = f"What is whole of it, {len(entries)} rankings, is in {asked.export}; {lost} are damaged."
        raise KlypeError(
            damaged.message, f"{kept} Put the store away, and take them into a new one with --import {asked.export}."
        ) from None


def rank(store: "Store", terminal: Terminal, asked: RankOptions, run: Path | None) -> int:
    """Adds the answers of --from, then rankings by --import, --simulate, --judge or the user; returns the number of
    new rankings."""
    from klype.device import pick_device
    from klype.preferences import formats
    from klype.preferences.annotators import model_scorer
    from klype.runs import rankers
    from klype.runs.annotator_session import AnnotatorSession, rank_by_hand
    from klype.runs.ranking import DrawSettings, draw_into, prioritise
    from klype.sources.opening import open_model

    settings = DrawSettings(asked.temperature or (1.0,), asked.n, most=asked.steps, seed=asked.seed)
    for name in asked.from_:
        new = draw_into(store, name, open_model(name, device=asked.device).source, settings)
        terminal.say("rank.drawn", model=name, new=new)
    if asked.active and run is None:
        raise UsageError("--active needs a run, whose fine-tuned model reads the answers.", "Give a run's folder.")
    first = prioritise(store, run, asked.seed, pick_device(asked.device)) if asked.active and run is not None else []
    if asked.import_ is not None:
        return store.put(formats.read(asked.import_))
    if asked.simulate or asked.taste:
        world, tastes = rankers.world_of(run), asked.taste or ("",)
        name = asked.annotator if len(tastes) == 1 else ""
        annotators = [rankers.by_taste(world, text, asked.noise, name) for text in tastes]
        rankers.check_store(store)
        # another seed each, so that they do not make the same errors
        return sum(
            rankers.rank_all(store, by, "simulated", asked.steps, seed, first)
            for seed, by in enumerate(annotators, asked.seed)
        )
    if not asked.judge and (asked.export is not None or asked.from_):
        return 0
    rankers.check_store(store)
    if asked.judge:
        by = rankers.by_model(model_scorer(open_model(asked.judge, device=asked.device).source))
        return rankers.rank_all(store, by, "model", asked.steps, asked.seed, first)
    # the id tells apart two sittings of one person at the same time, each with its own claimed questions
    session = AnnotatorSession(store, asked.annotator or "you", uuid.uuid4().hex, again_every=asked.repeats)
    say = PlainProgress(terminal.console, terminal.lang)
    ask = lambda prompt: terminal.console.input(prompt, markup=False)
    try:
        return rank_by_hand(session, say, ask, asked.steps, terminal.lang)
    except KeyboardInterrupt:
        raise RankingInterrupted("Interrupted.", "The same command goes on from there.") from None


class RankingInterrupted(KlypeError):  # noqa: N818 - an end that was asked for
    """Ctrl-C while ranking by hand; every ranking made so far is saved."""

    exit_code = INTERRUPTED


def tell_agreement(store: "Store", terminal: Terminal, asked: RankOptions, done: int) -> None:
    from klype.preferences import formats
    from klype.runs import rankers

    entries, w = store.entries(), terminal.words
    document: dict[str, Any] = {"run": asked.run, "store": store.place, "new": done, "entries": len(entries)}
    document |= rankers.summary(entries)
    if asked.export is not None:
        rows_written = formats.export(asked.export, entries, cast(Any, asked.form))
        document["exported"] = {"file": str(asked.export), "format": asked.form, "rows": rows_written}
        terminal.say("rank.exported", rows=rows_written, file=asked.export)

    def shown(figure: dict[str, Any]) -> str:
        return "–" if figure["value"] is None else number(figure["value"], terminal.lang, 2)

    if rows := [(a["name"], str(a["rankings"]), shown(a["with_oneself"])) for a in document["annotators"]]:
        columns = [w(f"rank.{column}") for column in ("who", "rankings", "with_oneself")]
        print_table(terminal.console, "", columns, rows)
    for pair in document["between"]:
        if pair["tau_b"]["value"] is not None:
            a, b = pair["annotators"]
            terminal.say("rank.between", a=a, b=b, tau=shown(pair["tau_b"]))
    tell_habits(terminal, document["annotators"])
    terminal.document(document)


def tell_habits(terminal: Terminal, annotators: Sequence[Mapping[str, Any]]) -> None:
    """Names the annotators who rank first what was shown first, mostly and more often than chance explains."""
    for one in annotators:
        if one["always_first"]:
            habit = one["first_shown"]
            terminal.say("rank.always_first", who=one["name"], times=habit["times"], of=habit["of"])
