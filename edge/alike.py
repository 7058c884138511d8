"""What two texts must share before they may count as nearly the same, whatever their vectors say.

A sentence vector hardly moves where "10" becomes "100", "on" becomes "off", or a "not" is added,
and then the answer is another. So numbers and signs, negations, and one word of each common pair of
opposites must be the same, in order. The words are English; of other languages only digits and
signs are seen. Pure; knows nothing of vectors.
"""

from __future__ import annotations

import hashlib
import re

_TOKEN = re.compile(r"\d+|[^\W\d_]+|[%+$€£¥₹]|(?<!\w)-(?=\d)")
_NOT = re.compile(r"n['\u2019]t\b")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "one" and "first" stand for too much else; they differ from every number that is here.
_NUMBERS = _words(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion dozen half quarter double triple twice second third fourth "
    "fifth minus"
)
_NEGATIONS = _words(
    "not no never none nothing nobody nowhere neither nor without cannot cant dont doesnt didnt "
    "wont isnt arent wasnt werent havent hasnt hadnt shouldnt wouldnt couldnt except unless"
)
# One of a pair is enough: a text with it and a text without it differ.
_OPPOSITES = _words(
    "off down out close closed stop stopped cancel cancelled undo disable disabled less fewer "
    "decrease lower reduce after until sell unlock pm right quieter dimmer colder remove delete "
    "receive received incoming yesterday tomorrow evening tonight last old"
)
_MARKED = _NUMBERS | _NEGATIONS | _OPPOSITES


def marked_words(text: str) -> tuple[str, ...]:
    """Return what must be shared, in the text's order."""
    plain = _NOT.sub(" not", text.casefold())
    found = _TOKEN.findall(plain)
    return tuple(each for each in found if not each.isalpha() or each in _MARKED)


def marks(text: str) -> int:
    """Return 32 bits of a digest over ``marked_words``: the same for texts that may be alike.

    So few that a long number cannot be had back from them; a short one can be tried.
    """
    body = " ".join(marked_words(text))
    return int.from_bytes(hashlib.sha256(body.encode()).digest()[:4], "big")
