"""Words from which the shop is made: cities, people, products; some with apostrophes, accents and hyphens."""

from __future__ import annotations

# fmt: off

#: (city, country, population), rounded figures.
CITIES: tuple[tuple[str, str, int], ...] = (
    ("Paris", "France", 2102650), ("Lyon", "France", 522250), ("Saint-Étienne", "France", 173821),
    ("Bordeaux", "France", 261804), ("Aix-en-Provence", "France", 147478), ("Berlin", "Germany", 3755251),
    ("Hamburg", "Germany", 1892122), ("Köln", "Germany", 1084831), ("Frankfurt am Main", "Germany", 773068),
    ("Leipzig", "Germany", 616093), ("Madrid", "Spain", 3332035), ("Barcelona", "Spain", 1660122),
    ("San Sebastián", "Spain", 188743), ("Málaga", "Spain", 586384), ("Lisbon", "Portugal", 567131),
    ("Porto", "Portugal", 248769), ("Vila Nova de Gaia", "Portugal", 303854), ("Rome", "Italy", 2755309),
    ("Milan", "Italy", 1354196), ("L'Aquila", "Italy", 69558), ("Turin", "Italy", 846916),
    ("Reggio Calabria", "Italy", 169140), ("Vienna", "Austria", 1982097), ("Graz", "Austria", 298479),
    ("Zürich", "Switzerland", 427721), ("Geneva", "Switzerland", 203840), ("Brussels", "Belgium", 1218255),
    ("Ghent", "Belgium", 265086), ("Amsterdam", "Netherlands", 931298), ("The Hague", "Netherlands", 562839),
    ("Den Bosch", "Netherlands", 160757), ("Copenhagen", "Denmark", 653664), ("Aarhus", "Denmark", 290598),
    ("Oslo", "Norway", 709037), ("Bergen", "Norway", 291940), ("Stockholm", "Sweden", 984748),
    ("Malmö", "Sweden", 362133), ("Helsinki", "Finland", 664921), ("Tampere", "Finland", 255050),
    ("Warsaw", "Poland", 1861599), ("Kraków", "Poland", 804237), ("Bielsko-Biała", "Poland", 166765),
    ("Prague", "Czechia", 1357326), ("Brno", "Czechia", 400566), ("Budapest", "Hungary", 1682426),
    ("Dublin", "Ireland", 592713), ("Cork", "Ireland", 224004), ("Carrick-on-Shannon", "Ireland", 4743),
    ("London", "United Kingdom", 8866180), ("Newcastle upon Tyne", "United Kingdom", 300125),
    ("Bishop's Stortford", "United Kingdom", 41088), ("Edinburgh", "United Kingdom", 514990),
    ("Cardiff", "United Kingdom", 372089), ("Athens", "Greece", 643452), ("Thessaloniki", "Greece", 319045),
    ("Istanbul", "Türkiye", 15655924), ("Boston", "United States", 653833), ("New Orleans", "United States", 364136),
    ("Coeur d'Alene", "United States", 54628), ("San Francisco", "United States", 808988),
    ("Winston-Salem", "United States", 252975), ("Toronto", "Canada", 2794356), ("Québec", "Canada", 549459),
    ("Montréal", "Canada", 1762949),
)

#: (category, department).
CATEGORIES: tuple[tuple[str, str], ...] = (
    ("Chairs", "Furniture"), ("Desks", "Furniture"), ("Lamps", "Furniture"), ("Cookware", "Kitchen"),
    ("Coffee & Tea", "Kitchen"), ("Tableware", "Kitchen"), ("Garden Tools", "Outdoors"), ("Camping", "Outdoors"),
    ("Cycling", "Outdoors"), ("Board Games", "Leisure"), ("Children's Toys", "Leisure"), ("Stationery", "Office"),
    ("Audio", "Electronics"), ("Cables & Chargers", "Electronics"),
)

#: What is sold in each category, with the least and the greatest price.
GOODS: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "Chairs": (35, 420, ("Armchair", "Rocking Chair", "Bar Stool", "Office Chair", "Bench", "Director's Chair")),
    "Desks": (90, 780, ("Writing Desk", "Standing Desk", "Corner Desk", "Side Table", "Workbench", "Secretary")),
    "Lamps": (15, 240, ("Desk Lamp", "Floor Lamp", "Ceiling Light", "Lantern", "Night Light", "Spotlight")),
    "Cookware": (12, 190, ("Frying Pan", "Saucepan", "Casserole", "Wok", "Baker's Tray", "Pressure Cooker")),
    "Coffee & Tea": (6, 310, ("Teapot", "Moka Pot", "Kettle", "Café Press", "Coffee Grinder", "Tea Strainer")),
    "Tableware": (3, 95, ("Dinner Plate", "Soup Bowl", "Crème Brûlée Dish", "Mug", "Wine Glass", "Carafe")),
    "Garden Tools": (8, 160, ("Spade", "Rake", "Pruning Saw", "Watering Can", "Gardener's Apron", "Wheelbarrow")),
    "Camping": (9, 350, ("Two-Person Tent", "Sleeping Bag", "Camp Stove", "Water Bottle", "Head Torch", "Hammock")),
    "Cycling": (5, 280, ("Bicycle Bell", "Pannier Bag", "Helmet", "Floor Pump", "Puncture Kit", "Cyclist's Gloves")),
    "Board Games": (14, 85, ("Chess Set", "Backgammon Board", "Go Board", "Card Game", "Puzzle", "Dominoes")),
    "Children's Toys": (4, 120, ("Building Blocks", "Doll's House", "Wooden Train", "Kite", "Spinning Top", "Puppet")),
    "Stationery": (2, 65, ("Notebook", "Fountain Pen", "Ring Binder", "Letter Opener", "Pencil Case", "Stapler")),
    "Audio": (18, 490, ("Headphones", "Turntable", "Loudspeaker", "Hi-Fi Amplifier", "Microphone", "Clock Radio")),
    "Cables & Chargers": (4, 75, ("USB-C Cable", "Wall Charger", "Power Bank", "Plug-In Timer", "HDMI Cable", "Hub")),
}

STYLES: tuple[str, ...] = (
    "Nordic", "Classic", "Compact", "Travel", "Rustic", "Modern", "Folding", "Heavy-Duty", "Vintage", "Ultra-Light",
    "Traditional", "Mini", "Deluxe", "Everyday", "Shaker", "Art Déco", "Fisherman's", "Alpine", "Harbour", "Studio",
)

MATERIALS: tuple[str, ...] = (
    "Oak", "Walnut", "Birch", "Steel", "Copper", "Brass", "Linen", "Leather", "Glass", "Bamboo", "Ceramic", "Cork",
    "Felt", "Aluminium", "Cast-Iron", "Pine", "Canvas", "Marble", "Wool", "Rubber",
)

COLOURS: tuple[str, ...] = ("Black", "White", "Navy", "Olive", "Red", "Sand", "Grey", "Teal", "Mustard", "Natural")

BRANDS: tuple[str, ...] = (
    "Lindqvist & Sons", "O'Hara", "Maison Lefèvre", "Brightwater", "Tannenbaum", "Kestrel", "Northgate", "Akemi",
    "Fjordline", "Casa Verde", "Hollis-Reed", "Pemberton's", "Solvang", "Marchetti", "Blue Heron", "Zephyr",
    "Quill & Co",
    "Ironwood", "Sable", "Juniper Works", "Van der Meer", "Halcyon", "Roca", "Ember",
)

FIRST_NAMES: tuple[str, ...] = (
    "Ann", "Amélie", "Anja", "Andrea", "Bruno", "Bea", "Björn", "Carla", "Chloé", "Conor", "Daniel", "Daria", "Dylan",
    "Elena", "Emil", "Éva", "Fatima", "Felix", "Frida", "Georg", "Giulia", "Grace", "Hannah", "Henrik", "Hugo", "Ines",
    "Isabel", "Ivan", "Jakub", "Jean-Luc", "Jonas", "Julia", "Karin", "Kofi", "Lars", "Léa", "Liam", "Lucía", "Magnus",
    "Maja", "Marco", "Marie-Claire", "Mateo", "Mei", "Mila", "Nadia", "Niamh", "Nils", "Noah", "Nora", "Olga", "Oscar",
    "Paolo", "Petra", "Pierre", "Priya", "Rafael", "Rosa", "Ruth", "Sam", "Sara", "Seán", "Sofía", "Stefan", "Tariq",
    "Théo", "Tom", "Ulla", "Vera", "Viktor", "Wanda", "Willem", "Yara", "Yusuf", "Zoë", "Zofia",
)

LAST_NAMES: tuple[str, ...] = (
    "Adeyemi", "Almeida", "Andersson", "Baker", "Bauer", "Bianchi", "Blanc", "Byrne", "Castillo", "Černý", "Clarke",
    "Costa", "D'Angelo", "Dahl", "de la Cruz", "Dubois", "Eriksen", "Esposito", "Farrell", "Fernández", "Fischer",
    "Fontaine", "García", "Grant", "Haddad", "Hansen", "Hill", "Horváth", "Ivanova", "Jansen", "Johansson", "Kaya",
    "Keller", "Khan", "Kowalski", "Laurent", "Lopes", "Lund", "MacLeod", "Marino", "Martin", "Mensah", "Meyer", "Mills",
    "Moreau", "Müller", "Murphy", "Nagy", "Nielsen", "Novák", "Nowak", "O'Brien", "O'Connor", "Okafor", "Olsen", "Park",
    "Patel", "Pereira", "Petit", "Popescu", "Quinn", "Rahman", "Ramírez", "Ricci", "Rossi", "Saar", "Santos", "Schmidt",
    "Silva", "Smith", "Smith-Jones", "Svensson", "Tanaka", "Taylor", "Tóth", "van den Berg", "Virtanen", "Wagner",
    "Walsh", "Weber", "Wójcik", "Wright", "Yılmaz", "Zimmermann",
)

SEGMENTS: tuple[str, ...] = ("private", "business", "school", "charity")
STATUSES: tuple[str, ...] = ("delivered", "shipped", "pending", "cancelled", "returned")
PAYMENTS: tuple[str, ...] = ("card", "invoice", "bank transfer", "voucher")
