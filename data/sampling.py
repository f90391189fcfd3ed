"""Who does what, where and when: constituents and clauses drawn at random so that they make sense together."""

import random
from dataclasses import replace
from functools import cache
from itertools import chain

import lexicon as lx
from grammar import (
    EMPTY,
    Clause,
    Phrase,
    Subject,
    measured,
    noun_phrase,
    prepositional,
    statement,
    words,
)
from lexicon import Adjective, Noun, Verb

Rng = random.Random


def pick_words(rng: Rng, table: list[list[str]]) -> Phrase:
    """A fixed expression from a table of them."""
    return words(*rng.choice(table))


def noun_subject(noun: Noun, code: str = "d", adjective: Adjective | None = None, owner: str = "") -> Subject:
    """A noun phrase as subject; a person is taken up by he or she."""
    pronoun = ("she" if noun.gender == "f" else "he") if "person" in noun.tags else "it"
    return Subject(noun_phrase(noun, code, "nom", adjective, owner), 2, pronoun)


def pronoun_subject(pronoun: str) -> Subject:
    """A personal pronoun as subject."""
    person = lx.PERSONS.index("he" if pronoun == "she" else pronoun)
    return Subject(words(pronoun, lx.PRONOUNS[pronoun][1]), person, pronoun)


IT = Subject(words("it", "es"), 2, "it")


@cache
def tagged(*tags: str) -> list[Noun]:
    """All nouns with any of these tags."""
    return [noun for noun in lx.NOUNS.values() if noun.tags & set(tags)]


@cache
def adjectives_for(noun: Noun) -> list[Adjective]:
    """The adjectives that may describe this noun."""
    return [adjective for adjective in lx.ADJECTIVES.values() if adjective.tags & noun.tags]


def pick_subject(rng: Rng, pronouns: str = "I he she we they") -> Subject:
    """Somebody: a name, a pronoun, a relative, someone from around, or two together."""
    roll = rng.random()
    if roll < 0.4:
        pronoun = rng.choice(["she", "he"])
        name = rng.choice(lx.NAMES[pronoun])
        return Subject(words(name, name), 2, pronoun)
    if roll < 0.7:
        return pronoun_subject(rng.choice(pronouns.split()))
    if roll < 0.9:
        return noun_subject(rng.choice(tagged("family", "acquaintance")), "p", owner=rng.choice(["my", "our"]))
    if roll < 0.95:
        return noun_subject(rng.choice(tagged("expert")))
    names = [rng.choice(lx.NAMES[pronoun]) for pronoun in ("she", "he")]
    return Subject(words(f"{names[0]} and {names[1]}", f"{names[0]} und {names[1]}"), 4, "they")


def pick_person(rng: Rng, clause: Clause, case: str) -> tuple[str, Phrase]:
    """Somebody else as an object: the Clause field it belongs in ("pronoun" or "object") and the phrase."""
    subject, roll = clause.subject, rng.random()
    if roll < 0.3:
        same = {"I": "I we", "we": "I we", "you": "you we"}.get(subject.pronoun, subject.pronoun + " you").split()
        row = lx.PRONOUNS[rng.choice([pronoun for pronoun in lx.PRONOUNS if pronoun not in same])]
        return "pronoun", words(row[2], row[3 if case == "acc" else 4])
    present = subject.phrase.english.split()
    if roll < 0.5:
        name = rng.choice([name for name in chain(*lx.NAMES.values()) if name not in present])
        return "pronoun", words(name, name)  # German puts a name early, like a pronoun
    if roll < 0.6:
        expert = rng.choice([noun for noun in tagged("expert") if noun.en not in present])
        return "object", noun_phrase(expert, "d", case)
    return "object", noun_phrase(rng.choice(tagged("family", "acquaintance")), "p", case, owner=subject.owner or "my")


def pick_noun(rng: Rng, choices: list[str], clause: Clause, case: str) -> Phrase:
    """A noun phrase from choices such as "food:bi": tags, then determiner codes."""
    owner = clause.subject.owner
    pairs = [(noun, codes) for tags, codes in (choice.split(":") for choice in choices) for noun in tagged(tags)]
    noun, codes = rng.choice([pair for pair in pairs if owner in {"her", ""} or "gown" not in pair[0].tags])
    code = rng.choice(codes)
    if code == "p" and clause.subject.person > 2 and noun.tags & {"clothing", "gown"}:
        code = "d"  # they do not share one coat
    unwanted = {"boring"} | lx.UNWANTED.get(clause.verb.en[0], set())
    fitting = [adjective for adjective in adjectives_for(noun) if adjective.en not in unwanted]
    adjective = rng.choice(fitting) if fitting and rng.random() < 0.5 else None
    if clause.negated and code in "bimn":
        return noun_phrase(noun, "k", case, adjective, denial=clause.denial)
    if code == "m":
        unit = next((m for m in ("cup", "glass", "piece", "kilo") if m in noun.tags), "")
        number = rng.choice(list(lx.NUMBERS)[:4]) if unit == "kilo" else ""
        return measured(unit, noun, number) if unit else noun_phrase(noun, "b", case, adjective)
    if code in "in" and noun.is_mass:
        code = "b"
    return noun_phrase(noun, code, case, adjective, owner or "my", rng.choice(list(lx.NUMBERS)[:3]))


def with_object(rng: Rng, clause: Clause, objects: str) -> Clause:
    """The clause with an object; see Verb.objects."""
    kind, *choices = objects.split()
    if kind == "person" and (not choices or rng.random() < 0.6):
        role, phrase = pick_person(rng, clause, "acc")
        return replace(clause, **{role: phrase})
    if kind == "person":
        kind, *choices = choices
    if kind.startswith("dat"):
        role, phrase = pick_person(rng, clause, "dat")
        clause = replace(clause, **{"recipient" if role == "object" else role: phrase})
    if "=" in kind:
        english, german, case = kind.replace("=", "+").split("+")
        return replace(clause, topic=prepositional(english, german, pick_noun(rng, choices, clause, case)))
    return replace(clause, object=pick_noun(rng, choices, clause, "acc")) if kind.endswith("acc") else clause


def place(name: str) -> Phrase:
    """Where something happens."""
    if name == "home":
        return words("at home", "zu Hause")
    english, german = lx.PLACES[name]
    return prepositional(english, german, noun_phrase(lx.NOUNS[name], "d", "dat"))


def destination(name: str) -> Phrase:
    """Where somebody goes."""
    english, german, case = lx.DESTINATIONS[name]
    return prepositional(english, german, noun_phrase(lx.NOUNS[name], "d", case))


def city(rng: Rng, english: str, german: str) -> Phrase:
    """A city after a preposition."""
    return prepositional(english, german, words(*rng.choice(list(lx.CITIES.items()))))


def clock(rng: Rng) -> Phrase:
    """At eight o'clock."""
    number = rng.choice(list(lx.NUMBERS)[3:10])
    return words(f"at {number} o'clock", f"um {lx.NUMBERS[number]} Uhr", "0-0 1-1 2-2")


def pick_time(rng: Rng, verb: Verb, tense: str) -> Phrase:
    """A time that agrees with the tense and with the kind of event."""
    table, broad = {
        "present": (lx.HABIT_TIMES, []),
        "progressive": (lx.NOW_TIMES if "daily" in verb.flags and verb.en[0] != "go" else lx.NOW_TIMES[:1], []),
        "past": (lx.PAST_TIMES, lx.BROAD_PAST_TIMES),
        "wanted": (lx.PAST_TIMES, lx.BROAD_PAST_TIMES),
        "had": (lx.PAST_TIMES, lx.BROAD_PAST_TIMES),
    }.get(tense, (lx.FUTURE_TIMES, lx.BROAD_FUTURE_TIMES))
    table = table + (broad if "broad" in verb.flags else [])
    if "morning" in verb.flags:
        table = [row for row in table if "evening" not in row[0]]
    return pick_words(rng, table)


def pick_tense(rng: Rng, verb: Verb) -> str:
    """A tense that the verb can stand in."""
    if "state" in verb.flags:
        return "present"
    if "once" in verb.flags:
        return "past"
    habit = ["present"] if "daily" in verb.flags else []
    modal = [] if "free" in verb.flags else [rng.choice(list(lx.MODALS))]
    ongoing = [] if verb.objects == "clock" else ["progressive"]
    future = [] if "free" in verb.flags else ["future"]
    return rng.choice(["past"] * 3 + future * 2 + ongoing * 2 + habit + modal * 2)


NO_ACTIONS = {"sky", "price", "that"}
ACTIONS = [name for name, verb in lx.VERBS.items() if verb.objects not in NO_ACTIONS and name != "leave"]
WILLED = [name for name in ACTIONS if not lx.VERBS[name].flags & {"state", "once", "free"}]  # one can, must, wants to


def action(
    rng: Rng, subject: Subject | None = None, name: str = "", tense: str = "", objects: str = "", negated: bool = False
) -> Clause:
    """Somebody does something somewhere at some time; what is not given is drawn."""
    verb = lx.VERBS[name or rng.choice(ACTIONS)]
    tense = tense or pick_tense(rng, verb)
    if negated and tense == "present" and "state" not in verb.flags:
        tense = "progressive"
    subject = subject or pick_subject(rng, "I you he she we they" if tense in lx.MODALS else "I he she we they")
    clause = Clause(subject, verb, tense, negated=negated and tense not in {"must", "had", "would like"})
    clause = with_place(rng, with_complement(rng, clause, objects or verb.objects))
    return with_time(rng, with_company(rng, clause))


def with_complement(rng: Rng, clause: Clause, objects: str) -> Clause:
    """The clause with what its verb asks for: an object, or where somebody goes, lives or arrives."""
    if objects == "where":
        return replace(clause, topic=destination(rng.choice(list(lx.DESTINATIONS))))
    if objects == "city":
        return replace(clause, topic=city(rng, "in", "in") if clause.verb.en[0] == "live" else city(rng, "to", "nach"))
    if clause.verb.en[0] == "arrive":
        return replace(clause, topic=rng.choice([city(rng, "in", "in"), place("station"), EMPTY]))
    return clause if objects == "clock" else with_object(rng, clause, objects)


def with_place(rng: Rng, clause: Clause) -> Clause:
    """The clause with a place, more often than not; a denial of something else has none."""
    denied = clause.negated and (clause.topic or clause.object)
    if not clause.verb.places or denied or (rng.random() < 0.5 and "placed" not in clause.verb.flags):
        return clause
    return replace(clause, place=place(rng.choice(clause.verb.places)))


def with_company(rng: Rng, clause: Clause) -> Clause:
    """The clause with somebody who joins in, now and then."""
    if "company" not in clause.verb.flags or clause.negated or rng.random() < 0.8:
        return clause
    kind, somebody = pick_person(rng, clause, "dat")
    return replace(clause, companion=prepositional("with", "mit", somebody)) if kind == "object" else clause


def with_time(rng: Rng, clause: Clause) -> Clause:
    """The clause with a time, or in the present with how often it happens."""
    flags, habit = clause.verb.flags, clause.tense == "present"
    if "state" in flags:
        return clause
    if clause.verb.objects == "clock":
        day = pick_time(rng, clause.verb, clause.tense) if rng.random() < 0.7 else EMPTY
        return replace(clause, time=day + clock(rng))
    if habit and rng.random() < 0.6:
        return replace(clause, frequency=pick_words(rng, lx.FREQUENCIES))
    time = pick_time(rng, clause.verb, clause.tense) if habit or rng.random() < 0.7 else EMPTY
    return clause if clause.negated and time.english == "soon" else replace(clause, time=time)


def mood(subject: Subject, name: str, tense: str = "present") -> Clause:
    """Somebody is tired."""
    adjective = lx.MOODS[name]
    return Clause(subject, lx.BE, tense, predicate=words(adjective.en, adjective.de))


def state(name: str, subject: Subject) -> Clause:
    """A reason by its name in lexicon.REASONS: a mood, an illness, no time, or the sky."""
    if name in {"rain", "snow"}:
        return Clause(IT, lx.VERBS[name], "progressive")
    if name == "sun":
        return Clause(noun_subject(lx.NOUNS["sun"]), lx.VERBS["shine"], "progressive")
    if name == "fever":
        return Clause(subject, lx.VERBS["have"], "present", object=words("a fever", "Fieber"))
    if name == "notime":
        return Clause(subject, lx.VERBS["have"], "present", object=noun_phrase(lx.NOUNS["time"], "k", "acc"))
    if name in lx.MOODS:
        return mood(subject, name)
    return Clause(IT, lx.BE, "present", predicate=words(lx.SKIES[name].en, lx.SKIES[name].de))


def share_a_name(one: Clause, other: Clause) -> bool:
    """True if a name occurs in both clauses."""
    said = set(statement(one).english.split()) & set(statement(other).english.split())
    return not said.isdisjoint(chain(*lx.NAMES.values()))


def again(subject: Subject) -> Subject:
    """The subject taken up by its pronoun."""
    return pronoun_subject(subject.pronoun)
