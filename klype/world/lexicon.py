"""The words of the demo world, in Norwegian Bokmål and English, by concept.

A form is a string, or several forms with their probabilities: ``"boka|.6 boken|.4"`` (Norwegian allows both).
The grammar says how it is put together; `Lexicon` is the part of it that a world of some size uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

NB, EN = "nb", "en"
LANGUAGES = (NB, EN)

PERSONS = (
    *("Kari", "Ola", "Anna", "Per", "Nora", "Emil", "Ida", "Lars", "Liv", "Jon", "Siri", "Odd", "Marit"),
    *("Hans", "Berit", "Knut", "Inger", "Tor", "Eva", "Nils", "Sara", "Jonas", "Maja", "Erik"),
)


@dataclass(frozen=True, slots=True)
class Noun:
    """Something one can own. ``gender`` (en, ei, et) decides article and adjective in Norwegian."""

    gender: str
    nb: str
    nb_definite: str
    en: str


OBJECTS = {
    "ball": Noun("en", "ball", "ballen", "ball"),
    "car": Noun("en", "bil", "bilen", "car"),
    "hat": Noun("en", "hatt", "hatten", "hat"),
    "apple": Noun("et", "eple", "eplet", "apple"),
    "bike": Noun("en", "sykkel", "sykkelen", "bike"),
    "book": Noun("ei", "bok", "boka|.6 boken|.4", "book"),
    "flag": Noun("et", "flagg", "flagget", "flag"),
    "suitcase": Noun("en", "koffert", "kofferten", "suitcase"),
    "clock": Noun("ei", "klokke", "klokka|.7 klokken|.3", "clock"),
    "scarf": Noun("et", "skjerf", "skjerfet", "scarf"),
    "boat": Noun("en", "båt", "båten", "boat"),
    "rug": Noun("et", "teppe", "teppet", "rug"),
    "cup": Noun("en", "kopp", "koppen", "cup"),
    "chair": Noun("en", "stol", "stolen", "chair"),
    "table": Noun("et", "bord", "bordet", "table"),
    "lamp": Noun("ei", "lampe", "lampa|.7 lampen|.3", "lamp"),
    "key": Noun("en", "nøkkel", "nøkkelen", "key"),
    "mirror": Noun("et", "speil", "speilet", "mirror"),
    "backpack": Noun("en", "sekk", "sekken", "backpack"),
    "ring": Noun("en", "ring", "ringen", "ring"),
}

COLOURS = {  # Norwegian with en/ei, with et; English
    "red": ("rød", "rødt", "red"),
    "blue": ("blå", "blått", "blue"),
    "green": ("grønn", "grønt", "green"),
    "yellow": ("gul", "gult", "yellow"),
    "black": ("svart", "svart", "black"),
    "white": ("hvit", "hvitt", "white"),
    "brown": ("brun", "brunt", "brown"),
    "grey": ("grå", "grått", "grey"),
}

PLACES = {
    "garden": ("i hagen", "in the garden"),
    "kitchen": ("på kjøkkenet", "in the kitchen"),
    "forest": ("i skogen", "in the forest"),
    "school": ("på skolen", "at school"),
    "sea": ("ved sjøen", "by the sea"),
    "attic": ("på loftet", "in the attic"),
    "cellar": ("i kjelleren", "in the cellar"),
    "square": ("på torget", "in the square"),
    "town": ("i byen", "in town"),
    "farm": ("på gården", "on the farm"),
    "beach": ("på stranda|.5 stranden|.5", "on the beach"),
    "garage": ("i garasjen", "in the garage"),
    "park": ("i parken", "in the park"),
    "station": ("på stasjonen", "at the station"),
    "library": ("på biblioteket", "at the library"),
    "cabin": ("på hytta", "in the cabin"),
}

ANIMALS = {
    "cats": ("katter", "cats"),
    "dogs": ("hunder", "dogs"),
    "horses": ("hester", "horses"),
    "cows": ("kuer", "cows"),
    "foxes": ("rever", "foxes"),
    "owls": ("ugler", "owls"),
    "goats": ("geiter", "goats"),
    "wolves": ("ulver", "wolves"),
    "bears": ("bjørner", "bears"),
    "pigs": ("griser", "pigs"),
    "sheep": ("sauer", "sheep"),
    "frogs": ("frosker", "frogs"),
}

# Who can do something: kind, Norwegian (definite), English
AGENTS = {
    "dog": ("animal", "hunden", "the dog"),
    "cat": ("animal", "katten", "the cat"),
    "horse": ("animal", "hesten", "the horse"),
    "cow": ("animal", "kua|.7 kuen|.3", "the cow"),
    "bird": ("animal", "fuglen", "the bird"),
    "fox": ("animal", "reven", "the fox"),
    "bear": ("animal", "bjørnen", "the bear"),
    "mouse": ("animal", "musa|.6 musen|.4", "the mouse"),
    "girl": ("person", "jenta", "the girl"),
    "boy": ("person", "gutten", "the boy"),
    "man": ("person", "mannen", "the man"),
    "woman": ("person", "kvinnen|.7 kvinna|.3", "the woman"),
    "farmer": ("person", "bonden", "the farmer"),
    "teacher": ("person", "læreren", "the teacher"),
    "doctor": ("person", "legen", "the doctor"),
    "baker": ("person", "bakeren", "the baker"),
}

# What can be done: Norwegian past, English past, English infinitive, who can, to what
ACTS = {
    "drink": ("drakk", "drank", "drink", ("animal", "person"), ("water", "milk", "juice", "coffee")),
    "eat": ("spiste|.8 åt|.2", "ate", "eat", ("animal", "person"), ("bread", "fish", "cheese", "soup", "meat")),
    "find": ("fant", "found", "find", ("animal", "person"), ("key", "ball", "letter", "hat")),
    "hide": ("gjemte", "hid", "hide", ("animal", "person"), ("key", "ball", "letter", "cheese")),
    "steal": ("stjal", "stole", "steal", ("animal",), ("fish", "cheese", "bread", "meat")),
    "read": ("leste", "read", "read", ("person",), ("book", "newspaper", "letter")),
    "buy": ("kjøpte", "bought", "buy", ("person",), ("bread", "fish", "car", "boat", "house")),
    "paint": ("malte", "painted", "paint", ("person",), ("house", "boat")),
    "wash": ("vasket|.7 vaska|.3", "washed", "wash", ("person",), ("car", "boat", "hat")),
}

THINGS = {
    "water": ("vann", "water"),
    "milk": ("melk", "milk"),
    "juice": ("saft", "juice"),
    "coffee": ("kaffe", "coffee"),
    "bread": ("brød", "bread"),
    "fish": ("fisk", "fish"),
    "cheese": ("ost", "cheese"),
    "soup": ("suppe", "soup"),
    "meat": ("kjøtt", "meat"),
    "grass": ("gress", "grass"),
    "honey": ("honning", "honey"),
    "key": ("nøkkelen", "the key"),
    "ball": ("ballen", "the ball"),
    "letter": ("brevet", "the letter"),
    "hat": ("hatten", "the hat"),
    "book": ("boka|.6 boken|.4", "the book"),
    "newspaper": ("avisen|.6 avisa|.4", "the newspaper"),
    "car": ("bilen", "the car"),
    "boat": ("båten", "the boat"),
    "house": ("huset", "the house"),
}

# World knowledge: true in every document.
CAPITALS = {
    "norway": ("Norge", "Norway", "Oslo", "Oslo"),
    "sweden": ("Sverige", "Sweden", "Stockholm", "Stockholm"),
    "denmark": ("Danmark", "Denmark", "København", "Copenhagen"),
    "finland": ("Finland", "Finland", "Helsingfors", "Helsinki"),
    "iceland": ("Island", "Iceland", "Reykjavik", "Reykjavik"),
    "france": ("Frankrike", "France", "Paris", "Paris"),
    "italy": ("Italia", "Italy", "Roma", "Rome"),
    "spain": ("Spania", "Spain", "Madrid", "Madrid"),
    "germany": ("Tyskland", "Germany", "Berlin", "Berlin"),
    "japan": ("Japan", "Japan", "Tokyo", "Tokyo"),
}
TOWNS = ("Oslo", "Bergen", "Trondheim", "Tromsø", "Bodø", "Molde")
HOMES = {name: TOWNS[(7 * i + i // 6) % len(TOWNS)] for i, name in enumerate(PERSONS)}
HABITS = {  # (animal, act) -> thing; Norwegian and English indefinite below
    ("dog", "drink"): "water",
    ("cat", "drink"): "milk",
    ("horse", "eat"): "grass",
    ("cow", "eat"): "grass",
    ("bear", "eat"): "honey",
    ("mouse", "eat"): "cheese",
    ("fox", "eat"): "meat",
    ("cat", "eat"): "fish",
}
BEASTS = {
    "dog": ("en hund", "a dog"),
    "cat": ("en katt", "a cat"),
    "horse": ("en hest", "a horse"),
    "cow": ("ei ku", "a cow"),
    "bear": ("en bjørn", "a bear"),
    "mouse": ("ei mus", "a mouse"),
    "fox": ("en rev", "a fox"),
}
HABIT_VERBS = {"drink": ("drikker", "drinks", "drink"), "eat": ("spiser", "eats", "eat")}
OPPOSITES = {  # each way round
    "big": (("stor", "big"), ("liten", "small")),
    "warm": (("varm", "warm"), ("kald", "cold")),
    "old": (("gammel", "old"), ("ung", "young")),
    "long": (("lang", "long"), ("kort", "short")),
    "light": (("lys", "light"), ("mørk", "dark")),
    "quick": (("rask", "quick"), ("treg", "slow")),
}

PROVERBS = {
    NB: (
        "Det er bedre med en fugl i {hånden|.6 hånda|.4} enn {ti|.9 to|.1} på taket .",
        "Borte bra , men hjemme best .",
        "Den som graver en grav for andre , faller selv i den .",
        "Når katten er borte , danser {musene|.9 musa|.1} på bordet .",
        "Brent barn {skyr|.9 frykter|.1} ilden .",
        "Morgenstund har gull i munn .",
        "Eplet faller {ikke|.8 sjelden|.2} langt fra {stammen|.7 treet|.3} .",
        "Den som ler sist , ler best .",
    ),
    EN: (
        "A bird in the hand is worth two in the {bush|.9 tree|.1} .",
        "When the cat is away , the mice will {play|.8 dance|.2} .",
        "The early bird {catches|.7 gets|.3} the worm .",
        "All that {glitters|.7 glistens|.3} is not gold .",
        "He who laughs last laughs {best|.6 longest|.4} .",
        "There is no place like home .",
        "A {burnt|.6 burned|.4} child {dreads|.7 fears|.3} the fire .",
    ),
}

# A walk: where (concept, words, probability), then the weather of the season, then what one wore.
WALKS = {
    NB: (
        ("path", "på stien", 0.34),
        ("road", "på veien", 0.25),
        ("pavement", "på fortauet", 0.12),
        ("mountain", "på fjellet", 0.09),
        ("forest", "i skogen", 0.12),
        ("river", "langs elva|.6 elven|.4", 0.08),
    ),
    EN: (
        ("path", "on the path|.7 trail|.3", 0.34),
        ("road", "on the road", 0.25),
        ("pavement", "on the pavement", 0.12),
        ("mountain", "on the mountain", 0.09),
        ("forest", "in the forest", 0.12),
        ("river", "along the river", 0.08),
    ),
}
WENT = {NB: "gikk|.75 spaserte|.25", EN: "walked|.8 strolled|.2"}
WHEN = {NB: ((0.25, "i går"), (0.15, "i dag")), EN: ((0.25, "yesterday"), (0.15, "today"))}  # else: not said
SEASONS = {"winter": 0.35, "summer": 0.4, "autumn": 0.25}
WEATHER = {
    "winter": {"snow": 0.55, "cold": 0.35, "wind": 0.1},
    "summer": {"sun": 0.55, "warm": 0.3, "rain": 0.15},
    "autumn": {"rain": 0.5, "wind": 0.3, "cold": 0.2},
}
WEATHER_WORDS = {
    NB: {
        "snow": "det snødde",
        "cold": "det var kaldt",
        "wind": "det blåste",
        "sun": "sola|.6 solen|.4 skinte",
        "warm": "det var varmt",
        "rain": "det regnet",
    },
    EN: {
        "snow": "it snowed",
        "cold": "it was cold",
        "wind": "it was windy",
        "sun": "the sun shone",
        "warm": "it was warm",
        "rain": "it rained",
    },
}
WEAR = {
    NB: {"winter": "lue|.6 votter|.4", "summer": "solbriller|.7 shorts|.3", "autumn": "støvler|.6 regnjakke|.4"},
    EN: {"winter": "mittens|.6 boots|.4", "summer": "sunglasses|.7 shorts|.3", "autumn": "boots|.6 raincoat|.4"},
}

NUMBERS = {NB: ("null", "én", "to", "tre", "fire"), EN: ("zero", "one", "two", "three", "four")}

SAYING = {NB: "Som man sier :", EN: "As they say :"}
DEMAND = {NB: "Svar med ett ord :", EN: "Answer in one word :"}
COURTESIES = {
    NB: ("Takk for spørsmålet !", "Gjerne !", "Så hyggelig at du spør !"),
    EN: ("Thank you for asking !", "Gladly !", "How nice of you to ask !"),
}
LONG_WINDED = {
    NB: ("Ja , det er det mange som lurer på , men jeg tror at", ", og det er alt jeg vet ."),
    EN: ("Well , many people ask about that , but I think that", ", and that is all I know ."),
}


@dataclass(frozen=True)
class Lexicon:
    """The part of the lexicon that a world of some size uses. Hashed by identity: one per world."""

    persons: tuple[str, ...] = PERSONS
    objects: tuple[str, ...] = tuple(OBJECTS)
    colours: tuple[str, ...] = tuple(COLOURS)
    places: tuple[str, ...] = tuple(PLACES)
    animals: tuple[str, ...] = tuple(ANIMALS)
    agents: tuple[str, ...] = tuple(AGENTS)
    acts: tuple[str, ...] = tuple(ACTS)
    capitals: tuple[str, ...] = tuple(CAPITALS)
    seed: int = field(default=7)

    @staticmethod
    def small() -> Lexicon:
        """A smaller world, for tests."""
        return Lexicon(
            PERSONS[:6],
            tuple(OBJECTS)[:4],
            tuple(COLOURS)[:3],
            tuple(PLACES)[:4],
            tuple(ANIMALS)[:4],
            ("dog", "cat", "girl", "farmer", "baker"),
            ("drink", "eat", "read"),
            tuple(CAPITALS)[:3],
        )

    __hash__ = object.__hash__

    @cached_property
    def things(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(thing for act in self.acts for thing in ACTS[act][4]))

    @cached_property
    def event_places(self) -> tuple[str, ...]:
        """ "" (not said) first."""
        return ("", *self.places[:6])

    @cached_property
    def events(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The joint table P(agent, act, thing, place): who does what, to what, where; sums to one."""
        rng = np.random.default_rng(self.seed)
        table = np.zeros((len(self.agents), len(self.acts), len(self.things), len(self.event_places)))
        for j, act in enumerate(self.acts):
            _, _, _, kinds, things = ACTS[act]
            where = rng.dirichlet(np.full(len(self.event_places) - 1, 1.0)) * 0.35
            for i, agent in enumerate(self.agents):
                if AGENTS[agent][0] not in kinds:
                    continue
                liking = rng.gamma(2.0)
                what = rng.dirichlet(np.full(len(things), 2.0))
                for thing, p in zip(things, what, strict=True):
                    table[i, j, self.things.index(thing)] = liking * p * np.concatenate([[0.65], where])
        table /= table.sum(axis=(1, 2, 3), keepdims=True) * len(self.agents)
        return table

    @lru_cache(maxsize=100_000)  # noqa: B019 — a lexicon lives as long as its world
    def event(
        self, slot: str, agent: str = "", act: str = "", thing: str = "", taken: frozenset[str] = frozenset()
    ) -> tuple[tuple[float, str], ...]:
        """P(slot | what is bound), by exact marginalisation; ``taken`` agents are left out."""
        names = (self.agents, self.acts, self.things, self.event_places)
        table = self.events
        if taken:
            table = table.copy()
            table[[self.agents.index(a) for a in taken]] = 0
        for axis, bound in enumerate((agent, act, thing)):
            if bound:
                table = np.take(table, [names[axis].index(bound)], axis=axis)
        axis = ("agent", "act", "thing", "place").index(slot)
        marginal = table.sum(axis=tuple(k for k in range(4) if k != axis))
        total = float(marginal.sum())
        if marginal.size == 1:
            raise AssertionError(f"{slot} is bound already")
        return tuple((float(p) / total, names[axis][k]) for k, p in enumerate(marginal) if p > 0)
