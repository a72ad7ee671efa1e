"""A small language about scenes: it writes five true captions of a scene, and tells whether a caption is true.

A scene is a dict `{"size": pixels, "objects": [{"shape", "colour", "size", "x", "y", "radius"}, ...]}`; x runs to the
right and y downwards, in pixels. No two objects of a scene share colour and shape.
"""

import re
from itertools import combinations, permutations
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
INVERSE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
CLEAR = 0.1  # a relation holds if the centres are at least this far apart along its axis, in sides of the picture

_OBJECT = (
    rf"(?:a|the) (?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})"
)
_RELATION = r"(?P<relation>(?:to the )?(?:left|right) of|above|below)"
# One letter for each part of a sentence: object, relation, "is", "there is", comma, "and", "with".
_PARTS = {"O": _OBJECT, "R": _RELATION, "T": "there (?:is|are)(?: also)?", "I": "is", "C": ",", "A": "and", "W": "with"}
_SENTENCE = re.compile(r"(?P<plain>OI?RO|TORO)?(?P<turned>ROTO)?(C?(AT|A|W)O(AO)*)*")


def holds(relation: str, first: dict[str, Any], second: dict[str, Any], size: float) -> bool:
    """Whether a relation is true of two objects.

    Args:
        relation: One of `INVERSE`.
        first: The object before the relation's words.
        second: The object after them.
        size: Pixels of the picture's side.
    """
    axis, sign = {"left": ("x", 1), "right": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[_direction(relation)]
    return sign * (second[axis] - first[axis]) >= CLEAR * size


def _direction(relation: str) -> str:
    return relation.removeprefix("to the ").removesuffix(" of")


def describe(scene: dict[str, Any], first: int, second: int, relation: str) -> list[str]:
    """Five captions with the same content: how two objects of a scene lie, and which other objects there are.

    Args:
        scene: The scene.
        first: Index of an object.
        second: Index of another object.
        relation: A relation that holds between the first and the second.
    """
    objects = scene["objects"]

    def name(i: int, size: bool = True) -> str:
        return f"a {objects[i]['size'] + ' ' if size else ''}{objects[i]['colour']} {objects[i]['shape']}"

    def others(link: str, size: bool = True) -> str:
        names = [name(i, size) for i in range(len(objects)) if i not in (first, second)]
        return f", {link.format('are' if len(names) > 1 else 'is')} {' and '.join(names)}" if names else ""

    also = "and there {} also"
    return [
        f"{name(first)} is {relation} {name(second)}{others(also)}",
        f"{name(second)} is {INVERSE[relation]} {name(first)}{others(also)}",
        f"there is {name(first)} {relation} {name(second)}{others('with')}",
        f"{relation} {name(second)} there is {name(first)}{others(also)}",
        f"{name(first, False)} {relation} {name(second, False)}{others('with', False)}",
    ]


def check_caption(caption: str, scene: dict[str, Any]) -> str:
    """Whether a caption is true of a scene: its objects, their colours and sizes, and how two of them lie.

    A caption must name at least two objects, each of them once, and a relation. It need not name all objects.

    Args:
        caption: A sentence in the language of `describe`; capitals and a full stop do not matter.
        scene: The scene.

    Returns:
        "" if it is true, else one phrase that says why not.
    """
    parts, said, relation, rest = "", [], "", " ".join(caption.lower().strip(" .\n").split())
    while rest:
        for letter, pattern in _PARTS.items():
            if found := re.match(rf"(?:{pattern})(?= |,|$) ?", rest):
                parts += letter
                if letter == "O":
                    said.append({key: value for key, value in found.groupdict().items() if value})
                elif letter == "R":
                    relation = found["relation"]
                rest = rest[found.end() :]
                break
        else:
            return f"cannot be read from {' '.join(rest.split()[:3])!r} on"
    if parts.count("R") != 1:
        return "says no relation" if not relation else "says more than one relation"
    sentence = _SENTENCE.fullmatch(parts)
    if sentence is None or not (sentence["plain"] or sentence["turned"]):
        return "is no sentence of this language"
    pair = (0, 1) if sentence["plain"] else (1, 0)
    objects = scene["objects"]
    for words in said:
        if not any(_fits(words, item) for item in objects):
            return f"there is no {' '.join(words.values())}"
    fitting = [
        chosen
        for chosen in permutations(objects, len(said))
        if all(_fits(words, item) for words, item in zip(said, chosen, strict=True))
    ]
    if not fitting:
        return "names an object twice"
    if not any(holds(relation, chosen[pair[0]], chosen[pair[1]], scene["size"]) for chosen in fitting):
        first, second = (" ".join(said[i].values()) for i in pair)
        return f"the {first} is not {relation} the {second}"
    return ""


def _fits(words: dict[str, str], item: dict[str, Any]) -> bool:
    return all(item[key] == word for key, word in words.items())


def draw_scene(
    size: int, rng: np.random.Generator, max_objects: int = 4
) -> tuple[dict[str, Any], tuple[int, int, str]]:
    """A scene of two or more objects that do not touch.

    Args:
        size: Pixels of the picture's side.
        rng: The only source of random numbers.
        max_objects: Objects at most, 2 to 4.

    Returns:
        The scene, and a relation in it that is easy to see: indices of two objects, and the relation's words.
    """
    # Sorted, so that the picture alone decides which objects the captions name, and in which order. Otherwise most of
    # the loss is a random choice that no model can know, and the relations are learnt late.
    kinds = sorted(
        rng.choice(len(SHAPES) * len(COLOURS), int(rng.integers(2, max_objects + 1)), replace=False).tolist()
    )
    sizes = rng.integers(2, size=len(kinds))
    radii = [size * rng.uniform(*((0.095, 0.11), (0.145, 0.165))[large]) for large in sizes]
    while True:  # until no two objects touch and some relation is easy to see
        centres = [rng.uniform(radius + 0.04 * size, 0.96 * size - radius, 2) for radius in radii]
        apart = [
            np.hypot(*(centres[i] - centres[j])) - 1.1 * (radii[i] + radii[j]) - 0.05 * size
            for i, j in combinations(range(len(kinds)), 2)
        ]
        if min(apart) < 0:
            continue
        objects = [
            {
                "shape": SHAPES[kind % len(SHAPES)],
                "colour": COLOURS[kind // len(SHAPES)],
                "size": SIZES[large],
                "x": round(float(x), 2),
                "y": round(float(y), 2),
                "radius": round(float(radius), 2),
            }
            for kind, large, (x, y), radius in zip(kinds, sizes, centres, radii, strict=True)
        ]
        for first, second in permutations(range(len(objects)), 2):
            dx, dy = (abs(objects[first][axis] - objects[second][axis]) for axis in ("x", "y"))
            if max(dx, dy) >= 2 * max(min(dx, dy), CLEAR * size):
                words = ("to the left of", "to the right of") if dx > dy else ("above", "below")
                relation = next(w for w in words if holds(w, objects[first], objects[second], size))
                return {"size": size, "objects": objects}, (first, second, relation)
