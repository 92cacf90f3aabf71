"""Detection (детекция): where in the image is what: boxes and classes, found at once, and how to score it.

`boxes`, their overlap, and the suppression of duplicates; `anchors` and their matching; `coco`'s evaluation; `model`, a
detector without anchors, and its `training`; `pedestrians`, real photographs; `plots`, boxes with labels in figures.
"""

from course_lib.detection.anchors import BACKGROUND, IGNORED, anchor_grid, decode_boxes, encode_boxes, match_anchors
from course_lib.detection.boxes import clip, giou, iou, nms, pairwise, soft_nms
from course_lib.detection.coco import (
    RECALLS,
    THRESHOLDS,
    Objects,
    assign,
    average_precision,
    evaluate,
    interpolated,
    precision_recall_curve,
)
from course_lib.detection.model import (
    PEDESTRIAN_SIDE,
    DenseNetwork,
    Detector,
    PerceptualBackbone,
    detect,
    objects,
    peaks,
)
from course_lib.detection.pedestrians import find_people, load_pedestrians, load_streets, on_canvas
from course_lib.detection.plots import boxed, place_labels
from course_lib.detection.training import (
    DetectionDataset,
    detection_losses,
    detection_step,
    focal_loss,
    mirrored,
    optimiser_and_schedule,
    padded,
    random_squares,
    recoloured,
    targets,
)
