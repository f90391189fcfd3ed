"""The words of the toy corpus: tables in plain text, one row a word, read once into small records.

A noun's tags say what it is; verbs and adjectives name the tags they go with, so that nobody drinks a bicycle. A
determiner code says how an object may be introduced: b bare, d definite, i indefinite, m measured ("a cup of"),
n counted, p possessive. English nouns, verbs and adjectives are the keys by which the other modules name a word.
"""

from dataclasses import dataclass, field

Case = str  # "nom", "acc" or "dat"

PERSONS = ("I", "you", "he", "we", "they")  # the order of every five-form row below; he stands for she and it too


@dataclass(frozen=True)
class Noun:
    """A noun: English singular and plural, German gender, singular and plural. A mass noun has no plural ("-")."""

    en: str
    en_plural: str
    gender: str
    de: str
    de_plural: str
    tags: frozenset[str]

    @property
    def is_mass(self) -> bool:
        """True for what is not counted: milk, music."""
        return self.en_plural == "-"


@dataclass(frozen=True)
class Adjective:
    """An adjective: the German predicate form, the stem that takes endings, and the noun tags it may describe."""

    en: str
    de: str
    stem: str
    tags: frozenset[str]


@dataclass(frozen=True)
class Verb:
    """A verb with its principal parts and what it goes with."""

    en: tuple[str, str, str, str]  # base, third person, past, -ing
    particle: tuple[str, ...]  # "up" in "get up"
    prefix: str  # the separable part: "auf" in "aufstehen"
    infinitive: str
    du: str
    er: str
    participle: str
    auxiliary: str  # "hat" or "ist"
    flags: frozenset[str]  # see VERB_FLAGS
    objects: str  # what follows: "-", "person", "acc tag:codes", "dat", "dat+acc tag:codes", "for=auf+acc tag:codes"
    places: tuple[str, ...]

    def present(self, person: int) -> str:
        """The German finite present form without its prefix; `person` indexes PERSONS."""
        first = self.infinitive.removesuffix("n").removesuffix("e") + "e"
        regular = (first, self.du, self.er, self.infinitive, self.infinitive)
        return IRREGULAR_PRESENT.get(self.infinitive, regular)[person]


@dataclass(frozen=True)
class Modal:
    """A modal verb. `english` is the five present forms; `is_auxiliary` is False where English needs `do` (want to)."""

    english: tuple[str, ...]
    german: tuple[str, ...]
    is_auxiliary: bool
    rest: tuple[str, ...] = field(default=())  # what stands between the finite form and the infinitive


def rows(table: str) -> list[list[str]]:
    """Split a table into rows of cells: by `|` if there is one, else by blanks."""
    lines = [line.strip() for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line.split("|")] if "|" in line else line.split() for line in lines if line]


def _nouns(table: str) -> dict[str, Noun]:
    return {row[0]: Noun(*row[:5], tags=frozenset([row[0], *row[5:]])) for row in rows(table)}


def _verb(english: str, german: str, objects: str, places: str) -> Verb:
    base, third, past, ing, *particle = english.split()
    infinitive, du, er, participle, auxiliary, *flags = german.split()
    prefix, _, stem = infinitive.rpartition("-")
    parts = (prefix, stem, du, er, participle, auxiliary)
    return Verb((base, third, past, ing), tuple(particle), *parts, frozenset(flags), objects, tuple(places.split()))


def _verbs(table: str) -> dict[str, Verb]:
    verbs: dict[str, Verb] = {}
    for verb in (_verb(*row) for row in rows(table)):
        name = " ".join((verb.en[0], *verb.particle))
        verbs[f"{name} {verb.objects}" if name in verbs else name] = verb  # "know" kennen, "know that" wissen
    return verbs


def _adjectives(table: str) -> dict[str, Adjective]:
    return {en: Adjective(en, de, "teur" if de == "teuer" else de, frozenset(tags)) for en, de, *tags in rows(table)}


NOUNS = _nouns("""
    mother       mothers       f Mutter       Mütter       family person
    father       fathers       m Vater        Väter        family person
    sister       sisters       f Schwester    Schwestern   family person relation
    brother      brothers      m Bruder       Brüder       family person relation
    grandmother  grandmothers  f Großmutter   Großmütter   family person
    grandfather  grandfathers  m Großvater    Großväter    family person
    aunt         aunts         f Tante        Tanten       family person
    uncle        uncles        m Onkel        Onkel        family person
    daughter     daughters     f Tochter      Töchter      family person
    son          sons          m Sohn         Söhne        family person
    friend       friends       m Freund       Freunde      acquaintance person relation
    neighbour    neighbours    m Nachbar      Nachbarn     acquaintance person relation weak
    colleague    colleagues    f Kollegin     Kolleginnen  acquaintance person relation
    teacher      teachers      f Lehrerin     Lehrerinnen  acquaintance person expert
    doctor       doctors       m Arzt         Ärzte        person expert
    woman        women         f Frau         Frauen       person stranger
    man          men           m Mann         Männer       person stranger
    boy          boys          m Junge        Jungen       person stranger weak
    apple        apples        m Apfel        Äpfel        food fruit kilo
    pear         pears         f Birne        Birnen       food fruit kilo
    egg          eggs          n Ei           Eier         food
    tomato       tomatoes      f Tomate       Tomaten      food kilo vegetable
    potato       potatoes      f Kartoffel    Kartoffeln   food kilo vegetable
    cake         cakes         m Kuchen       Kuchen       food baked piece
    bread        -             n Brot         -            food baked
    cheese       -             m Käse         -            food piece
    fish         -             m Fisch        -            dish
    soup         soups         f Suppe        Suppen       dish warm
    salad        salads        m Salat        Salate       dish
    rice         -             m Reis         -            dish kilo
    coffee       -             m Kaffee       -            drink warm cup
    tea          -             m Tee          -            drink warm cup
    milk         -             f Milch        -            drink glass
    juice        -             m Saft         -            drink glass
    water        -             n Wasser       -            drink glass
    cup          cups          f Tasse        Tassen       measure
    glass        glasses       n Glas         Gläser       measure
    piece        pieces        n Stück        Stücke       measure
    kilo         kilos         n Kilo         Kilo         measure
    coat         coats         m Mantel       Mäntel       clothing
    dress        dresses       n Kleid        Kleider      gown
    shirt        shirts        n Hemd         Hemden       clothing
    jacket       jackets       f Jacke        Jacken       clothing
    hat          hats          m Hut          Hüte         clothing
    scarf        scarves       m Schal        Schals       clothing
    key          keys          m Schlüssel    Schlüssel    belonging
    bag          bags          f Tasche       Taschen      belonging luggage
    umbrella     umbrellas     m Regenschirm  Regenschirme belonging
    phone        phones        n Telefon      Telefone     belonging
    ticket       tickets       f Fahrkarte    Fahrkarten   pass
    camera       cameras       f Kamera       Kameras      belonging
    present      presents      n Geschenk     Geschenke    gift
    flower       flowers       f Blume        Blumen       plant bloom gift
    rose         roses         f Rose         Rosen        plant bloom gift
    tree         trees         m Baum         Bäume        plant
    book         books         n Buch         Bücher       text gift
    newspaper    newspapers    f Zeitung      Zeitungen    text
    letter       letters       m Brief        Briefe       text post
    postcard     postcards     f Postkarte    Postkarten   post
    parcel       parcels       n Paket        Pakete       luggage parcels
    story        stories       f Geschichte   Geschichten  text
    film         films         m Film         Filme        film
    song         songs         n Lied         Lieder       song
    picture      pictures      n Bild         Bilder       picture
    music        -             f Musik        -            music
    football     -             m Fußball      -            game
    chess        -             n Schach       -            game
    German       -             n Deutsch      -            language
    Spanish      -             n Spanisch     -            language
    word         words         n Wort         Wörter       words
    question     questions     f Frage        Fragen       questions
    exam         exams         f Prüfung      Prüfungen    exam
    table        tables        m Tisch        Tische       furniture
    chair        chairs        m Stuhl        Stühle       furniture
    lamp         lamps         f Lampe        Lampen       furniture switch
    bed          beds          n Bett         Betten       furniture
    radio        radios        n Radio        Radios       machine switch
    computer     computers     m Computer     Computer     machine switch
    car          cars          n Auto         Autos        vehicle
    bicycle      bicycles      n Fahrrad      Fahrräder    vehicle
    train        trains        m Zug          Züge         transport
    bus          buses         m Bus          Busse        transport
    house        houses        n Haus         Häuser       building
    room         rooms         n Zimmer       Zimmer       room building
    window       windows       n Fenster      Fenster      opening
    door         doors         f Tür          Türen        opening
    dog          dogs          m Hund         Hunde        animal
    cat          cats          f Katze        Katzen       animal
    kitchen      kitchens      f Küche        Küchen       room
    garden       gardens       m Garten       Gärten       outdoors
    balcony      balconies     m Balkon       Balkone      outdoors
    park         parks         m Park         Parks        outdoors
    market       markets       m Markt        Märkte       store
    supermarket  supermarkets  m Supermarkt   Supermärkte  store
    bakery       bakeries      f Bäckerei     Bäckereien   store
    shop         shops         n Geschäft     Geschäfte    store
    station      stations      m Bahnhof      Bahnhöfe     place
    office       offices       n Büro         Büros        room
    hospital     hospitals     n Krankenhaus  Krankenhäuser place
    library      libraries     f Bibliothek   Bibliotheken place
    museum       museums       n Museum       Museen       sight
    restaurant   restaurants   n Restaurant   Restaurants  place
    café         cafés         n Café         Cafés        place
    cinema       cinemas       n Kino         Kinos        place
    hotel        hotels        n Hotel        Hotels       building
    lake         lakes         m See          Seen         outdoors
    beach        beaches       m Strand       Strände      outdoors
    party        parties       f Feier        Feiern       event
    weekend      weekends      n Wochenende   Wochenenden  event
    trip         trips         f Reise        Reisen       event trip
    weather      -             n Wetter       -            weather
    sun          -             f Sonne        -            sun
    time         -             f Zeit         -            time
    fever        -             n Fieber       -            illness
""")

ADJECTIVES = _adjectives("""
    red          rot          clothing gown vehicle bloom umbrella bag apple
    blue         blau         clothing gown vehicle umbrella bag lamp
    green        grün         clothing gown vehicle umbrella bag
    white        weiß         clothing gown bloom house animal
    black        schwarz      clothing gown vehicle umbrella bag animal
    new          neu          clothing gown belonging vehicle furniture machine film song neighbour colleague
    old          alt          clothing gown belonging vehicle furniture machine house tree film song stranger animal
    big          groß         vehicle furniture house room parcel tree animal dog cake
    small        klein        vehicle furniture house room parcel tree animal garden hotel bag
    beautiful    schön        clothing gown plant picture song house gift outdoors
    expensive    teuer        ticket clothing gown vehicle furniture machine phone camera hotel
    cheap        billig       ticket clothing gown vehicle furniture machine phone camera hotel
    good         gut          baked cheese dish coffee book film restaurant
    fresh        frisch       food fish salad juice milk
    hot          heiß         warm
    cold         kalt         drink soup
    sweet        süß          fruit cake juice
    heavy        schwer       luggage
    long         lang         book letter story film trip song
    short        kurz         book letter story film trip song
    interesting  interessant  text film picture museum trip
    boring       langweilig   text film picture museum trip
    funny        lustig       story film song picture boy
    friendly     freundlich   neighbour colleague expert stranger
    young        jung         stranger animal doctor teacher
    warm         warm         coat jacket
    difficult    schwierig    words questions exam
    easy         einfach      words questions exam
    modern       modern       hotel station office library kitchen hospital
    quiet        ruhig        hotel library park beach lake garden café
""")

MOODS = _adjectives("""
    tired    müde
    sick     krank
    happy    glücklich
    sad      traurig
    hungry   hungrig
    thirsty  durstig
    healthy  gesund
""")

SKIES = _adjectives("""
    cold   kalt
    warm   warm
    hot    heiß
    dark   dunkel
    sunny  sonnig
    windy  windig
""")

CLIMATES = _adjectives("""
    good       gut
    bad        schlecht
    beautiful  schön
""")

# English parts and particle | German infinitive, du, er, participle, auxiliary, flags | objects | places
VERBS = _verbs("""
    eat eats ate eating                             | essen isst isst gegessen hat daily company                                | acc food:bi dish:i cake:m | kitchen garden restaurant home
    drink drinks drank drinking                     | trinken trinkst trinkt getrunken hat daily                                | acc drink:bm | kitchen garden café balcony home
    cook cooks cooked cooking                       | kochen kochst kocht gekocht hat daily company                             | acc soup:i fish:b rice:b vegetable:b egg:b | kitchen home
    bake bakes baked baking                         | backen backst backt gebacken hat company                                  | acc baked:bi cake:di | kitchen home
    order orders ordered ordering                   | bestellen bestellst bestellt bestellt hat                                 | acc dish:i drink:bm cake:im | restaurant café
    buy buys bought buying                          | kaufen kaufst kauft gekauft hat                                           | acc food:bdmn drink:b clothing:idn gown:id belonging:i gift:in newspaper:i ticket:in furniture:idn machine:i vehicle:id rice:m fish:b | market shop supermarket
    sell sells sold selling                         | verkaufen verkaufst verkauft verkauft hat broad                           | acc vehicle:pd furniture:pd machine:pd house:pd picture:pd |
    pay pays paid paying for                        | bezahlen bezahlst bezahlt bezahlt hat                                     | acc dish:d clothing:d gown:d ticket:dp furniture:d coffee:d trip:d |
    need needs needed needing                       | brauchen brauchst braucht gebraucht hat state                             | acc belonging:i ticket:in clothing:i furniture:in machine:i vehicle:i time:b drink:m |
    have has had having                             | haben hast hat gehabt hat state                                           | acc animal:in belonging:i vehicle:in machine:i house:i garden:i exam:i |
    know knows knew knowing                         | kennen kennst kennt gekannt hat state                                     | acc acquaintance:p stranger:d story:d song:d hotel:d film:d restaurant:d |
    look looks looked looking for                   | suchen suchst sucht gesucht hat                                           | acc belonging:pd ticket:pd animal:p letter:d book:p hat:p jacket:p | kitchen garden office home
    find finds found finding                        | finden findest findet gefunden hat once                                   | acc belonging:pd ticket:pd animal:p letter:d book:p hat:p jacket:p | kitchen garden office park
    forget forgets forgot forgetting                | vergessen vergisst vergisst vergessen hat once                            | acc belonging:p ticket:p book:p hat:p jacket:p | office restaurant
    lose loses lost losing                          | verlieren verlierst verliert verloren hat once                            | acc belonging:p ticket:p hat:p letter:d | park station
    read reads read reading                         | lesen liest liest gelesen hat daily                                       | acc book:di newspaper:di letter:i story:i | garden library café balcony kitchen home
    write writes wrote writing                      | schreiben schreibst schreibt geschrieben hat daily                        | dat+acc letter:i postcard:i |
    send sends sent sending                         | schicken schickst schickt geschickt hat broad                             | dat+acc post:i parcel:i picture:i gift:i |
    give gives gave giving                          | geben gibst gibt gegeben hat broad                                        | dat+acc belonging:d ticket:d gift:i newspaper:d letter:d picture:i apple:i drink:m cake:m |
    show shows showed showing                       | zeigen zeigst zeigt gezeigt hat broad                                     | dat+acc picture:ip house:p garden:p vehicle:p clothing:p |
    tell tells told telling                         | erzählen erzählst erzählt erzählt hat                                     | dat+acc story:i |
    help helps helped helping                       | helfen hilfst hilft geholfen hat daily                                    | dat | garden kitchen home
    thank thanks thanked thanking                   | danken dankst dankt gedankt hat                                           | dat |
    visit visits visited visiting                   | besuchen besuchst besucht besucht hat daily broad                         | person acc sight:d |
    ask asks asked asking                           | fragen fragst fragt gefragt hat                                           | person |
    meet meets met meeting                          | treffen triffst trifft getroffen hat daily broad                          | person | park café station museum
    call calls called calling                       | an-rufen rufst ruft angerufen hat daily broad                             | person |
    invite invites invited inviting                 | ein-laden lädst lädt eingeladen hat broad                                 | person |
    pick picks picked picking up                    | ab-holen holst holt abgeholt hat                                          | person acc parcel:di | station
    open opens opened opening                       | öffnen öffnest öffnet geöffnet hat                                        | acc opening:d parcel:d letter:d present:d shop:d |
    close closes closed closing                     | zu-machen machst macht zugemacht hat                                      | acc opening:d shop:d |
    turn turns turned turning on                    | an-machen machst macht angemacht hat                                      | acc switch:d | kitchen office
    turn turns turned turning off                   | aus-machen machst macht ausgemacht hat                                    | acc switch:d | kitchen office
    clean cleans cleaned cleaning                   | putzen putzt putzt geputzt hat daily                                      | acc opening:d kitchen:d bicycle:p shop:d |
    tidy tidies tidied tidying up                   | auf-räumen räumst räumt aufgeräumt hat daily                              | acc room:pd |
    wash washes washed washing                      | waschen wäschst wäscht gewaschen hat                                      | acc clothing:pd gown:pd car:p dog:p fruit:b |
    repair repairs repaired repairing               | reparieren reparierst repariert repariert hat broad                       | acc vehicle:pd furniture:d machine:dp camera:p phone:p |
    plant plants planted planting                   | pflanzen pflanzt pflanzt gepflanzt hat broad                              | acc plant:bin | garden park
    water waters watered watering                   | gießen gießt gießt gegossen hat daily                                     | acc plant:d flower:p | garden balcony
    learn learns learned learning                   | lernen lernst lernt gelernt hat daily company                             | acc language:b words:n song:i | library home
    study studies studied studying                  | lernen lernst lernt gelernt hat daily                                     | for=für+acc exam:dp | library home
    answer answers answered answering               | beantworten beantwortest beantwortet beantwortet hat                      | acc question:dn letter:d |
    understand understands understood understanding | verstehen verstehst versteht verstanden hat state                         | acc words:d questions:d story:d film:d song:d |
    play plays played playing                       | spielen spielst spielt gespielt hat daily company                         | acc game:b | park garden beach
    listen listens listened listening to            | hören hörst hört gehört hat daily                                         | acc song:d music:b story:d |
    sing sings sang singing                         | singen singst singt gesungen hat daily company                            | acc song:i | kitchen garden
    watch watches watched watching                  | sehen siehst sieht gesehen hat daily company                              | acc film:di | cinema home
    wear wears wore wearing                         | tragen trägst trägt getragen hat                                          | acc clothing:ip gown:ip |
    try tries tried trying on                       | an-probieren probierst probiert anprobiert hat                            | acc clothing:id gown:id | shop
    paint paints painted painting                   | malen malst malt gemalt hat broad                                         | acc picture:i house:i flower:b animal:i tree:i | garden beach
    wait waits waited waiting                       | warten wartest wartet gewartet hat daily                                  | for=auf+acc transport:d acquaintance:p doctor:d letter:i family:p | station hospital
    talk talks talked talking                       | sprechen sprichst spricht gesprochen hat daily broad                      | to=mit+dat acquaintance:p family:p expert:d | office garden
    look looks looked looking forward               | freuen freust freut gefreut hat sich state                                | to=auf+acc event:d film:d letter:p |
    dream dreams dreamed dreaming                   | träumen träumst träumt geträumt hat free                                  | of=von+dat trip:i house:i beach:d garden:i |
    work works worked working                       | arbeiten arbeitest arbeitet gearbeitet hat daily                          | - | garden office hospital library home
    sleep sleeps slept sleeping                     | schlafen schläfst schläft geschlafen hat daily                            | - | garden beach
    swim swims swam swimming                        | schwimmen schwimmst schwimmt geschwommen ist daily company                | - | lake
    dance dances danced dancing                     | tanzen tanzt tanzt getanzt hat daily company                              | - | kitchen garden beach
    rest rests rested resting                       | aus-ruhen ruhst ruht ausgeruht hat sich daily broad                       | - | garden balcony beach home
    stay stays stayed staying                       | bleiben bleibst bleibt geblieben ist placed                               | - | home hospital
    go goes went going                              | gehen gehst geht gegangen ist daily company                               | where |
    drive drives drove driving                      | fahren fährst fährt gefahren ist broad company                            | city |
    fly flies flew flying                           | fliegen fliegst fliegt geflogen ist broad company                         | city |
    live lives lived living                         | wohnen wohnst wohnt gewohnt hat state                                     | city |
    get gets got getting up                         | auf-stehen stehst steht aufgestanden ist daily morning                    | clock |
    arrive arrives arrived arriving                 | an-kommen kommst kommt angekommen ist                                     | clock |
    leave leaves left leaving                       | ab-fahren fährst fährt abgefahren ist                                     | clock |
    have has had having breakfast                   | frühstücken frühstückst frühstückt gefrühstückt hat daily morning company | - | kitchen garden café balcony home
    rain rains rained raining                       | regnen regnest regnet geregnet hat                                        | sky |
    snow snows snowed snowing                       | schneien schneist schneit geschneit hat                                   | sky |
    shine shines shone shining                      | scheinen scheinst scheint geschienen hat                                  | sky |
    cost costs cost costing                         | kosten kostest kostet gekostet hat state                                  | price |
    say says said saying                            | sagen sagst sagt gesagt hat state                                         | that |
    think thinks thought thinking                   | glauben glaubst glaubt geglaubt hat state                                 | that |
    hope hopes hoped hoping                         | hoffen hoffst hofft gehofft hat state                                     | that |
    know knows knew knowing                         | wissen weißt weiß gewusst hat state                                       | that |
""")  # noqa: E501

VERB_FLAGS = {
    "sich": "reflexive",
    "state": "no progressive: needs, never is needing",
    "free": "no modal: nobody must dream",
    "once": "told of the past only: lost, found",
    "daily": "may be a habit: every day, often",
    "broad": "may be placed in a week or a season: last summer, next week",
    "morning": "never in the evening",
    "placed": "says nothing without a place",
    "company": "done with somebody: with her sister",
}

BE = _verb("be is was being", "sein bist ist gewesen ist", "-", "")
ENGLISH_BE = {"present": ("am", "are", "is", "are", "are"), "past": ("was", "were", "was", "were", "were")}
IRREGULAR_PRESENT = {
    "sein": ("bin", "bist", "ist", "sind", "sind"),
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
}
PRETERITE = {  # these two say their past in one word, all others in the perfect
    "sein": ("war", "warst", "war", "waren", "waren"),
    "haben": ("hatte", "hattest", "hatte", "hatten", "hatten"),
}
WERDEN = ("werde", "wirst", "wird", "werden", "werden")
REFLEXIVE = ("mich", "dich", "sich", "uns", "sich")

MODALS = {
    "can": Modal(("can",) * 5, ("kann", "kannst", "kann", "können", "können"), True),
    "should": Modal(("should",) * 5, ("sollte", "solltest", "sollte", "sollten", "sollten"), True),
    "must": Modal(("must",) * 5, ("muss", "musst", "muss", "müssen", "müssen"), True),
    "would like": Modal(("would",) * 5, ("möchte", "möchtest", "möchte", "möchten", "möchten"), True, ("like", "to")),
    "want": Modal(
        ("want", "want", "wants", "want", "want"), ("will", "willst", "will", "wollen", "wollen"), False, ("to",)
    ),
    "wanted": Modal(("wanted",) * 5, ("wollte", "wolltest", "wollte", "wollten", "wollten"), False, ("to",)),
    "had": Modal(("had",) * 5, ("musste", "musstest", "musste", "mussten", "mussten"), False, ("to",)),
}

# Pronoun: English and German nominative, English object form, German accusative and dative
PRONOUNS = {
    row[0]: row
    for row in rows("""
    I     ich  me    mich  mir
    you   du   you   dich  dir
    he    er   him   ihn   ihm
    she   sie  her   sie   ihr
    we    wir  us    uns   uns
    they  sie  them  sie   ihnen
""")
}
OWNERS = {"I": "my", "you": "your", "he": "his", "she": "her", "we": "our", "they": "their"}
POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}

NAMES = {"she": ("Anna", "Clara", "Emma", "Lena", "Maria"), "he": ("Felix", "Jonas", "Max", "Paul", "Tom")}
CITIES = dict(
    rows("""
    Berlin   Berlin
    Cologne  Köln
    Hamburg  Hamburg
    Munich   München
    Vienna   Wien
    Zurich   Zürich
""")
)
NUMBERS = dict(
    rows("""
    two     zwei
    three   drei
    four    vier
    five    fünf
    six     sechs
    seven   sieben
    eight   acht
    nine    neun
    ten     zehn
    twelve  zwölf
    twenty  zwanzig
    fifty   fünfzig
""")
)

# English | German | word links where they are not one to one in order
PAST_TIMES = rows("""
    yesterday         | gestern
    yesterday evening | gestern Abend
    this morning      | heute Morgen
    on Monday         | am Montag
    on Saturday       | am Samstag
""")
NOW_TIMES = rows("""
    today         | heute
    now           | jetzt
    at the moment | im Moment | 0-0 1-0 2-1
""")
FUTURE_TIMES = rows("""
    tomorrow       | morgen
    this evening   | heute Abend
    on Friday      | am Freitag
    on Sunday      | am Sonntag
""")
BROAD_PAST_TIMES = rows("""
    last week    | letzte Woche
    last summer  | letzten Sommer
    two days ago | vor zwei Tagen | 0-1 1-2 2-0
""")
BROAD_FUTURE_TIMES = rows("""
    soon           | bald
    next week      | nächste Woche
    next summer    | nächsten Sommer
    at the weekend | am Wochenende | 0-0 1-0 2-1
    in two weeks   | in zwei Wochen
""")
HABIT_TIMES = rows("""
    every day     | jeden Tag
    every morning | jeden Morgen
    every evening | jeden Abend
""")
FREQUENCIES = rows("""
    often     | oft
    always    | immer
    sometimes | manchmal
""")

# Where something happens (German dative), and where somebody goes: English preposition, German preposition and case
PLACES = {
    row[0]: row[1:]
    for row in rows("""
    kitchen     in in
    garden      in in
    balcony     on auf
    park        in in
    market      at auf
    supermarket at in
    shop        in in
    station     at an
    office      in in
    hospital    in in
    library     in in
    museum      in in
    restaurant  in in
    café        in in
    cinema      at in
    hotel       in in
    lake        in in
    beach       on an
    room        in in
""")
}
DESTINATIONS = {
    row[0]: row[1:]
    for row in rows("""
    garden      into in acc
    party       to   zu dat
    park        to   in acc
    market      to   auf acc
    supermarket to   in acc
    bakery      to   zu dat
    station     to   zu dat
    doctor      to   zu dat
    library     to   in acc
    museum      to   in acc
    cinema      to   in acc
    beach       to   an acc
    office      to   in acc
    hospital    to   in acc
    café        to   in acc
""")
}
CONTRACTIONS = {
    ("in", "dem"): "im", ("in", "das"): "ins", ("an", "dem"): "am", ("an", "das"): "ans",
    ("zu", "dem"): "zum", ("zu", "der"): "zur", ("von", "dem"): "vom",
}  # fmt: skip

# Goal | verb | its objects: "goes to the bakery to buy a cake"
PURPOSES = rows("""
    bakery      | buy          | acc bread:b cake:im
    market      | buy          | acc egg:bn fruit:bmmn vegetable:bmmm cheese:b fish:b flower:bn
    supermarket | buy          | acc cheese:bm rice:bm drink:b egg:bn
    library     | read         | acc book:di newspaper:di
    library     | learn        | acc language:b words:b
    garden      | water        | acc plant:d
    garden      | plant        | acc plant:bin
    park        | play         | acc game:b
    park        | meet         | person
    station     | pick up      | person
    station     | buy          | acc ticket:in
    cinema      | watch        | acc film:di
    beach       | paint        | acc picture:i
    beach       | rest         | -
    café        | have breakfast | -
    café        | drink        | acc coffee:m tea:m
    office      | work         | -
    hospital    | visit        | person
""")

# What is done | its objects | because or when so: moods, illnesses and skies of `generate.state`
REASONS = rows("""
    stay    | -             | tired sick fever rain snow cold
    rest    | -             | tired sick fever
    sleep   | -             | tired sick
    eat     | acc food:bi dish:i | hungry
    drink   | acc drink:bm  | thirsty
    sing    | acc song:i    | happy
    dance   | -             | happy
    wear    | acc coat:ip jacket:ip scarf:ip | cold windy snow
    swim    | -             | hot warm sun
    turn on | acc lamp:d    | dark
    close   | acc opening:d | cold windy rain
    open    | acc opening:d | hot warm sun
""")
# What is done | although so
CONTRASTS = rows("""
    work   | tired sick fever hot
    swim   | cold rain windy
    play   | rain cold tired
    cook   | tired notime
    help   | tired notime
    clean  | tired
    drive  | sick snow rain
    learn  | tired sick
    repair | dark rain
""")

# Skies | what is done if so
CONDITIONS = rows("""
    rain snow cold windy | stay read cook visit
    sun hot warm sunny   | swim play paint drive
""")

# Verb | tags of what is counted: "How many apples did Anna buy?"
COUNTABLES = rows("""
    buy   | fruit gift
    eat   | fruit food
    plant | plant
    read  | book
    learn | words
""")

# What stands where: "There is a big tree in the garden."
SIGHTS = rows("""
    garden  | plant animal table chair
    park    | café animal tree restaurant
    room    | bed table chair lamp window
    kitchen | table chair lamp radio window
    library | computer table
    station | café restaurant shop bakery
    hotel   | restaurant café computer
    office  | computer table chair lamp
""")

# English comparative | German | tags of what is compared
COMPARATIVES = rows("""
    older          | älter   | relation animal building
    younger        | jünger  | relation animal
    bigger         | größer  | building vehicle animal room
    smaller        | kleiner | building vehicle animal room
    more expensive | teurer  | clothing vehicle furniture | 0-0 1-0
    cheaper        | billiger | clothing vehicle furniture
""")

UNWANTED = {"need": {"old", "expensive"}}  # adjectives for things that nobody does this with
COLOURS = {"red", "blue", "green", "white", "black"}
OPINIONS = {"cheap", "expensive", "good", "boring"}  # not what one sees at first sight
EXCESSIVE = set(
    ["big", "small", "expensive", "hot", "cold", "sweet", "heavy", "long", "short", "difficult"]
)  # one may say "too ..."
