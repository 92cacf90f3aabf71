"""The toy world of chapters 6 to 10: small scenes drawn by lot, of which everything is known.

    scene = scenes.draw_scene(torch.Generator().manual_seed(0), size=64)      # a description in metres and words
    picture = scenes.render(scene)                                           # pixels, and all their labels
    pictures = scenes.Scenes(2000, size=64, seed=0).render_all()             # a data set of them

`world` holds the description, `drawing` draws one by lot; `shapes`, `outlines` and `masks` say which pixels an object
covers, `painting` colours them, `rendering` puts picture and labels together; `captions` speaks and reads, `coco`
exports.
"""

from course_lib.base.scenes.captions import PLACES, Facts, Mention, describe, facts, parse
from course_lib.base.scenes.coco import CATEGORY, run_lengths, segments, to_coco
from course_lib.base.scenes.dataset import Scenes
from course_lib.base.scenes.drawing import draw_scene
from course_lib.base.scenes.masks import FEWEST_PIXELS
from course_lib.base.scenes.rendering import STUFF_SEGMENTS, Picture, render, tight_boxes
from course_lib.base.scenes.shapes import KEYPOINTS, SKELETON
from course_lib.base.scenes.world import (
    BACKDROPS,
    CLASSES,
    COLOURS,
    GROUNDS,
    LIGHTS,
    SIZES,
    STUFF,
    TEXTURES,
    THINGS,
    Camera,
    Scene,
    Thing,
)

__all__ = [
    "BACKDROPS",
    "CATEGORY",
    "CLASSES",
    "COLOURS",
    "FEWEST_PIXELS",
    "GROUNDS",
    "KEYPOINTS",
    "LIGHTS",
    "PLACES",
    "SIZES",
    "SKELETON",
    "STUFF",
    "STUFF_SEGMENTS",
    "TEXTURES",
    "THINGS",
    "Camera",
    "Facts",
    "Mention",
    "Picture",
    "Scene",
    "Scenes",
    "Thing",
    "describe",
    "draw_scene",
    "facts",
    "parse",
    "render",
    "run_lengths",
    "segments",
    "tight_boxes",
    "to_coco",
]
