"""A scene in words, and words read back.

    A large striped red star on the left and a small blue disc in the middle, on sand by the water at dusk.

Objects come from left to right; a plain texture is not worth a word. "Small" and "large" are sizes in the world: what
is large and far may cover few pixels.
"""

import re
from dataclasses import dataclass

from course_lib.scenes.masks import without_hidden
from course_lib.scenes.world import COLOURS, GROUNDS, SIZES, TEXTURES, THINGS, Scene, Thing

PLACES = ("left", "middle", "right")  # thirds of the image

_PLACE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_BACKDROP_WORDS = {"nothing": "", "hills": " before hills", "water": " by the water"}
_LIGHT_WORDS = {"day": "by day", "dusk": "at dusk", "night": "at night"}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object: each a name of SIZES, TEXTURES, COLOURS, THINGS and PLACES."""

    size: str
    texture: str
    colour: str
    name: str
    place: str


@dataclass(frozen=True)
class Facts:
    """What a caption says: objects from left to right, and names of GROUNDS, BACKDROPS and LIGHTS."""

    objects: tuple[Mention, ...]
    ground: str
    backdrop: str
    light: str


def describe(scene: Scene) -> str:
    """The scene in words, without objects of which too little is seen. `parse` inverts it to `facts(scene)`."""
    return say(facts(scene))


def facts(scene: Scene) -> Facts:
    """What the scene's caption has to say, of the objects that are seen."""
    scene, *_ = without_hidden(scene)
    across = {thing: scene.camera.project(thing.x, 0, thing.z, 1)[0] for thing in scene.things}

    def mention(thing: Thing) -> Mention:
        place = PLACES[min(max(int(3 * across[thing]), 0), 2)]
        return Mention(thing.size, thing.texture, thing.colour, thing.name, place)

    objects = tuple(mention(thing) for thing in sorted(scene.things, key=lambda thing: across[thing]))
    return Facts(objects, scene.ground, scene.backdrop, scene.light)


def say(facts: Facts) -> str:
    """Facts in words; `parse` inverts it."""
    phrases = []
    for m in facts.objects:
        texture = "" if m.texture == "plain" else f"{m.texture} "
        phrases.append(f"a {m.size} {texture}{m.colour} {m.name} {_PLACE_WORDS[m.place]}")
    listed = " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]])) or "nothing"
    setting = f"on {facts.ground}{_BACKDROP_WORDS[facts.backdrop]} {_LIGHT_WORDS[facts.light]}"
    return f"{listed[0].upper()}{listed[1:]}, {setting}."


def _any(words: tuple[str, ...] | list[str]) -> str:
    return f"({'|'.join(words)})"


_PHRASE = re.compile(
    f"a {_any(SIZES)} (?:{_any(TEXTURES[1:])} )?{_any(COLOURS)} {_any(THINGS)} {_any(list(_PLACE_WORDS.values()))}"
)
_SETTING = re.compile(f"on {_any(GROUNDS)}{_any(list(_BACKDROP_WORDS.values()))} {_any(list(_LIGHT_WORDS.values()))}")


def parse(caption: str) -> Facts:
    """What a caption says.

    Raises:
        ValueError: words that `describe` would not have chosen.
    """
    places, backdrops, lights = (
        {v: k for k, v in words.items()} for words in (_PLACE_WORDS, _BACKDROP_WORDS, _LIGHT_WORDS)
    )
    listed, _, setting = (caption[:1].lower() + caption[1:]).removesuffix(".").rpartition(", ")
    found = _SETTING.fullmatch(setting)
    objects = [
        Mention(size, texture or "plain", colour, name, places[place])
        for size, texture, colour, name, place in _PHRASE.findall(listed)
    ]
    if found:
        ground, backdrop, light = found.groups()
        result = Facts(tuple(objects), ground, backdrops[backdrop], lights[light])
        if say(result) == caption:
            return result
    raise ValueError(f"expected a caption as of describe(), such as 'Nothing, on sand by day.'; got {caption!r}")
