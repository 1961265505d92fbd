"""All measures in one table. A new one is a row of MEASURES: its estimator, from Evidence to Figure, and its words.

``measure(evidence)`` gives every figure that the evidence allows. Command line, API, report and studio show what the
table has, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from klype.examine import estimators, judged
from klype.examine.evidence import Evidence
from klype.values import Figure

RunPart = Literal["stages", "temperatures"]
NOT_IN_RUNS: tuple[RunPart, ...] = ()
OF_STAGES: tuple[RunPart, ...] = ("stages",)
AT_TEMPERATURES: tuple[RunPart, ...] = ("temperatures",)


@dataclass(frozen=True, slots=True)
class Measure:
    """``title``, and ``help`` (what the figure means, in one line), are by language; the unit's words are in UNITS.

    ``function`` estimates it; None where a run measures it itself. ``judge``: who decides. "" nobody has to,
    "meaning" the evidence's judge, "text" equality, "truth" p itself. ``runs``: in which parts of a run's report it
    stands (what its evidence does not allow is left out, as everywhere).
    """

    name: str
    unit: str
    better: Literal["more", "less", "neither"]
    title: Mapping[str, str]
    help: Mapping[str, str] = field(default_factory=dict)
    function: Callable[[Evidence], Figure] | None = None
    judge: str = ""
    runs: tuple[RunPart, ...] = ("stages", "temperatures")


def in_runs(part: RunPart) -> frozenset[str]:
    """The measures that stand in one part of a run's report: of each stage, or of answers at several temperatures."""
    return frozenset(row.name for row in KNOWN.values() if part in row.runs)


def measure(evidence: Evidence, only: Collection[str] | None = None) -> dict[str, Figure]:
    """Every measure (of ``only`` these) that the evidence allows, by name; what has nothing to be measured from is left
    out.
    """
    rows = [row for row in KNOWN.values() if only is None or row.name in only]
    figures = {row.name: row.function(evidence) for row in rows if row.function is not None}
    return {
        name: figure for name, figure in figures.items() if figure.value is not None or figure.why != estimators.NOTHING
    }


MEASURES: tuple[Measure, ...] = (
    Measure("decided", "share", "more",
        {"en": "Decided", "nb": "Avgjorte"},
        {"en": "Share of answers of which the judge could say whether they are right.",
         "nb": "Andelen svar der dommeren kunne avgjøre om de er riktige."},
        partial(judged.decided, yes=True), "meaning", runs=OF_STAGES),
    Measure("right", "share", "more",
        {"en": "Right", "nb": "Riktige"},
        {"en": "Share of the decided answers that mean the right thing, by the judge named.",
         "nb": "Andelen av de avgjorte svarene som har riktig betydning, etter dommeren som er nevnt."},
        partial(judged.verdict, name="right"), "meaning"),
    Measure("undecided", "share", "less",
        {"en": "Undecided", "nb": "Uavgjorte"},
        {"en": "Share of answers that the judge could not decide.", "nb": "Andelen svar dommeren ikke kunne avgjøre."},
        partial(judged.decided, yes=False), "meaning", runs=OF_STAGES),
    Measure("word_for_word", "share", "more",
        {"en": "Word for word", "nb": "Ord for ord"},
        {"en": "Share of answers that equal a reference to the letter.",
         "nb": "Andelen svar som er bokstavelig lik en fasit."},
        partial(judged.verdict, name="word_for_word"), "text"),
    Measure("polite", "share", "more",
        {"en": "Polite", "nb": "Høflige"},
        {"en": "Share of answers with a courtesy in them.", "nb": "Andelen svar med en høflighetsfrase."},
        partial(judged.verdict, name="polite"), "meaning"),
    Measure("concise", "share", "more",
        {"en": "Concise", "nb": "Kortfattede"},
        {"en": "Share of answers without needless words.", "nb": "Andelen svar uten unødige ord."},
        partial(judged.verdict, name="concise"), "meaning", runs=OF_STAGES),
    Measure("annotator", "points", "more",
        {"en": "The annotator’s score", "nb": "Poeng fra den som rangerer"},
        {"en": "Mean points by the annotator’s own taste.",
         "nb": "Gjennomsnittlige poeng etter smaken til den som rangerer."},
        judged.score, "meaning"),
    Measure("s", "share a word", "more",
        {"en": "S, probability on possible words", "nb": "S, sannsynlighet på mulige ord"},
        {"en": "How much of the probability falls on words that can follow, on the model’s own right beginnings.",
         "nb": "Hvor mye av sannsynligheten som ligger på ord som kan komme, etter modellens egne riktige "
               "begynnelser."},
        estimators.s_own, "truth", runs=AT_TEMPERATURES),
    Measure("survival", "share of answers", "more",
        {"en": "Without error", "nb": "Uten feil"},
        {"en": "Share of answers without an error in their first twenty words.",
         "nb": "Andelen svar uten feil i de første tjue ordene."},
        partial(estimators.surviving, curve="r"), "truth", runs=NOT_IN_RUNS),
    Measure("would_survive", "share of answers", "more",
        {"en": "Without error, had they gone on", "nb": "Uten feil, hadde de fortsatt"},
        {"en": "The same had no answer ended before; the measure “K compared with independence” compares it with what "
               "errors that depend on the position only would leave.",
         "nb": "Det samme om ingen svar hadde sluttet før; målet «K mot uavhengighet» sammenligner det med det som "
               "feil ville latt være igjen om de bare avhang av plassen."},
        partial(estimators.surviving, curve="k"), "truth", runs=NOT_IN_RUNS),
    Measure("s_corpus", "share a word", "more",
        {"en": "S on the corpus", "nb": "S i tekstsamlingen"},
        {"en": "The same on beginnings taken from text instead of the model’s own.",
         "nb": "Det samme, men etter begynnelser hentet fra tekst i stedet for modellens egne."},
        estimators.s_of_corpus, "truth", runs=NOT_IN_RUNS),
    Measure("kl", "nats a word", "less",
        {"en": "KL to the truth", "nb": "KL til fasiten"},
        {"en": "Nats per word lost by believing the model instead of the truth, on what the truth itself "
               "says; 0 is perfect.",
         "nb": "Så mange nat per ord taper en på å tro på modellen i stedet for fasiten, målt på det fasiten selv "
               "sier; 0 er perfekt."},
        partial(estimators.of_truth, name="kl"), "truth", runs=NOT_IN_RUNS),
    Measure("kl_acceptable", "nats a word", "less",
        {"en": "KL among possible words", "nb": "KL blant mulige ord"},
        {"en": "How wrongly the probability is shared out among the words that can follow.",
         "nb": "Hvor skjevt sannsynligheten er fordelt mellom ordene som kan komme."},
        partial(estimators.of_truth, name="kl_acceptable"), "truth", runs=NOT_IN_RUNS),
    Measure("jensen_shannon", "nats a word", "less",
        {"en": "Jensen–Shannon divergence", "nb": "Jensen–Shannon-divergens"},
        {"en": "A symmetric distance to the truth, between 0 and 0.69 nats.",
         "nb": "En symmetrisk avstand til fasiten, mellom 0 og 0,69 nat."},
        partial(estimators.of_truth, name="jensen_shannon"), "truth", runs=NOT_IN_RUNS),
    Measure("overlap", "share", "more",
        {"en": "Overlap with the truth", "nb": "Overlapp med fasiten"},
        {"en": "Probability that the two distributions share; 1 means that they are the same.",
         "nb": "Sannsynlighet de to fordelingene har felles; 1 betyr at de er like."},
        partial(estimators.of_truth, name="overlap"), "truth", runs=NOT_IN_RUNS),
    Measure("log_score", "nats a word", "less",
        {"en": "Log score", "nb": "Logaritmisk skår"},
        {"en": "Mean surprise at the true next word; the truth itself has the least possible.",
         "nb": "Gjennomsnittlig overraskelse over det riktige neste ordet; fasiten selv har den minste som er mulig."},
        partial(estimators.of_truth, name="log_score"), "truth", runs=NOT_IN_RUNS),
    Measure("brier", "squared probability", "less",
        {"en": "Brier score", "nb": "Brier-skår"},
        {"en": "Squared distance between what was said and what came; the truth itself has the least possible.",
         "nb": "Kvadrert avstand mellom det som ble sagt og det som kom; fasiten selv har den minste som er mulig."},
        partial(estimators.of_truth, name="brier"), "truth", runs=NOT_IN_RUNS),
    Measure("repetition", "share of 4-grams", "less",
        {"en": "Repetition", "nb": "Gjentakelse"},
        {"en": "Share of four-word sequences that had been used before in the same answer.",
         "nb": "Andelen sekvenser på fire ord som er brukt før i samme svar."},
        estimators.repeats, runs=AT_TEMPERATURES),
    Measure("loops", "share of words", "less",
        {"en": "Loops", "nb": "Går i ring"},
        {"en": "Share of an answer’s words, at its end, that only repeat the words just before them.",
         "nb": "Andelen av svarets ord, på slutten, som bare gjentar ordene rett før."},
        estimators.loops, runs=NOT_IN_RUNS),
    Measure("repetition_beyond", "difference of shares", "less",
        {"en": "Repetition beyond the language’s", "nb": "Gjentakelse ut over språkets"},
        {"en": "The difference from that share in the language’s own answers to the same questions; 0: as the "
               "language does.",
         "nb": "Den andelen minus andelen i språkets egne svar på de samme spørsmålene; 0 er slik språket selv gjør."},
        estimators.repeats_beyond, "truth", runs=NOT_IN_RUNS),
    Measure("distinct", "share of 2-grams", "neither",
        {"en": "Different word pairs", "nb": "Ulike ordpar"},
        {"en": "Different word pairs among all word pairs of the answers to a question.",
         "nb": "Ulike ordpar blant alle ordparene i svarene på et spørsmål."},
        estimators.distinct, runs=AT_TEMPERATURES),
    Measure("same_text", "share of pairs", "neither",
        {"en": "Same text twice", "nb": "Samme tekst to ganger"},
        {"en": "Probability that two answers to one question are identical.",
         "nb": "Sannsynligheten for at to svar på samme spørsmål er bokstavelig like."},
        estimators.same_text, runs=AT_TEMPERATURES),
    Measure("same_meaning", "share of pairs", "neither",
        {"en": "Same meaning twice", "nb": "Samme mening to ganger"},
        {"en": "Probability that two answers to one question mean the same.",
         "nb": "Sannsynligheten for at to svar på ett spørsmål betyr det samme."},
        judged.same_meaning, "meaning", runs=NOT_IN_RUNS),
    Measure("common_prefix", "words", "neither",
        {"en": "Common beginning", "nb": "Felles begynnelse"},
        {"en": "How many first words two answers to one question share.",
         "nb": "Hvor mange av de første ordene to svar på ett spørsmål har felles."},
        estimators.common_prefix, runs=NOT_IN_RUNS),
    Measure("answer_entropy", "nats", "neither",
        {"en": "Entropy of answers", "nb": "Svarenes entropi"},
        {"en": "How uncertain the whole answer is, word for word, in nats; 0 means that there is only one.",
         "nb": "Hvor usikkert hele svaret er, ord for ord, i nat; 0 betyr at det bare finnes ett."},
        estimators.answer_entropy),
    Measure("meaning_entropy", "nats", "neither",
        {"en": "Entropy of meanings", "nb": "Meningenes entropi"},
        {"en": "How uncertain the meaning is, in nats, estimated from draws and corrected for what they missed.",
         "nb": "Hvor usikker meningen er, i nat, anslått fra trekninger med tillegg for det de ikke viste."},
        judged.meaning_entropy, "meaning", runs=NOT_IN_RUNS),
    Measure("unseen", "share", "less",
        {"en": "Not seen", "nb": "Ikke sett"},
        {"en": "Probability of the answers that none of the draws showed.",
         "nb": "Sannsynligheten for svarene som ingen av trekningene viste."},
        estimators.unseen, runs=NOT_IN_RUNS),
    Measure("answer_mass", "share", "neither",
        {"en": "The most probable answer", "nb": "Det mest sannsynlige svaret"},
        {"en": "Probability of the most probable whole answer, between certain bounds.",
         "nb": "Sannsynligheten for det mest sannsynlige hele svaret, mellom sikre grenser."},
        estimators.answer_mass, runs=NOT_IN_RUNS),
    Measure("unexplored", "share", "less",
        {"en": "Unexplored", "nb": "Ikke utforsket"},
        {"en": "Probability of all answers that the tree has not reached.",
         "nb": "Sannsynligheten for alle svar som treet ikke har nådd."},
        estimators.unexplored, runs=NOT_IN_RUNS),
    Measure("tree_entropy", "nats", "neither",
        {"en": "Entropy of meanings, exact", "nb": "Meningenes entropi, eksakt"},
        {"en": "How uncertain the meaning is, in nats, between certain bounds from the tree of answers.",
         "nb": "Hvor usikker meningen er, i nat, mellom sikre grenser fra treet av svar."},
        judged.tree_entropy, "meaning", runs=NOT_IN_RUNS),
    Measure("independence", "difference of shares", "neither",
        {"en": "K compared with independence", "nb": "K mot uavhengighet"},
        {"en": "K minus what it would be if errors depended on the position only: above 0, some answers err more "
               "than others at the same word; 0 is independence.",
         "nb": "K minus det den ville vært med hver plass’ egen feilandel og ingen annen avhengighet: Over 0 tar "
               "noen svar oftere feil enn andre ved samme ord; 0 er uavhengighet."},
        partial(estimators.surviving, curve="difference"), "truth", runs=NOT_IN_RUNS),
    Measure("weibull_shape", "shape", "neither",
        {"en": "Shape of the error curve", "nb": "Feilkurvens form"},
        {"en": "1: an error is as likely at every word; below 1: more likely at the start; above 1: later.",
         "nb": "1: feil er like sannsynlig ved hvert ord; under 1: mest sannsynlig i starten; over 1: senere."},
        estimators.shape, "truth", runs=NOT_IN_RUNS),
    Measure("feedback", "difference of shares", "less",
        {"en": "Feedback of an error", "nb": "Tilbakevirkning av en feil"},
        {"en": "How much more likely an error is right after a forced error than after a forced right word, which "
               "is usually much more likely itself.",
         "nb": "Hvor mye mer sannsynlig en feil er rett etter en påtvunget feil enn etter et påtvunget riktig ord, "
               "som oftest selv er mye mer sannsynlig."},
        partial(estimators.feedback, part="difference"), "truth", runs=NOT_IN_RUNS),
    Measure("feedback_ratio", "times as likely", "less",
        {"en": "Feedback, as a ratio", "nb": "Tilbakevirkning, som forhold"},
        {"en": "How many times as likely an error is right after a forced error.",
         "nb": "Hvor mange ganger så sannsynlig en feil er rett etter en påtvunget feil."},
        partial(estimators.feedback, part="ratio"), "truth", runs=NOT_IN_RUNS),
    Measure("feedback_rare", "difference of shares", "less",
        {"en": "… compared with an equally rare right word", "nb": "… mot et like sjeldent riktig ord"},
        {"en": "The same, compared with a right word about as likely (within a factor of 3), errors "
               "counted by edit distance: the cautious figure.",
         "nb": "Det samme mot et riktig ord med sannsynlighet innenfor en faktor på 3 av det gales, der feil telles "
               "etter redigeringsavstand: det forsiktige tallet."},
        partial(estimators.feedback, part="cautious"), "truth", runs=NOT_IN_RUNS),
    Measure("feedback_meaning", "difference of shares", "less",
        {"en": "Feedback on the meaning", "nb": "Tilbakevirkning på meningen"},
        {"en": "How much rarer right answers are when one of their words is replaced by another that the model finds "
               "about as likely.",
         "nb": "Hvor mye sjeldnere svarene er riktige når ett av ordene byttes med et annet som modellen finner "
               "omtrent like sannsynlig."},
        judged.replaced, "meaning", runs=NOT_IN_RUNS),
    Measure("recovery", "share of answers", "more",
        {"en": "Recovery", "nb": "Henter seg inn"},
        {"en": "Share of answers without a further error in the three words after a forced one.",
         "nb": "Andelen svar uten en ny feil i de tre ordene etter en påtvunget feil."},
        partial(estimators.feedback, part="recovery", distance=3), "truth", runs=NOT_IN_RUNS),
    Measure("excess_error", "% more", "less",
        {"en": "Excess error of its own text", "nb": "Ekstra feil i egen tekst"},
        {"en": "How much farther from the truth the model is on its own beginnings than on true ones, in percent.",
         "nb": "Hvor mye lenger fra sannheten modellen er etter egne begynnelser enn etter sanne, i prosent."},
        estimators.excess, "truth", runs=NOT_IN_RUNS),
    Measure("calibration", "probability", "less",
        {"en": "Calibration error", "nb": "Kalibreringsfeil"},
        {"en": "How far the probabilities it states are from how often things come true (root mean square).",
         "nb": "Hvor langt sannsynlighetene den oppgir er fra hvor ofte ting slår til (kvadratisk middel)."},
        estimators.calibration, "truth", runs=NOT_IN_RUNS),
    Measure("best_temperature", "temperature", "neither",
        {"en": "Most honest temperature", "nb": "Ærligste temperatur"},
        {"en": "The temperature at which its probabilities fit the truth best; 1 means that they do as they are.",
         "nb": "Temperaturen der sannsynlighetene passer best med sannheten; 1 betyr at de gjør det som de er."},
        estimators.temperature, "truth", runs=NOT_IN_RUNS),
    Measure("selective", "share of what knowing gains", "more",
        {"en": "Knows when it is wrong", "nb": "Vet når den tar feil"},
        {"en": "What is gained by keeping the answers it finds likely: 1 as good as knowing, 0 as good as chance.",
         "nb": "Hva man vinner på å beholde svarene den selv finner sannsynlige: 1 som å vite, 0 som tilfeldig."},
        judged.selective, "meaning", runs=NOT_IN_RUNS),
    Measure("fork", "share of answers", "neither",
        {"en": "Decided at one word", "nb": "Avgjort ved ett ord"},
        {"en": "Share of answers whose meaning one word decided, beyond what chance would show.",
         "nb": "Andelen svar der ett ord avgjorde meningen, ut over det tilfeldigheter ville vist."},
        judged.forked, "meaning", runs=NOT_IN_RUNS),
    Measure("fork_word", "word", "neither",
        {"en": "The word that decided", "nb": "Ordet som avgjorde"},
        {"en": "Mean position of the word that decided, where one did.",
         "nb": "Gjennomsnittlig plass for ordet som avgjorde, der ett gjorde det."},
        judged.fork_word, "meaning", runs=NOT_IN_RUNS),
    Measure("copied", "share of words", "less",
        {"en": "Learnt by heart", "nb": "Lært utenat"},
        {"en": "Share of what is written that stands word for word in the training text.",
         "nb": "Andelen av det som skrives, som står ordrett i treningsteksten."},
        estimators.copied, "text", runs=NOT_IN_RUNS),
    Measure("passes", "passes", "less",
        {"en": "Passes through the model", "nb": "Gjennomløp av modellen"},
        {"en": "How often the whole model is run for an answer.",
         "nb": "Hvor mange ganger hele modellen gjennomløpes for ett svar."},
        partial(estimators.cost, name="passes", unit="passes"), runs=NOT_IN_RUNS),
    Measure("tokens", "tokens", "neither",
        {"en": "Tokens", "nb": "Tokener"},
        {"en": "Length of an answer in tokens.", "nb": "Lengden av et svar i tokener."},
        partial(estimators.cost, name="tokens", unit="tokens"), runs=NOT_IN_RUNS),
    Measure("flops", "FLOPs", "less",
        {"en": "FLOPs", "nb": "FLOP"},
        {"en": "Additions and multiplications for an answer.", "nb": "Addisjoner og multiplikasjoner for ett svar."},
        partial(estimators.cost, name="flops", unit="FLOPs"), runs=NOT_IN_RUNS),
    Measure("bytes_moved", "bytes", "less",
        {"en": "Bytes moved", "nb": "Byte flyttet"},
        {"en": "Read and written by the model for an answer alone: its weights once per pass, and what it remembers of "
               "every token.",
         "nb": "Lest og skrevet av modellen for ett svar alene: vektene én gang per gjennomløp, og det den husker av "
               "hvert token."},
        partial(estimators.cost, name="bytes_moved", unit="bytes"), runs=NOT_IN_RUNS),
    Measure("seconds", "s", "less",
        {"en": "Time", "nb": "Tid"},
        {"en": "Seconds for an answer.", "nb": "Sekunder for ett svar."},
        partial(estimators.cost, name="seconds", unit="s"), runs=NOT_IN_RUNS),
    Measure("joules", "J", "less",
        {"en": "Energy", "nb": "Energi"},
        {"en": "Joules for an answer.", "nb": "Joule for ett svar."},
        partial(estimators.cost, name="joules", unit="J"), runs=NOT_IN_RUNS),
    Measure("joules_per_right", "J per right answer", "less",
        {"en": "Energy for a right answer", "nb": "Energi for et riktig svar"},
        {"en": "All energy divided by the number of right answers.", "nb": "All energi delt på antall riktige svar."},
        judged.joules_per_right, "meaning", runs=NOT_IN_RUNS),
)  # fmt: skip
# What only a run knows of its own models.
OF_RUNS: tuple[Measure, ...] = (
    Measure("right_fixed", "share", "more",
        {"en": "Right about what is always true", "nb": "Riktige om det som alltid er sant"}),
    Measure("kl_reference", "nats a word", "less", {"en": "KL to the starting point", "nb": "KL til utgangspunktet"}),
    Measure("pair_accuracy", "share of pairs", "more", {"en": "Reward model", "nb": "Belønningsmodell"}),
    Measure("ceiling", "share of pairs", "neither", {"en": "Annotator itself", "nb": "Den som rangerer"}),
    Measure("retrieval_hard", "share", "more", {"en": "Hard stories", "nb": "Vanskelige historier"}),
    Measure("retrieval_text", "share", "more", {"en": "Retrieval from text", "nb": "Gjenfinning i tekst"}),
    Measure("bits_per_byte", "bits per byte", "less", {"en": "Bits per byte", "nb": "Bit per byte"}),
    Measure("loss", "nats a token", "less", {"en": "Loss", "nb": "Tap"}),
    Measure("held_out", "nats a token", "less", {"en": "Loss on held-out text", "nb": "Tap på tekst holdt utenfor"}),
    Measure("reward", "points", "more", {"en": "Reward", "nb": "Belønning"}),
    Measure("score", "points", "more", {"en": "True score", "nb": "Sann poengsum"}),
    Measure("well_formed", "share", "more",
        {"en": "Well-formed about unknown words", "nb": "Velformede svar om ukjente ord"},
        function=partial(judged.verdict, name="well_formed"), runs=OF_STAGES),
    Measure("right_trained", "share", "more",
        {"en": "Right about practised words", "nb": "Riktige svar om innøvde ord"}),
    Measure("real_words", "share of words", "more", {"en": "Real words", "nb": "Ord som finnes"}),
)  # fmt: skip
KNOWN: Mapping[str, Measure] = {row.name: row for row in (*MEASURES, *OF_RUNS)}
# Their words by language, where they are not the unit itself.
UNITS: Mapping[str, Mapping[str, str]] = {
    "points": {"nb": "poeng"},
    "share a word": {"en": "share per word", "nb": "andel per ord"},
    "share of answers": {"nb": "andel av svarene"},
    "nats a word": {"en": "nats per word", "nb": "nat per ord"},
    "squared probability": {"nb": "sannsynlighet i andre"},
    "share of 4-grams": {"en": "share of word sequences", "nb": "andel av ordrekkene"},
    "share of words": {"nb": "andel av ordene"},
    "difference of shares": {"nb": "forskjell i andel"},
    "share of 2-grams": {"en": "share of word sequences", "nb": "andel av ordrekkene"},
    "share of pairs": {"nb": "andel av parene"},
    "words": {"nb": "ord"},
    "bits per byte": {"nb": "bit per byte"},
    "nats": {"nb": "nat"},
    "shape": {"nb": "form"},
    "times as likely": {"nb": "ganger så sannsynlig"},
    "% more": {"nb": "% mer"},
    "probability": {"nb": "sannsynlighet"},
    "temperature": {"nb": "temperatur"},
    "share of what knowing gains": {"nb": "andel av det viten ville gitt"},
    "word": {"nb": "ord"},
    "passes": {"nb": "gjennomløp"},
    "tokens": {"nb": "tokener"},
    "FLOPs": {"nb": "FLOP"},
    "bytes": {"nb": "byte"},
    "J per right answer": {"nb": "J per riktig svar"},
}
