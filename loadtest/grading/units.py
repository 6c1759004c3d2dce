"""Units after a number, in one spelling: so that a unit may be left out of an answer but not changed."""

from __future__ import annotations

import re

_UNITS = {
    name: names.split()[0]
    for names in (
        "m meter meters metre metres",
        "cm centimeter centimeters centimetre centimetres",
        "mm millimeter millimeters millimetre millimetres",
        "km kilometer kilometers kilometre kilometres",
        "inch inches in",
        "foot feet ft",
        "yard yards",
        "mile miles",
        "s sec second seconds",
        "min minute minutes mins",
        "hour hours h hr hrs",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "kg kilogram kilograms",
        "g gram grams",
        "pound pounds lb lbs",
        "liter liters litre litres l",
        "ml milliliter milliliters",
        "degree degrees deg",
        "USD dollar dollars",
        "cent cents",
        "EUR euro euros",
        "unit units",
        "square-unit square-units",
        "cubic-unit cubic-units",
        "mph",
        "km/h",
        "m/s",
        "crate crates",
        "cup cups",
        "card cards",
        "coin coins",
        "item items",
        "marble marbles",
        "piece pieces",
        "slice slices",
        "apple apples",
        "point points",
        "people persons person",
        "men man",
        "women woman",
        "child children",
        "radian radians rad",
        "percentage-point percentage-points",
        "student students",
        "way ways",
    )
    for name in names.split()
}
_NOT_UNITS = re.compile(
    r"and|or|not|plus|minus|times|to|mod|modulo|over|about|approximately|percent|hundred|thousand|million"
    r"|billion|trillion|dozen|score|pair|pairs|half|halves|third|thirds|quarter|quarters|fourth|fourths"
    r"|fifth|fifths|tenth|tenths|hundredth|hundredths|thousandth|thousandths|squared|cubed|factorial"
    r"|remainder|unless|else|otherwise|than|more|less|hundreds|thousands|millions|billions|dozens|double"
    r"|triple|twice|square|root|wrong|incorrect|nope|false|gross|mil|bps|percentage|points"
    r"|(?:six|seven|eigh|nin|eleven|twelf)ths?|ish|ths|nds|rds|zeros|zeroes|repeating|recurring|bar|maybe|perhaps|roughly"
    r"|negative|inverse|reciprocal|undefined|choose|[a-z]+illions|lakhs|crores|scores|grosses|tens|roots|squares|cubes|powers"
    r"|[a-z]+ths|always|versus|sometimes|besides|towards|afterwards|guess|less|minus|plus|times|[a-z]+less|[a-z]*ness|yes|this|thus|is|was|has|does|cross|across|pass|loss|basis|digits|bits"
)
_COUNTED = re.compile(r"[a-z]{3,}s")  # an unknown word after a number is what is counted only where it is a plural
_TAIL = re.compile(
    r"(?P<core>.*[0-9})\]!]) ?(?:"
    r"(?P<percent>\\?%|\\text\{ ?(?:\\?%|percent) ?\}|percent)"
    r"|(?P<degree>\^ ?\{? ?(?:\\circ|\\degree) ?\}?|\\degree)"
    r"|\\(?:text|mathrm|textrm|mbox)\{ ?(?P<wrapped>[A-Za-z][A-Za-z /]{0,40})\.? ?\}(?:\^ ?\{?(?P<power>[23])\}?)?"
    r"|(?P<bare>[A-Za-z][A-Za-z/]{0,20}(?: [A-Za-z]{1,20})?)(?:\^ ?\{?(?P<bare_power>[23])\}?)?"
    r")",
    re.DOTALL,
)


def split(text: str) -> tuple[str, str, bool]:
    r"""The text before its unit, the unit in one spelling, and whether it was percent.

    >>> split(r"5\text{ centimeters}"), split("5 apples"), split(r"5 million")
    (('5', 'cm', False), ('5', 'apple', False), ('5 million', '', False))
    """
    for sign, unit in (("USD", "USD"), ("€", "EUR"), ("£", "GBP")):
        if text.startswith(sign):
            return text[len(sign) :].strip(), unit, False
    match = _TAIL.fullmatch(text)
    if match is None:
        return text, "", False
    if match["percent"]:
        return match["core"], "", True
    if match["degree"]:
        return match["core"], "degree", False
    kind = _unit(match["wrapped"] or match["bare"], known_only=match["bare"] is not None)
    if kind is None:
        return text, "", False
    return match["core"], kind + (match["power"] or match["bare_power"] or ""), False


def _unit(words: str, *, known_only: bool) -> str | None:
    """One spelling of a unit; None for words that change the number, and for unknown ones where only known ones count."""
    words = words.strip()
    for shape, suffix in (("square ", "2"), ("cubic ", "3")):
        if words.startswith(shape) and words[len(shape) :] in _UNITS:
            return _UNITS[words[len(shape) :]] + suffix
    if words in _UNITS and not (known_only and len(words) == 1):  # a bare letter may as well be a variable
        return _UNITS[words]
    parts = words.lower().split()
    if known_only or len(parts) != 1 or not _COUNTED.fullmatch(parts[0]) or _NOT_UNITS.fullmatch(parts[0]):
        return None
    return parts[0]
