"""The bilingual grammar: phrases and clauses in English and German order, aligned.

A token carries keys, and two tokens are aligned when they share one: "bought" shares a key with "hat" and one with
"gekauft". A constituent is a Phrase, tokens in English order beside tokens in German order, so that composing phrases
is only concatenating each side in its own order; the links follow by themselves.
"""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import lexicon as lx
from lexicon import Adjective, Noun, Verb

# --- Tokens and phrases ---------------------------------------------------------------------------------------------


class Token(NamedTuple):
    """A word and the keys it shares with the words of the other side that it is aligned to."""

    text: str
    keys: frozenset[object]


Tokens = tuple[Token, ...]


@dataclass(frozen=True)
class Phrase:
    """A constituent: its tokens in English order and in German order."""

    en: Tokens = ()
    de: Tokens = ()

    def __add__(self, other: "Phrase") -> "Phrase":
        return Phrase(self.en + other.en, self.de + other.de)

    @property
    def english(self) -> str:
        """The English text."""
        return " ".join(token.text for token in self.en)

    @property
    def is_known(self) -> bool:
        """True if German introduces it with a definite article or a possessive, as something known already."""
        return self.de[0].text.startswith((*DEFINITE.values(), *lx.POSSESSIVES.values()))

    def __bool__(self) -> bool:
        return bool(self.en or self.de)


EMPTY = Phrase()


def tokens(text: str, *keys: object) -> Tokens:
    """The words of `text`, all with the same keys."""
    return tuple(Token(word, frozenset(keys)) for word in text.split())


def words(english: str, german: str, links: str = "") -> Phrase:
    """A fixed expression. Without links, equally many words are aligned in order, otherwise each with each."""
    en, de = english.split(), german.split()
    pairs = [(i, j) for i in range(len(en)) for j in range(len(de)) if len(en) != len(de) or i == j]
    if links:
        pairs = [(int(i), int(j)) for i, j in (link.split("-") for link in links.split())]
    keys = {pair: object() for pair in pairs}
    return Phrase(
        tuple(Token(word, frozenset(keys[p] for p in pairs if p[0] == i)) for i, word in enumerate(en)),
        tuple(Token(word, frozenset(keys[p] for p in pairs if p[1] == j)) for j, word in enumerate(de)),
    )


def marked(side: Tokens, mark: str) -> Tokens:
    """The tokens with a punctuation mark attached to the last one."""
    return (*side[:-1], side[-1]._replace(text=side[-1].text + mark))


def capitalized(side: Tokens) -> Tokens:
    """The tokens with a capital at the head of the first one."""
    return (side[0]._replace(text=side[0].text[0].upper() + side[0].text[1:]), *side[1:])


def sentence(phrase: Phrase, mark: str = ".") -> Phrase:
    """A phrase made a sentence."""
    return Phrase(*(marked(capitalized(side), mark) for side in (phrase.en, phrase.de)))


def comma(phrase: Phrase, english: str = "") -> Phrase:
    """A phrase followed by a comma in German, and by `english` in English."""
    return Phrase(marked(phrase.en, english), marked(phrase.de, ","))


# --- Nouns: agreement in gender, case and number --------------------------------------------------------------------

STRONG = {  # the endings of "dieser": an ending that shows gender and case
    "m": {"nom": "er", "acc": "en", "dat": "em"},
    "f": {"nom": "e", "acc": "e", "dat": "er"},
    "n": {"nom": "es", "acc": "es", "dat": "em"},
    "pl": {"nom": "e", "acc": "e", "dat": "en"},
}
DEFINITE = {"er": "der", "e": "die", "es": "das", "en": "den", "em": "dem"}


def definite(gender: str, case: str) -> str:
    """The definite article, which is the relative pronoun too."""
    return "der" if (gender, case) == ("f", "dat") else DEFINITE[STRONG[gender][case]]


def ein_ending(gender: str, case: str) -> str:
    """The ending of ein, kein, mein: none where it would not tell masculine from neuter."""
    return "" if (gender, case) in {("m", "nom"), ("n", "nom"), ("n", "acc")} else STRONG[gender][case]


def adjective_ending(gender: str, case: str, shown: bool) -> str:
    """Weak if the determiner has shown gender and case, strong if the adjective must."""
    if not shown:
        return STRONG[gender][case]
    return "e" if gender != "pl" and (case == "nom" or (case == "acc" and gender != "m")) else "en"


def german_noun(noun: Noun, gender: str, case: str) -> str:
    """The noun's form in this case."""
    if gender == "pl":
        return noun.de_plural + ("n" if case == "dat" and noun.de_plural[-1] not in "ns" else "")
    return noun.de_plural if "weak" in noun.tags and case != "nom" else noun.de


def noun_phrase(
    noun: Noun,
    code: str,
    case: str,
    adjective: Adjective | None = None,
    owner: str = "",
    number: str = "",
    denial: object = None,
) -> Phrase:
    """A noun with determiner and adjective.

    Args:
        code: b bare, d definite, i indefinite, n counted, p possessive, k negative ("kein"), as in lexicon.
        denial: the key of an English "not" elsewhere that "kein" translates; without it English says "no".
    """
    plural = code == "n" or (code == "b" and not noun.is_mass)
    gender = "pl" if plural else noun.gender
    det, adj, head = object(), object(), object()
    following = adjective.en if adjective else noun.en
    ein = "" if noun.is_mass and denial else "an" if following[0] in "aeiou" else "a"
    english = {"d": "the", "i": ein, "k": ein if denial else "no", "p": owner, "n": number, "b": ""}[code]
    stem = {"i": "ein", "k": "kein", "p": lx.POSSESSIVES.get(owner, "")}.get(code)
    german = {"d": definite(gender, case), "n": lx.NUMBERS.get(number, ""), "b": ""}.get(code)
    if stem is not None:
        german = stem + ein_ending(gender, case)
    shown = code == "d" or (stem is not None and ein_ending(gender, case) != "")
    return Phrase(
        tokens(english, det)
        + tokens(adjective.en if adjective else "", adj)
        + tokens(noun.en_plural if plural else noun.en, head),
        tokens(german or "", det, *([denial] if denial else []))
        + tokens(adjective.stem + adjective_ending(gender, case, shown) if adjective else "", adj)
        + tokens(german_noun(noun, gender, case), head),
    )


def prepositional(english: str, german: str, phrase: Phrase) -> Phrase:
    """A preposition before a noun phrase; German contracts some with the article: in + dem = im."""
    key = object()
    article, *rest = phrase.de
    contraction = lx.CONTRACTIONS.get((german, article.text))
    merged = (Token(contraction, article.keys | {key}),) if contraction else (*tokens(german, key), article)
    return Phrase(tokens(english, key) + phrase.en, (*merged, *rest))


def measured(measure: str, noun: Noun, number: str = "") -> Phrase:
    """A cup of tea, two kilos of apples, in the accusative; "of" has no counterpart."""
    amount = noun_phrase(lx.NOUNS[measure], "n" if number else "i", "acc", number=number)
    content = replace(noun, en_plural="-") if measure == "piece" else noun  # kilos of apples, but a piece of cake
    return amount + Phrase(tokens("of")) + noun_phrase(content, "b", "acc")


# --- Clauses: one content, several orders ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Who or what: a nominative phrase, its person (an index into lexicon.PERSONS) and the pronoun that takes it up."""

    phrase: Phrase
    person: int
    pronoun: str

    @property
    def owner(self) -> str:
        """The possessive that refers back to the subject."""
        return lx.OWNERS.get(self.pronoun, "")


@dataclass(frozen=True)
class Clause:
    """What a clause says, before it has an order."""

    subject: Subject
    verb: Verb
    tense: str  # present, progressive, past, future, likes ("likes to"), or a modal's name
    negated: bool = False
    pronoun: Phrase = EMPTY
    recipient: Phrase = EMPTY
    object: Phrase = EMPTY
    topic: Phrase = EMPTY  # a prepositional object or a destination
    predicate: Phrase = EMPTY
    companion: Phrase = EMPTY
    place: Phrase = EMPTY
    frequency: Phrase = EMPTY
    time: Phrase = EMPTY
    denial: object = field(default_factory=lambda: object())  # the key of "not"


LIKES = object()  # the key that "likes to" shares with "gern"


class VerbGroup(NamedTuple):
    """The verb in pieces: English auxiliary and rest, German finite form and what closes the clause."""

    en_finite: Tokens
    en_rest: Tokens
    de_finite: Tokens
    de_end: Tokens


def english_verb(clause: Clause, asking: bool, aux: object, main: object) -> tuple[Tokens, Tokens]:
    """The English auxiliary, if there is one, and the rest of the verb; a question or a denial needs one: "do"."""
    verb, person, tense = clause.verb, clause.subject.person, clause.tense
    base, third, past, ing = verb.en
    modal = lx.MODALS.get(tense)
    if verb is lx.BE and tense in lx.ENGLISH_BE:
        return tokens(lx.ENGLISH_BE[tense][person], aux, main), ()
    if tense == "progressive":
        return tokens(lx.ENGLISH_BE["present"][person], main), tokens(ing, main)
    if tense == "future":
        return tokens("will", aux), tokens(base, main)
    if tense == "likes":
        return (), tokens("likes to" if person == 2 else "like to", LIKES) + tokens(base, main)
    needs_do = asking or clause.negated
    do = "did" if tense in {"past", "wanted", "had"} else "does" if person == 2 else "do"
    if modal and modal.is_auxiliary:
        return tokens(modal.english[person], aux), tokens(" ".join(modal.rest), aux) + tokens(base, main)
    if modal:
        finite = {"wanted": "want", "had": "have"}.get(tense, tense) if needs_do else modal.english[person]
        return tokens(do if needs_do else "", aux), tokens(finite, aux) + tokens("to", aux) + tokens(base, main)
    if needs_do:
        return tokens(do, aux if tense == "past" else main), tokens(base, main)
    if tense == "past":
        return (), tokens(past, aux, main)
    return (), tokens(third if person == 2 else base, main)


def german_verb(clause: Clause, aux: object, main: object) -> tuple[Tokens, Tokens]:
    """The German finite verb and the tokens that close a main clause."""
    verb, person = clause.verb, clause.subject.person
    infinitive = tokens(verb.prefix + verb.infinitive, main)
    if clause.tense == "past" and verb.infinitive in lx.PRETERITE:
        return tokens(lx.PRETERITE[verb.infinitive][person], aux, main), ()
    if clause.tense == "past":
        perfect = lx.IRREGULAR_PRESENT["haben" if verb.auxiliary == "hat" else "sein"]
        return tokens(perfect[person], aux), tokens(verb.participle, main)
    if clause.tense == "future":
        return tokens(lx.WERDEN[person], aux), infinitive
    if clause.tense in lx.MODALS:
        return tokens(lx.MODALS[clause.tense].german[person], aux), infinitive
    return tokens(verb.present(person), aux, main), tokens(verb.prefix, main)


def verb_group(clause: Clause, asking: bool = False) -> VerbGroup:
    """The clause's verb in both languages, aligned."""
    aux, main = object(), object()
    en_finite, en_rest = english_verb(clause, asking, aux, main)
    particle = tokens(" ".join(clause.verb.particle), main)
    denial = tokens("not", clause.denial) if clause.negated else ()
    if denial and en_finite[0].text == "can" and not asking:
        en_finite, denial = (Token("cannot", en_finite[0].keys | {clause.denial}),), ()
    verb = (*en_rest, *clause.pronoun.en, *particle)
    return VerbGroup(en_finite, (*denial, *clause.frequency.en, *verb), *german_verb(clause, aux, main))


def english_tail(clause: Clause) -> Tokens:
    """What follows the English verb."""
    parts = (clause.recipient, clause.object, clause.topic, clause.predicate)
    parts += (clause.companion, clause.place, clause.time)
    return tuple(chain.from_iterable(part.en for part in parts))


def german_middle(clause: Clause, main: Tokens) -> Tokens:
    """The German middle field: what stands between the finite verb and the verbs at the end."""
    verb_keys = {key for token in main for key in token.keys}
    reflexive = tokens(lx.REFLEXIVE[clause.subject.person] if "sich" in clause.verb.flags else "", *verb_keys)
    gladly = Phrase((), tokens("gern", LIKES) if clause.tense == "likes" else ())
    taken = any(clause.denial in token.keys for token in clause.object.de)  # "kein" has said it
    denial = Phrase((), tokens("nicht", clause.denial) if clause.negated and not taken else ())
    topical = (clause.pronoun, gladly, clause.frequency, clause.time, clause.companion, clause.recipient)
    if not clause.object or clause.object.is_known:  # something known comes before the place, something new after it
        order = (*topical, clause.object, denial, clause.place, clause.topic, clause.predicate)
    else:
        order = (*topical, clause.place, clause.object, denial, clause.topic, clause.predicate)
    return (*reflexive, *chain.from_iterable(part.de for part in order))


def statement(clause: Clause, front: Phrase = EMPTY) -> Phrase:
    """A main clause. What stands in front (a time, another clause) puts the German subject behind the finite verb."""
    verb, who = verb_group(clause), clause.subject.phrase
    middle = german_middle(clause, verb.de_end or verb.de_finite)
    english = front.en + who.en + verb.en_finite + verb.en_rest + english_tail(clause)
    head = front.de + verb.de_finite + who.de if front else who.de + verb.de_finite
    return Phrase(english, head + middle + verb.de_end)


def time_first(clause: Clause) -> Phrase:
    """A main clause that begins with its time."""
    return statement(replace(clause, time=EMPTY), front=clause.time)


def question(clause: Clause, asked: Phrase = EMPTY) -> Phrase:
    """A yes/no question, or one about `asked` (where, what, how many apples)."""
    verb, who = verb_group(clause, asking=True), clause.subject.phrase
    middle = german_middle(clause, verb.de_end or verb.de_finite)
    return Phrase(
        asked.en + verb.en_finite + who.en + verb.en_rest + english_tail(clause),
        asked.de + verb.de_finite + who.de + middle + verb.de_end,
    )


def subordinate(clause: Clause, conjunction: Phrase = EMPTY) -> Phrase:
    """A subordinate clause: the German finite verb comes last, and takes its prefix back (anruft)."""
    verb, who = verb_group(clause), clause.subject.phrase
    middle = german_middle(clause, verb.de_end or verb.de_finite)
    end = verb.de_end + verb.de_finite
    if clause.verb.prefix and clause.tense in {"present", "progressive", "likes"}:
        end = tokens(clause.verb.prefix + verb.de_finite[0].text, *verb.de_finite[0].keys)
    return Phrase(
        conjunction.en + who.en + verb.en_finite + verb.en_rest + english_tail(clause),
        conjunction.de + who.de + middle + end,
    )


def infinitive(clause: Clause, opening: str = "") -> Phrase:
    """An infinitive group: "to call her sister", "ihre Schwester anzurufen", or with the opening "um" for a purpose."""
    main, to, verb = object(), object(), clause.verb
    en = tokens("to", to) + tokens(verb.en[0], main) + clause.pronoun.en + tokens(" ".join(verb.particle), main)
    end = tokens("zu", to) + tokens(verb.infinitive, main)
    if verb.prefix:
        end = tokens(f"{verb.prefix}zu{verb.infinitive}", to, main)
    middle = german_middle(clause, tokens("zu", main))
    return Phrase(en + english_tail(clause), tokens(opening, to) + middle + end)
