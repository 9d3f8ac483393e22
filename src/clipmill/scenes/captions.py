"""Captions of scenes in three qualities: alt-text as on the web, terse, and rich.

Terse and rich captions say only what the picture shows. Alt-text carries a true word about an
object in 45% of pictures (30% wholly true, 15% with the wrong color); the rest are file names,
advertisements, and objects that aren't there.
"""

from dataclasses import dataclass

from clipmill.scenes.geometry import COLORS, OBJECTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An object that a caption may speak of."""

    name: str
    """Its class."""
    color: str
    """One of COLORS."""
    material: str
    """One of MATERIALS."""
    distance: float
    """Metres along the optical axis."""
    left: float
    """Left edge of its box, as a share of the picture's width."""
    right: float
    """Right edge of its box, likewise."""

    @property
    def middle(self) -> float:
        """Middle of its box, as a share of the picture's width."""
        return (self.left + self.right) / 2


# Shares of alt-text by kind; what is left over is a true remark.
_FILE_NAME, _ADVERTISEMENT, _ABSENT, _MISCOLORED = 0.20, 0.20, 0.15, 0.15

_FILE_NAMES = ("IMG_{}.JPG", "DSC0{}", "image{}.png", "screenshot {}", "untitled-{}-final", "P10{}")
_ADVERTISEMENTS = (
    "free shipping on all orders over ${}",
    "best deals of the week, up to {}% off",
    "click here to enlarge image",
    "sign up for our newsletter",
    "item no. {} in stock, order now",
    "official online shop since 19{}",
    "home decor ideas you will love",
    "advertisement",
)
_REMARKS = (
    "{color} {name}",
    "{name}",
    "photo of {name}",
    "my {color} {name}",
    "{name} stock photo",
    "buy {color} {name} online",
)


# What a viewer sees at a glance: a difference in depth, and one in place as a share of the width.
_PLAIN_METRES, _PLAIN_SHIFT = 0.6, 0.08


def alt_text(subjects: list[Subject], u: list[float]) -> str:
    """Alt-text that is often beside the point; ``u`` are four numbers in [0, 1)."""
    kind, form, pick, number = u
    digits = 1000 + int(number * 9000)
    if not subjects or kind < _FILE_NAME:
        return _choose(_FILE_NAMES, form).format(digits)
    kind -= _FILE_NAME
    if kind < _ADVERTISEMENT:
        return _choose(_ADVERTISEMENTS, form).format(digits % 90 + 10)
    kind -= _ADVERTISEMENT
    remark = _choose(_REMARKS, form)
    if kind < _ABSENT:
        present = {subject.name for subject in subjects}
        absent = _choose(tuple(name for name in OBJECTS if name not in present), pick)
        return remark.format(color=_choose(tuple(COLORS), number), name=absent)
    kind -= _ABSENT
    subject = subjects[int(pick * len(subjects))]
    if kind < _MISCOLORED:
        wrong = _choose(tuple(c for c in COLORS if c != subject.color), number)
        return f"{wrong} {subject.name}"
    return remark.format(color=subject.color, name=subject.name)


def terse_caption(subjects: list[Subject]) -> str:
    """The one or two largest objects, by color and class."""
    if not subjects:
        return "an empty room"
    return " and ".join(_with_article(f"{s.color} {s.name}") for s in subjects[:2])


def rich_caption(subjects: list[Subject], *, wall: str, floor: str, u: list[float]) -> str:
    """Every object with color, material, distance and its relation to another, and the room.

    ``u`` are eight numbers in [0, 1), which choose the wording.
    """
    if not subjects:
        return f"an empty room with a {floor} floor and a {wall} wall"
    main = subjects[0]
    opening = (
        "{it} stands {far} on a {floor} floor, in front of a {wall} wall",
        "on a {floor} floor in front of a {wall} wall, {it} stands {far}",
        "a room with a {floor} floor and a {wall} wall, where {it} stands {far}",
    )
    clauses = [
        _choose(opening, u[0]).format(it=_describe(main), far=_far(main), floor=floor, wall=wall)
    ]
    for k, subject in enumerate(subjects[1:], start=1):
        other = subjects[int(u[k] * k)]
        relation = " and ".join(spatial_relations(subject, other))
        clauses.append(
            f"{_describe(subject)} stands {relation} the {other.color} {other.name}, "
            f"{_far(subject)}"
        )
    return "; ".join(clauses)


def spatial_relations(subject: Subject, other: Subject) -> list[str]:
    """Return the visible relations of ``subject`` to ``other``, at least one.

    Left and right compare the middles of boxes; in front and behind need boxes one above the
    other; nearer and farther compare depths of objects that stand apart.
    """
    relations = []
    shift = subject.middle - other.middle
    if abs(shift) > _PLAIN_SHIFT:
        relations.append("left of" if shift < 0 else "right of")
    gap = subject.distance - other.distance
    overlap = subject.left < other.right and other.left < subject.right
    if abs(gap) > _PLAIN_METRES:
        if overlap:
            relations.append("in front of" if gap < 0 else "behind")
        else:
            relations.append("nearer than" if gap < 0 else "farther away than")
    return relations or ["next to"]


def _choose(options: tuple[str, ...], u: float) -> str:
    return options[int(u * len(options))]


def _describe(subject: Subject) -> str:
    return _with_article(f"{subject.material} {subject.color} {subject.name}")


def _far(subject: Subject) -> str:
    metres = round(subject.distance)
    return f"about {metres} metre{'s' if metres != 1 else ''} away"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
