"""Counterfactual pairs of words: two words that differ in one concept and in little else.

Written for this package, English unless the concept says otherwise; each list alternates "without the concept" and "with it". Which pairs
are single tokens depends on the tokenizer: `probes.causal.token_pairs` keeps those.
"""

from types import MappingProxyType


def _pairs(words: str) -> tuple[tuple[str, str], ...]:
    """Neighbours two by two."""
    split = words.split()
    return tuple(zip(split[::2], split[1::2], strict=True))


WORD_PAIRS = MappingProxyType(
    {
        "adjective ⇒ comparative": _pairs("""
            big bigger small smaller tall taller short shorter fast faster slow slower strong stronger weak weaker cheap cheaper rich richer
            poor poorer young younger old older warm warmer cold colder hard harder soft softer light lighter dark darker bright brighter
            deep deeper high higher low lower long longer wide wider near nearer great greater quick quicker smart smarter safe safer
            easy easier early earlier late later large larger thick thicker clear clearer close closer tight tighter happy happier
            simple simpler heavy heavier healthy healthier clean cleaner sharp sharper steep steeper"""),
        "adjective ⇒ superlative": _pairs("""
            big biggest small smallest tall tallest short shortest fast fastest slow slowest strong strongest cheap cheapest rich richest
            poor poorest young youngest old oldest warm warmest cold coldest hard hardest light lightest dark darkest bright brightest
            deep deepest high highest low lowest long longest great greatest quick quickest smart smartest safe safest easy easiest
            early earliest late latest large largest hot hottest near nearest close closest simple simplest heavy heaviest wealthy wealthiest
            weak weakest happy happiest fine finest busy busiest pure purest broad broadest"""),
        "verb ⇒ third person": _pairs("""
            accept accepts allow allows appear appears ask asks become becomes begin begins believe believes bring brings build builds
            carry carries choose chooses contain contains create creates describe describes eat eats enjoy enjoys explain explains
            feel feels find finds follow follows give gives grow grows happen happens hear hears hold holds improve improves include includes
            keep keeps know knows learn learns lose loses meet meets need needs prevent prevents provide provides receive receives
            remain remains remember remembers seem seems sing sings speak speaks suggest suggests teach teaches think thinks write writes"""),
        "verb ⇒ past": _pairs("""
            accept accepted allow allowed appear appeared ask asked become became begin began believe believed bring brought build built
            carry carried choose chose contain contained create created describe described eat ate enjoy enjoyed explain explained
            feel felt find found follow followed give gave grow grew happen happened hear heard hold held improve improved include included
            keep kept know knew learn learned lose lost meet met need needed prevent prevented provide provided receive received
            remain remained remember remembered seem seemed sing sang speak spoke suggest suggested teach taught think thought write wrote"""),
        "verb ⇒ -ing": _pairs("""
            accept accepting allow allowing appear appearing ask asking become becoming begin beginning believe believing bring bringing
            build building carry carrying choose choosing contain containing create creating describe describing eat eating enjoy enjoying
            explain explaining feel feeling find finding follow following give giving grow growing happen happening hear hearing
            hold holding improve improving include including keep keeping know knowing learn learning lose losing meet meeting
            prevent preventing provide providing receive receiving remain remaining remember remembering speak speaking suggest suggesting
            teach teaching think thinking write writing"""),
        "third person ⇒ -ing": _pairs("""
            accepts accepting allows allowing appears appearing asks asking becomes becoming begins beginning believes believing
            brings bringing builds building carries carrying chooses choosing contains containing creates creating describes describing
            eats eating enjoys enjoying explains explaining feels feeling finds finding follows following gives giving grows growing
            hears hearing holds holding improves improving includes including keeps keeping knows knowing loses losing meets meeting
            prevents preventing provides providing receives receiving remains remaining suggests suggesting thinks thinking writes writing"""),
        "verb ⇒ agent": _pairs("""
            teach teacher write writer play player work worker lead leader read reader speak speaker build builder farm farmer
            drive driver run runner own owner buy buyer sell seller sing singer dance dancer paint painter hunt hunter fight fighter
            design designer develop developer make maker manage manager produce producer research researcher train trainer travel traveler
            view viewer vote voter win winner help helper follow follower explore explorer invest investor create creator edit editor
            conduct conductor direct director act actor visit visitor"""),
        "verb ⇒ noun of action": _pairs("""
            act action collect collection connect connection construct construction create creation direct direction discuss discussion
            educate education elect election express expression inform information inspect inspection introduce introduction invent invention
            invite invitation protect protection produce production reduce reduction reflect reflection relate relation select selection
            situate situation translate translation transmit transmission agree agreement develop development govern government
            improve improvement invest investment move movement measure measurement treat treatment manage management punish punishment"""),
        "singular ⇒ plural": _pairs("""
            animal animals book books car cars child children city cities country countries dog dogs door doors farm farms finger fingers
            flower flowers foot feet friend friends garden gardens hand hands house houses idea ideas island islands king kings language languages
            letter letters machine machines man men mountain mountains mouse mice number numbers picture pictures plant plants
            question questions river rivers school schools song songs star stars story stories student students table tables teacher teachers
            tooth teeth tree trees village villages window windows woman women word words"""),
        "male ⇒ female": _pairs("""
            he she him her himself herself man woman men women boy girl boys girls father mother fathers mothers son daughter sons daughters
            brother sister brothers sisters husband wife uncle aunt nephew niece grandfather grandmother king queen kings queens prince princess
            actor actress waiter waitress gentleman lady gentlemen ladies male female males females dad mom sir madam hero heroine
            emperor empress duke duchess lord lady monk nun bull cow rooster hen groom bride wizard witch policeman policewoman god goddess"""),
        "country ⇒ capital": _pairs("""
            France Paris Germany Berlin Italy Rome Spain Madrid England London Russia Moscow China Beijing Japan Tokyo Egypt Cairo Greece Athens
            Austria Vienna Poland Warsaw Sweden Stockholm Norway Oslo Denmark Copenhagen Finland Helsinki Ireland Dublin Portugal Lisbon
            Belgium Brussels Hungary Budapest Turkey Ankara Iran Tehran Iraq Baghdad Syria Damascus Kenya Nairobi Cuba Havana Canada Ottawa
            Peru Lima Chile Santiago Thailand Bangkok India Delhi Ukraine Kiev Switzerland Bern Afghanistan Kabul Lebanon Beirut
            Netherlands Amsterdam Scotland Edinburgh Israel Jerusalem Indonesia Jakarta Vietnam Hanoi Korea Seoul Romania Bucharest"""),
        "country ⇒ people": _pairs("""
            France French Germany German Italy Italian Spain Spanish England English Russia Russian China Chinese Japan Japanese Egypt Egyptian
            Greece Greek Austria Austrian Poland Polish Sweden Swedish Norway Norwegian Denmark Danish Finland Finnish Ireland Irish
            Portugal Portuguese Belgium Belgian Hungary Hungarian Turkey Turkish Iran Iranian Iraq Iraqi Syria Syrian Cuba Cuban
            Canada Canadian Mexico Mexican Brazil Brazilian India Indian Ukraine Ukrainian Switzerland Swiss Netherlands Dutch Scotland Scottish
            Israel Israeli Vietnam Vietnamese Korea Korean Australia Australian"""),
        "thing ⇒ colour": _pairs("""
            blood red grass green snow white coal black sky blue lemon yellow leaf green milk white rose red tomato red banana yellow
            ocean blue salt white ruby red gold yellow chocolate brown carrot orange cherry red emerald green crow black cotton white
            sun yellow sea blue apple red lettuce green chalk white ink black pig pink plum purple frog green cream white butter yellow
            strawberry red pumpkin orange tar black wood brown"""),
        "adjective ⇒ adverb": _pairs("""
            quick quickly slow slowly careful carefully easy easily happy happily sad sadly quiet quietly loud loudly soft softly sudden suddenly
            final finally recent recently usual usually certain certainly clear clearly complete completely correct correctly deep deeply
            direct directly equal equally exact exactly general generally gradual gradually immediate immediately main mainly
            obvious obviously perfect perfectly possible possibly proper properly rapid rapidly rare rarely real really regular regularly
            serious seriously strong strongly successful successfully surprising surprisingly"""),
        "lower case ⇒ capital": _pairs("""
            always Always answer Answer because Because before Before book Book chapter Chapter children Children different Different
            during During even Even every Every example Example first First for For history History important Important many Many
            music Music never Never number Number other Other people People research Research science Science several Several
            sometimes Sometimes students Students table Table these These together Together under Under water Water where Where while While"""),
        "common ⇒ rare synonym": _pairs("""
            big immense small diminutive begin commence end terminate buy purchase help assist show demonstrate need require use utilize
            think contemplate ask inquire try endeavor enough sufficient happy joyful sad sorrowful angry furious funny humorous fast rapid
            strange peculiar hard arduous smart astute brave valiant rich affluent poor impoverished old ancient new novel hide conceal
            get obtain give bestow tell inform keep retain important crucial many numerous bad detrimental good beneficial about approximately"""),
        "word ⇒ opposite": _pairs("""
            happy unhappy able unable known unknown likely unlikely usual unusual fair unfair important unimportant healthy unhealthy
            necessary unnecessary aware unaware clear unclear certain uncertain expected unexpected comfortable uncomfortable
            successful unsuccessful possible impossible perfect imperfect direct indirect dependent independent visible invisible
            correct incorrect complete incomplete formal informal regular irregular legal illegal appropriate inappropriate
            sufficient insufficient capable incapable precedented unprecedented limited unlimited conscious unconscious"""),
        "English ⇒ French": _pairs("""
            the le and et with avec without sans for pour in dans on sur under sous but mais or ou where où who qui house maison water eau
            king roi child enfant woman femme man homme year année day jour night nuit world monde time temps life vie love amour
            city ville street rue church église school école book livre letter lettre country pays war guerre friend ami good bon
            great grand small petit beautiful beau young jeune new nouveau black noir white blanc green vert all tout very très also aussi
            more plus our notre we nous you vous they ils is est are sont was était be être have avoir"""),
        "English ⇒ Spanish": _pairs("""
            the el and y with con without sin for para in en on sobre but pero or o when cuando who quien house casa water agua king rey
            child niño woman mujer man hombre year año day día night noche world mundo time tiempo life vida love amor city ciudad
            street calle church iglesia school escuela book libro country país war guerra friend amigo good bueno great grande
            small pequeño young joven new nuevo black negro white blanco green verde all todo very muy also también more más our nuestro
            he él this este that ese is es are son was era where donde between entre because porque"""),
        "English ⇒ German": _pairs("""
            the der and und with mit without ohne for für in im on auf under unter but aber or oder when wenn who wer house Haus water Wasser
            king König child Kind woman Frau man Mann year Jahr day Tag night Nacht world Welt time Zeit life Leben love Liebe city Stadt
            street Straße church Kirche school Schule book Buch country Land war Krieg friend Freund good gut great groß small klein
            young jung new neu black schwarz white weiß green grün all alle very sehr also auch more mehr our unser we wir you Sie
            is ist are sind was war not nicht from von over über one ein this diese"""),
        "French ⇒ Spanish": _pairs("""
            le el et y avec con sans sin pour para dans en sur sobre mais pero ou o quand cuando qui quien maison casa eau agua roi rey
            enfant niño femme mujer homme hombre année año jour día nuit noche monde mundo temps tiempo vie vida amour amor ville ciudad
            rue calle église iglesia école escuela livre libro pays país guerre guerra ami amigo bon bueno grand grande tout todo
            très muy aussi también plus más notre nuestro est es sont son était era où donde"""),
        "thing ⇒ part": _pairs("""
            hand finger foot toe car wheel tree branch house roof book page flower petal bird wing fish fin door handle ship deck
            guitar string clock hand knife blade shoe sole year month week day hour minute army soldier school classroom face nose
            sentence word country province body arm computer keyboard bicycle pedal church tower river bank mountain peak plane wing
            chair leg shirt sleeve eye lens bottle neck piano key kitchen stove city street play scene"""),
        "digit ⇒ word": _pairs("""
            1 one 2 two 3 three 4 four 5 five 6 six 7 seven 8 eight 9 nine 10 ten 11 eleven 12 twelve 13 thirteen 14 fourteen 15 fifteen
            16 sixteen 17 seventeen 18 eighteen 19 nineteen 20 twenty 30 thirty 40 forty 50 fifty 60 sixty 70 seventy 80 eighty 90 ninety"""),
        "number ⇒ ordinal": _pairs("""
            one first two second three third four fourth five fifth six sixth seven seventh eight eighth nine ninth ten tenth eleven eleventh
            twelve twelfth thirteen thirteenth fourteen fourteenth fifteen fifteenth sixteen sixteenth seventeen seventeenth
            eighteen eighteenth nineteen nineteenth twenty twentieth hundred hundredth thousand thousandth"""),
        "animal ⇒ young": _pairs("""
            dog puppy cat kitten cow calf sheep lamb horse foal hen chick bear cub duck duckling goat kid deer fawn pig piglet frog tadpole
            wolf pup lion cub swan cygnet goose gosling butterfly caterpillar eagle chick seal pup dogs puppies cats kittens bears cubs
            human baby adult child adults children man boy woman girl people kids parents babies tree seedling plant sprout"""),
        "noun ⇒ adjective": _pairs("""
            beauty beautiful power powerful success successful danger dangerous nature natural history historical culture cultural
            politics political nation national region regional science scientific music musical art artistic health healthy
            wealth wealthy wind windy rain rainy sun sunny noise noisy luck lucky hope hopeful use useful care careful pain painful
            peace peaceful color colorful help helpful wood wooden fame famous courage courageous mystery mysterious religion religious
            economy economic academy academic atom atomic emotion emotional tradition traditional origin original finance financial"""),
    }
)
"""Name of the concept -> pairs (without it, with it)."""
