"""The toy world: small scenes drawn at random, of which everything is known.

    scene = scenes.draw_scene(torch.Generator().manual_seed(0), size=64)   # a description in metres and words
    image = scenes.render(scene)                                           # pixels, and all their labels
    images = scenes.Scenes(2000, size=64, seed=0).render_all()             # a data set of them

`world` holds the description, `generation` draws one at random, `masks` says which pixels an object covers, `rendering`
paints them and puts image and labels together, `captions` speaks and reads, `dataset` makes data sets and exports to
COCO's format.
"""

from course_lib.scenes.captions import PLACES, Facts, Mention, describe, facts, parse, say
from course_lib.scenes.dataset import CATEGORY, Scenes, run_lengths, segments, to_coco
from course_lib.scenes.generation import draw_scene
from course_lib.scenes.masks import FEWEST_PIXELS
from course_lib.scenes.rendering import STUFF_SEGMENTS, Rendering, render, tight_boxes
from course_lib.scenes.world import CLASSES, KEYPOINTS, PALETTE, SKELETON, STUFF, THINGS, Camera, Scene, Thing
