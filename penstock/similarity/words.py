"""The closed lists of English that decide what may differ between two instructions. It must not know any algorithm.

A word is in none of them unless leaving it out, or putting one of its class in its place, never changes an answer.
"""


def listed(words: str) -> list[str]:
    """Give the words of a line."""
    return words.split()


IDLE = frozenset(listed("a an the of in on at is are be please kindly and"))
"""Dropped: they carry no meaning that a document's reader could be asked for by them alone."""

POLITE = tuple(
    tuple(phrase.split())
    for phrase in (
        "could you", "can you", "would you", "will you", "i would like you to", "i want you to", "i need you to",
    )
)  # fmt: skip
"""Dropped at the beginning of an instruction."""

PHRASES = {
    tuple(phrase.split()): replacement
    for phrase, replacement in {
        "from the document": "", "in the document": "", "of the document": "", "in this document": "",
        "from this document": "", "of this document": "", "given in the document": "",
        "summarise the document": "summarise", "summarise this document": "summarise",
        "sum up": "summarise", "give me": "give", "give us": "give", "tell me": "tell", "tell us": "tell",
        "show me": "show", "show us": "show", "give a summary": "summarise", "give me a summary": "summarise",
        "write a summary": "summarise", "make a list": "list", "give a list": "list", "give me a list": "list",
        "list out": "list",
        "bullet points": "bullets",
        "bulleted list": "bullets", "bullet list": "bullets", "per cent": "percent", "as well as": "and",
        "other than": "except", "apart from": "except", "aside from": "except", "except for": "except",
        "with the exception of": "except", "leave out": "exclude", "do not include": "exclude",
        "no more than": "at_most", "not more than": "at_most", "at most": "at_most", "up to": "at_most",
        "a maximum of": "at_most", "at least": "at_least", "no less than": "at_least", "no fewer than": "at_least",
        "not less than": "at_least", "a minimum of": "at_least", "most important": "main", "focus on": "focus",
        "concentrate on": "focus", "due dates": "deadlines", "due date": "deadline", "with regard to": "about",
        "in detail": "detailed", "in brief": "brief", "have to": "must", "has to": "must", "do not": "not",
    }.items()
}  # fmt: skip
"""Replaced before single words are looked at, the longest first."""

SYNONYMS = {
    word: first
    for first, *others in (
        group.split()
        for group in (
            "summarise summary", "list enumerate itemise", "give provide", "main key", "brief briefly short concise",
            "about regarding concerning", "except excluding excepting",
            "exclude omit", "only solely exclusively", "colour color", "labour labor", "centre center", "favour favor",
        )
    )
    for word in others
}  # fmt: skip
"""Replaced by the first of their class."""

SETS_APART = frozenset(listed("and or without except exclude"))

NEGATIONS = frozenset(
    listed(
        "not no never none nor neither nothing nobody without except exclude unless ignore avoid skip instead"
        " rather only cannot but non un hardly barely"
    )
)
DIRECTIONS = frozenset(
    listed(
        "before after until since from to into onto by for against with within between than above below over under"
        " more less fewer most least at_most at_least first last latest earliest next previous newest oldest"
        " highest lowest higher lower maximum minimum max min increase increases decrease decreases rise rises fall"
        " falls include includes add remove start starts begin begins end ends up down in out left right best worst"
        " largest smallest longest shortest longer shorter early late old new all any some each every both either"
        " or if"
    )
)

ENGLISH = frozenset(
    listed(
        "the of and with for from list which what are is please explain summarise summarize give only focus tell"
        " about how who when where why each every show write describe find this that not to by without main key all"
        " does do use at most least mention name happens happened after before should any compare concentrate"
        " extract exclude include pay paid did no more than less words sentences has have was were must may can"
        " will tell say state count answer in it"
    )
)
"""A text is taken as English only where it has a few of these, and none of the next."""

FOREIGN = frozenset(
    listed(
        "der die das den dem des ein eine einen einer und oder nicht kein keine keinen ohne nur bitte mit von zu"
        " zum zur im am auf aus bei nach vor alle ist sind wird fasse nenne liste erkläre le la les un une du et ou"
        " ne pas sans sauf sur avec pour dans par que qui est sont tous el los las y o con sin para por del il lo"
        " gli e di che non het een en van niet zonder de"
    )
)
