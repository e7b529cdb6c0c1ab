"""English words that questions to databases use, so that they count as spelled right."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

COMMON_WORDS = frozenset(
    """a about above according across active actually add added after again ago all almost along already also altogether always
    am among amount an and annual annually another any anybody anyone anything apart are area around as ascending at available
    average away back bad be became because become been before began begin beginning behind being belong belongs below best
    better between big bigger biggest both bottom bought break breakdown broken but buy buyer buyers by calculate call called
    came can cannot cheap cheaper cheapest check clients close come comes coming common compare compared contain containing
    contains cost costing costliest costs could count counted counts created current currently customer database date dates day
    days decreasing deliver descending did differ different display distinct distribution do does doing done down during each
    earlier earliest earn earned earning earnings either else empty end ended ends entire equal even ever every everybody
    everyone everything exact exactly except excluding exist exists expensive fall far few fewer fewest figure final find first
    for found from full gave get gets getting give given go goes going good got great greater greatest group grouped had half
    happen happened has have having he hello help her here hi high higher highest him his how however i id ignoring in include
    included includes including increasing inside instead into is it items its itself joined just keep kind kinds know known
    lack lacking large larger largest last late later latest least left less let like likes list listed lists little live lived
    lives living located location long longer longest look looking lot lots low lower lowest made mail main make makes making
    many match matching maximum may me mean median member members men mention mentioned middle minimum missing money month
    monthly months more most much must my name named names near need needed needs neither never new newer newest next no nobody
    none nor not nothing now number numbers of off offer offered often old older oldest on once one ones only onto open or
    order ordered ordering orders other others our out outside over overall overview own owned owns paid part pay paying pays
    people per percent percentage person pick piece pieces place placed places please popular possible price priced prices
    pricey proportion provide purchase purchased purchases put quantity question quick ranked ranking rate rather ratio real
    really recent recently record records regarding register registered relation remain remaining report requested respective
    respectively rest return revenue rows same say second see sell selling sells sent set several share she shortest should
    show showing shown shows side sign signed since single size small smaller smallest so sold some somebody someone something
    sort sorted spend spent split start started starting starts still stored such sum summary take taken tell ten than thank
    thanks that the their them themselves then there these they thing things third this those though three through time times
    to today together told too top total totals turnover two type types under until up upon us use used user users using value
    values various very want was way we week weeks well went were what when where whether which while who whole whom whose why
    will with within without word words work working would year yearly years yes yesterday yet you your zero bring brings
    biggest spenders spender bestseller bestsellers sellers seller unit units euro euros dollar dollars generated bestselling
    rated unrated reviewed worse worst lately highly lowly populous populated dense densest sparsest crowded heavy heaviest
    lightest tall tallest deep deepest short fast fastest slow slowest young youngest rich richest poor poorest wide widest
    january february march april may june july august september october november december monday tuesday wednesday thursday
    friday saturday sunday spring summer autumn winter quarter weekend weekday daily weekly hour hours minute minutes sales
    income profit stock inventory sold-out contact reach email phone address buyers shoppers clients shopper client person
    bordering borders adjacent neighboring neighbouring neighbors neighbours surrounding around run runs running flow flows
    flowing cross crosses crossing pass passes traverse traverses through country countries capital capitals height
    elevation highest point points peak peaks mountain mountains river rivers lake lakes state states city cities major
    citizens citizen inhabitants residents population populations density large usa us united
    right service services account accounts information details detail description room rooms project balance leaving leave
    leaves arrive arrives arriving result results history schedule activity manager management video international official
    attended attend entry origin body characteristics candidate season source degree degrees program programs statistics award
    famous select membership system reference notes degree ground round stop stops early party parties produced produce role
    roles held hold host hosts color colour colors colours male female race races flying participate participant based base
    grand king half related saving savings taking takes teach teaches cover trade media noon stage agent info mode fail fails
    wall east west north south kids world past post able gold feet wish move test tests read seen parent done lost lose
    employed supplied supplies lead contract plan plans green blue red white black care soon carries carry carried chain exit
    finish finished pair catch assortment catalog catalogue range warehouse reorder restock refill refund refunds refunded
    return returning complained complaint complaints discount discounts delivery shipped shipping parcel parcels package
    packages basket cart invoice invoices invoicing billed billing owed owe debt margin expense expenses spendings outstanding
    overdue open-ended valid invalid active inactive present absent regular loyal vip premium standard special bulk single
    double triple couple dozen twice thrice rarely seldom always usually mostly mainly chiefly partly entirely completely
    fully nearly almost roughly approximately precisely strictly either respectively alphabetical alphabetically alphabetic
    chronological descending ascending reverse newest upward upwards downward onward onwards beyond beneath besides despite
    unless although though however therefore because since until till per via versus vs plus minus times divided multiplied
    overall altogether total subtotal grand sum sums summed totals mean median typical typically average averages rounded exact
    biggest smallest greater lesser upper lower inner outer topmost bottom rank ranks ranked position positions rows columns
    table tables field fields entries record records dataset data database lookup search searched searching filter filtered
    matched unique distinct duplicate duplicates repeated existing nonexistent registered unregistered subscribed subscriber
    enrolled enroll enrolment signed signing joined joining became become becomes turned turn turns reached reach reaches
    exceeded exceed exceeds exceeding surpass surpassed stayed stay stays remained sit sits hotel hotels guest guests ticket
    tickets seat seats flight flights airport airports train trains bus buses car cars bike bikes boat boats ship ships plane
    planes road roads street streets bridge bridges building buildings house houses apartment apartments office offices school
    schools university universities college colleges student students pupil teacher teachers course courses class classes exam
    grade grades lesson lessons doctor doctors nurse nurses patient patients hospital hospitals medicine disease treatment pet
    pets dog dogs cat cats animal animals food drink drinks meal meals breakfast lunch dinner restaurant restaurants cook cooks
    movie movies film films actor actors director directors music song songs album albums artist artists band bands singer
    singers concert concerts game games player players team teams match coach coaches season goal goals score scores points
    medal medals winner winners won win wins lose loser champion competition competitions event events festival festivals
    company companies firm firms employer employees worker workers staff boss bosses job jobs salary wage wages hired hire
    fired department departments division divisions project projects budget budgets market markets industry industries
    customer client supplier suppliers vendor vendors seller retailer dealer producer producers manufacturer manufacturers
    maker makers brand brands model models series version versions edition type kinds sort sorts category categories genre
    language languages religion religions currency currencies government president presidents king queen capital language
    border continents continent ocean oceans sea seas island islands desert deserts forest forests valley mountain hill hills
    coast village villages town towns suburb region regions province provinces county counties district districts area areas
    weather temperature rain snow wind sun hot cold warm dry wet morning afternoon evening night midnight noon today tomorrow
    yesterday tonight decade decades century centuries era period periods quarter quarters semester term terms deadline""".split()
)

SHORT_FORMS = dict(
    pair.split("=")
    for pair in """whats=what is|what's=what is|who's=who is|where's=where is|how's=how is|there's=there is|we've=we have
i'd=i would|i'm=i am|don't=do not|doesn't=does not|didn't=did not|haven't=have not|hasn't=has not|aren't=are not
isn't=is not|weren't=were not|wasn't=was not|can't=can not|won't=will not|which's=which is|pls=please|plz=please|u=you
thx=thanks|avg=average|qty=quantity|nr=number|num=number|nb=number|no.=number|max=maximum|min=minimum|cust=customer
prod=product|dept=department|hw=how|wich=which|&=and|€=euros|$=dollars|%=percent|pct=percent|lst=last|payed=paid
jan=january|feb=february|mar=march|apr=april|jun=june|jul=july|aug=august|sep=september|sept=september|oct=october
nov=november|dec=december|gimme=give me|dont=do not|doesnt=does not|didnt=did not|havent=have not|arent=are not
isnt=is not|wasnt=was not|werent=were not|cant=can not|wont=will not|im=i am|ive=i have|id=id|teh=the|hte=the|adn=and|waht=what|whcih=which|hwo=how|fo=of|ot=to|wer=were|r=are|w=with|b4=before|yr=year|yrs=years|mth=month|amt=amount|desc=descending|asc=ascending|ppl=people|cnt=count|tot=total|curr=current|approx=approximately|wasn=was not|shouldn't=should not|couldn't=could not|hadn't=had not|they're=they are|they've=they have|it's=it is|that's=that is|let's=let us|you've=you have|you're=you are|we're=we are|here's=here is|i've=i have""".replace(
        "\n", "|"
    ).split("|")
)
"""Short forms and abbreviations, and what they stand for."""

_SAME = [
    line.split("|")
    for line in """united states|usa|the us|u.s.|america|united states of america|us of a|american
united kingdom|uk|great britain|britain|england|gb|british|english
netherlands|the netherlands|holland|dutch
czechia|czech republic|czech
türkiye|turkey|turkish
germany|german
france|french
spain|spanish
italy|italian
portugal|portuguese
austria|austrian
switzerland|swiss
belgium|belgian
denmark|danish
norway|norwegian
sweden|swedish
finland|finnish
poland|polish
hungary|hungarian
ireland|irish
greece|greek
canada|canadian
japan|japanese
china|chinese
india|indian
brazil|brazilian
mexico|mexican
argentina|argentinian|argentine
australia|australian
russia|russian|russian federation
chile|chilean
egypt|egyptian
south africa|south african
korea|korean|south korea
thailand|thai
vietnam|vietnamese
indonesia|indonesian
philippines|philippine|filipino
israel|israeli
ukraine|ukrainian
romania|romanian
bulgaria|bulgarian
croatia|croatian
serbia|serbian
iceland|icelandic
new zealand|nz
colombia|colombian
peru|peruvian
cuba|cuban
morocco|moroccan
nigeria|nigerian
kenya|kenyan
saudi arabia|saudi
iran|iranian
iraq|iraqi
pakistan|pakistani
europe|european
asia|asian
africa|african
köln|cologne
münchen|munich
wien|vienna
praha|prague
roma|rome
milano|milan
lisboa|lisbon
københavn|copenhagen
göteborg|gothenburg
genève|geneva
bruxelles|brussels
firenze|florence
venezia|venice
napoli|naples
torino|turin
kraków|cracow
new york|nyc|new york city
los angeles|la
san francisco|sf
credit card|card
bank transfer|wire transfer|transfer|wire
cancelled|canceled|called off
shipped|sent
returned|sent back
female|woman|women|girl
male|man|men|boy""".splitlines()
]
ALIAS_WORDS = frozenset(name for names in _SAME for name in names)
"""Other names of countries, cities and states of things."""


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in folded if not unicodedata.combining(letter))


def aliases(values: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Other names of the values that have some: "French" and "german" for countries, "Cologne" for Köln."""
    groups = {_plain(name): names for names in _SAME for name in names}
    found = {}
    for value in values:
        names = groups.get(_plain(value))
        # An adjective is no other name of a thing that is called so ("English" of languages).
        if names is not None and _plain(value) in {_plain(names[0]), *map(_plain, names[1:3])}:
            found[value] = tuple(name for name in names if _plain(name) != _plain(value))
    return found
