"""Keypoint estimation (оценка ключевых точек): where the joints of a body or the corners of an eye are.

First detect the objects, then predict each one's points. `heatmaps`, how a point is written and read; `crops`, the way
from the image to one object and back; `model` and `training`; `scores`, from PCK to COCO's AP; `figures`, the toy
world's, `faces`, real ones with 68 points, and `people`, real bodies as COCO has them.
"""

from course_lib.keypoints.crops import MARGIN, around, crop, inverse, move, similarity
from course_lib.keypoints.faces import (
    ASTRONAUT,
    MIRRORED,
    PARTS,
    Faces,
    eye_distance,
    eye_opening,
    face_lines,
    head_turn,
    load_faces,
)
from course_lib.keypoints.figures import FIGURE, Found, figure_crops, figure_scenes, find_figures
from course_lib.keypoints.heatmaps import (
    DECODERS,
    SIGMA,
    argmax,
    blurred,
    dark,
    decode,
    encode,
    log_parabola,
    quarter,
    soft_argmax,
)
from course_lib.keypoints.model import (
    FACE_SIDE,
    FIGURE_MIRRORED,
    FIGURE_SIDE,
    KeypointNetwork,
    predict,
    predict_heatmaps,
)
from course_lib.keypoints.people import COCO_KEYPOINTS, COCO_SKELETON, COCO_SPREAD, Photograph, load_people
from course_lib.keypoints.scores import (
    distances,
    evaluate,
    found_people,
    nme,
    oks,
    pck,
    summary,
    true_people,
)
from course_lib.keypoints.training import KeypointDataset, Vary, heatmap_loss, keypoint_step, varied
