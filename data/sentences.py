"""The kinds of sentences of the toy corpus, one function each; TEMPLATES says how often each is drawn."""

from dataclasses import replace

import lexicon as lx
from grammar import (
    EMPTY,
    Clause,
    Phrase,
    Subject,
    comma,
    definite,
    infinitive,
    noun_phrase,
    question,
    sentence,
    statement,
    subordinate,
    time_first,
    tokens,
    words,
)
from lexicon import Adjective
from sampling import (
    ACTIONS,
    IT,
    WILLED,
    Rng,
    action,
    adjectives_for,
    again,
    city,
    clock,
    destination,
    mood,
    noun_subject,
    pick_subject,
    pick_words,
    place,
    pronoun_subject,
    share_a_name,
    state,
    tagged,
)


def plain(rng: Rng) -> Phrase:
    """Anna bought a cake at the market yesterday."""
    return sentence(statement(action(rng, negated=rng.random() < 0.3)))


def inverted(rng: Rng) -> Phrase:
    """Yesterday Anna bought a cake at the market."""
    clause = action(rng)
    return sentence(time_first(clause) if clause.time else statement(clause))


def yes_no(rng: Rng) -> Phrase:
    """Did Anna buy a cake at the market?"""
    modal = rng.choice(["can", "should", "want", "must", ""])
    subject = pick_subject(rng, "I we you he" if modal in {"can", "should"} else "you he she they")
    name = rng.choice(WILLED if modal else ACTIONS)
    return sentence(question(action(rng, subject, name, modal)), "?")


def wh_question(rng: Rng) -> Phrase:
    """Where did Anna buy the cake? One constituent is asked for and left out."""
    clause = action(rng, pick_subject(rng, "you he she they"))
    while clause.tense in {"present", "would like"} or clause.frequency:
        clause = action(rng, pick_subject(rng, "you he she they"))
    options = [("time", "when", "wann"), ("", "why", "warum")]
    if clause.place:
        options += [("place", "where", "wo")] * 3
    if clause.object and clause.verb.objects.startswith("acc"):
        options += [("object", "what", "was")] * 2
    asked, english, german = rng.choice(options)
    return sentence(question(replace(clause, **{asked: EMPTY}) if asked else clause, words(english, german)), "?")


def who_question(rng: Rng) -> Phrase:
    """Who baked the cake?"""
    name = rng.choice([name for name in ACTIONS if lx.VERBS[name].objects.startswith(("acc", "-", "where"))])
    return sentence(statement(action(rng, Subject(words("who", "wer"), 2, ""), name)), "?")


def how_many(rng: Rng) -> Phrase:
    """How many apples did Anna buy?"""
    name, tags = rng.choice(lx.COUNTABLES)
    noun = rng.choice([noun for noun in tagged(*tags.split()) if not noun.is_mass])
    clause = action(rng, pick_subject(rng, "you he she they"), name, rng.choice(["past", "future"]))
    asked = words("how many", "wie viele") + noun_phrase(noun, "b", "nom")
    return sentence(question(replace(clause, object=EMPTY, place=EMPTY), asked), "?")


def because(rng: Rng) -> Phrase:
    """Anna is staying at home because she is tired."""
    name, objects, reasons = rng.choice(lx.REASONS)
    clause = action(rng, name=name, tense="progressive", objects=objects)
    if name in {"stay", "rest", "sleep"}:
        clause = replace(clause, place=place("home"))
    reason = state(rng.choice(reasons.split()), again(clause.subject))
    main = statement(replace(clause, time=EMPTY if rng.random() < 0.5 else words("today", "heute")))
    return sentence(comma(main) + subordinate(reason, words("because", "weil")))


def cannot(rng: Rng) -> Phrase:
    """Anna cannot cook because she has no time."""
    name = rng.choice([name for name in WILLED if name not in {"stay", "rest", "sleep", "get up", "arrive"}])
    clause = action(rng, name=name, tense="can", negated=True)
    clause = replace(clause, time=rng.choice([words("today", "heute"), words("this evening", "heute Abend"), EMPTY]))
    reason = state(rng.choice(["notime", "notime", "sick", "tired", "fever"]), again(clause.subject))
    return sentence(comma(statement(clause)) + subordinate(reason, words("because", "weil")))


def although(rng: Rng) -> Phrase:
    """Paul is working although he has a fever."""
    name, reasons = rng.choice(lx.CONTRASTS)
    clause = replace(action(rng, name=name, tense="progressive"), time=EMPTY)
    reason = state(rng.choice(reasons.split()), again(clause.subject))
    return sentence(comma(statement(clause)) + subordinate(reason, words("although", "obwohl")))


def when(rng: Rng) -> Phrase:
    """When it rains, Anna often stays at home. In German the clause in front turns the subject and the verb around."""
    habits = [row for row in lx.REASONS if "daily" in lx.VERBS[row[0]].flags or row[0] == "stay"]
    name, objects, reasons = rng.choice(habits)
    subject = pick_subject(rng)
    reason = state(rng.choice([name for name in reasons.split() if name != "fever"]), subject)
    reason = replace(reason, tense="present")
    clause = replace(action(rng, subject, name, "present", objects), time=EMPTY)
    if name in {"stay", "rest", "sleep"}:
        clause = replace(clause, place=place("home"))
    clause = replace(clause, subject=again(subject) if reason.subject is subject else subject)
    return sentence(statement(clause, front=comma(subordinate(reason, words("when", "wenn")), ",")))


def condition(rng: Rng) -> Phrase:
    """If it rains tomorrow, Anna will stay at home."""
    skies, names = rng.choice(lx.CONDITIONS)
    sky, name = rng.choice(skies.split()), rng.choice(names.split())
    time = pick_words(rng, lx.FUTURE_TIMES)
    reason = replace(state(sky, IT), tense="present", time=time)
    clause = replace(action(rng, name=name, tense="future"), time=EMPTY)
    if name in {"stay", "read", "cook"}:
        clause = replace(clause, place=place("home"))
    return sentence(statement(clause, front=comma(subordinate(reason, words("if", "wenn")), ",")))


def reported(rng: Rng) -> Phrase:
    """Anna thinks that Paul will buy a bicycle."""
    name = rng.choice(["say", "think", "hope", "know that"])
    speaker = pick_subject(rng, "he she they" if name == "say" else "I he she we they")
    clause = action(rng, negated=rng.random() < 0.2)
    tense = "past" if name == "say" and clause.tense == "past" else "present"
    matrix = Clause(speaker, lx.VERBS[name], tense)
    if share_a_name(matrix, clause) or (name == "hope" and clause.tense != "future"):
        return reported(rng)
    return sentence(comma(statement(matrix)) + subordinate(clause, words("that", "dass")))


def indirect_question(rng: Rng) -> Phrase:
    """Do you know where Anna bought the cake? I do not know whether she bought it."""
    clause = action(rng)
    while clause.tense not in {"past", "future"}:
        clause = action(rng, pick_subject(rng, "he she they"))
    options = [("", "whether", "ob"), ("time", "when", "wann"), ("", "why", "warum")]
    options += [("place", "where", "wo")] * 2 if clause.place else []
    asked, english, german = rng.choice(options)
    clause = replace(clause, **{asked: EMPTY}) if asked else clause
    knows = lx.VERBS["know that"]
    if rng.random() < 0.5:
        main, mark = question(Clause(pronoun_subject("you"), knows, "present")), "?"
    else:
        main, mark = statement(Clause(pick_subject(rng), knows, "present", negated=True)), "."
    return sentence(comma(main) + subordinate(clause, words(english, german)), mark)


def adjective_predicate(rng: Rng, adjective: Adjective) -> Phrase:
    """Very good, too expensive, or only good."""
    degrees = [EMPTY, words("very", "sehr"), words("too", "zu")]
    if adjective.en not in lx.EXCESSIVE:
        degrees.pop()
    degree = EMPTY if adjective.en in lx.COLOURS else rng.choice(degrees)
    return degree + words(adjective.en, adjective.de)


def description(rng: Rng) -> Phrase:
    """The soup was very hot."""
    noun = rng.choice([noun for noun in lx.NOUNS.values() if adjectives_for(noun)])
    adjective = rng.choice(adjectives_for(noun))
    code = "p" if noun.tags & {"family", "acquaintance", "belonging", "room"} else "d"
    subject = noun_subject(noun, code, owner=rng.choice(["my", "your", "our"]))
    lasting = "person" in noun.tags or adjective.en in {"old", "new", *lx.COLOURS}
    tense = "present" if lasting else rng.choice(["present", "past"])
    clause = Clause(subject, lx.BE, tense, negated=rng.random() < 0.2)
    return sentence(statement(replace(clause, predicate=adjective_predicate(rng, adjective))))


def feeling(rng: Rng) -> Phrase:
    """Anna was tired yesterday."""
    tense = rng.choice(["present", "past"])
    clause = mood(pick_subject(rng), rng.choice(list(lx.MOODS)), tense)
    time = pick_words(rng, lx.PAST_TIMES if tense == "past" else lx.NOW_TIMES[:2])
    clause = replace(clause, time=time, negated=rng.random() < 0.2)
    if rng.random() < 0.3:
        return sentence(question(replace(clause, subject=pick_subject(rng, "you she he they"), negated=False)), "?")
    return sentence(rng.choice([statement, time_first])(clause))


def weather(rng: Rng) -> Phrase:
    """Tomorrow it will be cold in Berlin."""
    tense, times = rng.choice([("past", lx.PAST_TIMES), ("future", lx.FUTURE_TIMES), ("present", lx.NOW_TIMES[:2])])
    clause = replace(state(rng.choice([*lx.SKIES, "rain", "snow", "sun"]), IT), time=pick_words(rng, times))
    clause = replace(clause, tense="progressive" if tense == "present" and clause.verb is not lx.BE else tense)
    if rng.random() < 0.25:
        climate = rng.choice(list(lx.CLIMATES.values()))
        clause = Clause(noun_subject(lx.NOUNS["weather"]), lx.BE, tense, time=clause.time)
        clause = replace(clause, predicate=words(climate.en, climate.de))
    where = city(rng, "in", "in") if rng.random() < 0.6 else EMPTY
    return sentence(rng.choice([statement, time_first])(replace(clause, place=where)))


def departure(rng: Rng) -> Phrase:
    """The train to Berlin leaves at eight o'clock from platform three."""
    noun, name = lx.NOUNS[rng.choice(["train", "bus"])], rng.choice(["leave", "arrive"])
    route = city(rng, "to", "nach") if name == "leave" else city(rng, "from", "aus")
    line = Subject(noun_subject(noun).phrase + route, 2, "it")
    clause = Clause(line, lx.VERBS[name], rng.choice(["present", "past", "future"]), time=clock(rng))
    if rng.random() < 0.3:
        return sentence(question(replace(clause, time=EMPTY), words("when", "wann")), "?")
    if rng.random() < 0.5 and name == "leave" and noun.en == "train":
        number = rng.choice(list(lx.NUMBERS)[:9])
        clause = replace(clause, place=words(f"from platform {number}", f"von Gleis {lx.NUMBERS[number]}"))
    return sentence(rng.choice([statement, time_first])(clause))


def price(rng: Rng) -> Phrase:
    """The red dress costs fifty euros."""
    noun = rng.choice(tagged("clothing", "gown", "furniture", "machine", "camera", "bag", "umbrella", "baked"))
    adjective = rng.choice([*(a for a in adjectives_for(noun) if a.en not in {"cheap", "expensive"}), None])
    clause = Clause(noun_subject(noun, "d", adjective), lx.VERBS["cost"], rng.choice(["present", "present", "past"]))
    if rng.random() < 0.3:
        return sentence(question(clause, words("how much", "wie viel")), "?")
    number = rng.choice(
        ["two", "five", "six", "seven"] if "baked" in noun.tags else ["ten", "twelve", "twenty", "fifty"]
    )
    return sentence(statement(replace(clause, object=words(f"{number} euros", f"{lx.NUMBERS[number]} Euro"))))


def like_to(rng: Rng) -> Phrase:
    """Anna likes to read books: the German adverb "gern" does the work of the English verb."""
    names = [name for name in ACTIONS if "daily" in lx.VERBS[name].flags and name not in {"wait", "get up"}]
    clause = replace(action(rng, name=rng.choice(names), tense="present"), time=EMPTY, frequency=EMPTY)
    return sentence(statement(replace(clause, tense="likes")))


def purpose(rng: Rng) -> Phrase:
    """Anna goes to the bakery to buy a cake."""
    goal, name, objects = rng.choice(lx.PURPOSES)
    tense = rng.choice(["past", "progressive", "future", "want"])
    clause = action(rng, name="go", tense=tense)
    errand = action(rng, clause.subject, name, tense, objects)
    clause = replace(clause, topic=destination(goal), frequency=EMPTY)
    errand = replace(errand, time=EMPTY, place=EMPTY, frequency=EMPTY, companion=EMPTY)
    main = rng.choice([statement, time_first])(clause) if clause.time else statement(clause)
    return sentence(comma(main) + infinitive(errand, "um"))


def attempt(rng: Rng) -> Phrase:
    """Paul forgot to call his sister."""
    subject = pick_subject(rng)
    no_time = Clause(subject, lx.VERBS["have"], rng.choice(["present", "past"]))
    no_time = replace(no_time, object=noun_phrase(lx.NOUNS["time"], "k", "acc"))
    hopes = Clause(subject, lx.VERBS["hope"], "present")
    forgot = Clause(subject, lx.VERBS["forget"], "past")
    names = [name for name in WILLED if lx.VERBS[name].objects != "clock"]
    errand = action(rng, subject, rng.choice(names), "past")
    errand = replace(errand, time=EMPTY, companion=EMPTY)
    return sentence(comma(statement(rng.choice([hopes, no_time, forgot]))) + infinitive(errand))


def doing_while(rng: Rng) -> Phrase:
    """Anna is cooking while Paul is reading the newspaper."""
    names = [n for n in ACTIONS if "daily" in lx.VERBS[n].flags and lx.VERBS[n].objects.startswith(("acc", "-", "dat"))]
    first, second = (
        replace(action(rng, pick_subject(rng, pronouns), name, "progressive"), time=EMPTY, place=EMPTY)
        for name, pronouns in zip(rng.sample(names, 2), ("I he she we they", "I we"), strict=True)
    )
    if share_a_name(first, second) or first.subject.owner == second.subject.owner:
        return doing_while(rng)
    link = rng.choice([("while", "während"), ("and", "und")])
    if link[0] == "and":
        return sentence(statement(first) + words(*link) + statement(second))
    return sentence(comma(statement(first)) + subordinate(second, words(*link)))


def relative_object(rng: Rng) -> Phrase:
    """The cake that Anna baked yesterday is very good."""
    made = "buy bake order sell find lose read watch repair paint wash plant wear"
    name = rng.choice(made.split())
    choices = [choice.split(":")[0] for choice in lx.VERBS[name].objects.split() if ":" in choice]
    noun = rng.choice([noun for noun in tagged(*choices) if adjectives_for(noun) and not noun.is_mass])
    clause = replace(action(rng, name=name, tense="past"), object=EMPTY)
    relative = subordinate(clause, words("that", definite(noun.gender, "acc")))
    subject = noun_subject(noun)
    whole = replace(subject, phrase=comma(comma(subject.phrase) + relative))
    predicate = adjective_predicate(rng, rng.choice(adjectives_for(noun)))
    return sentence(statement(Clause(whole, lx.BE, "present", predicate=predicate)))


def relative_subject(rng: Rng) -> Phrase:
    """Do you know the woman who lives in Vienna?"""
    noun = rng.choice(tagged("stranger", "expert"))
    name = rng.choice(["live", "buy", "repair", "sell", "visit", "help", "invite", "work", "find", "call", "drive"])
    tense = "present" if name == "live" else "past"
    case = rng.choice(["nom", "acc"])
    who = Subject(words("who", definite(noun.gender, "nom")), 2, noun_subject(noun).pronoun)
    relative = subordinate(action(rng, who, name, tense))
    person = comma(noun_phrase(noun, "d", case)) + relative
    if case == "nom":
        adjective = lx.ADJECTIVES[rng.choice(["friendly", "young"])]
        predicate = adjective_predicate(rng, adjective)
        return sentence(statement(Clause(Subject(comma(person), 2, ""), lx.BE, "present", predicate=predicate)))
    knows = Clause(pronoun_subject(rng.choice(["you", "I", "we"])), lx.VERBS["know"], "present", object=person)
    if knows.subject.pronoun == "you":
        return sentence(question(knows), "?")
    return sentence(statement(knows))


def there_is(rng: Rng) -> Phrase:
    """There is a big tree in the garden."""
    where, tags = rng.choice(lx.SIGHTS)
    noun = rng.choice(tagged(*tags.split()))
    fitting = [adjective for adjective in adjectives_for(noun) if adjective.en not in lx.OPINIONS]
    adjective = rng.choice([*fitting, None])
    plural = rng.random() < 0.3
    number = rng.choice(list(lx.NUMBERS)[:2])
    thing = noun_phrase(noun, "n" if plural else "i", "acc", adjective, number=number)
    there, be = object(), object()
    spot = place(where)
    english = tokens("there", there) + tokens("are" if plural else "is", be) + thing.en + spot.en
    return sentence(Phrase(english, spot.de + tokens("gibt", be) + tokens("es", there) + thing.de))


def comparison(rng: Rng) -> Phrase:
    """The coat is more expensive than the jacket."""
    english, german, tags, *links = rng.choice(lx.COMPARATIVES)
    group = rng.choice(tags.split())
    first, second = rng.sample(tagged(group), 2)
    code = "p" if group == "relation" else "d"
    subject = pick_subject(rng) if group == "relation" else noun_subject(first)
    other = noun_phrase(second, code, "nom", owner=subject.owner or "my")
    predicate = words(english, german, *links) + words("than", "als") + other
    return sentence(statement(Clause(subject, lx.BE, "present", predicate=predicate)))


TEMPLATES = {  # how often each kind of sentence is drawn
    plain: 26, inverted: 12, yes_no: 9, wh_question: 7, who_question: 3, how_many: 2, because: 5, cannot: 3,
    although: 3, when: 3, condition: 3, reported: 8, indirect_question: 5, description: 5, feeling: 2, weather: 3,
    departure: 3, price: 3, like_to: 4, purpose: 5, attempt: 4, doing_while: 4, relative_object: 4,
    relative_subject: 3, there_is: 3, comparison: 3,
}  # fmt: skip
