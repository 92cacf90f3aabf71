"""Chapter 7: detection (детекция). Where in the picture is what: boxes and classes, found at once, and how to score it.

Boxes and their overlap, suppression of duplicates, anchors and their matching, COCO's evaluation, and an anchor-free
detector are separate: `boxes`, `suppression`, `anchors`, `coco`, `network`, `losses`, `training`, `decoding`.
"""

from course_lib.detection.anchors import BACKGROUND, IGNORED, anchor_grid, decode_boxes, encode_boxes, match_anchors
from course_lib.detection.augmentation import Vary, mirrored, random_squares, recoloured
from course_lib.detection.boxes import (
    FORMATS,
    area,
    check_boxes,
    clip,
    convert,
    crowd_iou,
    giou,
    intersection,
    iou,
    pairwise,
)
from course_lib.detection.coco import (
    MAX_DETECTIONS,
    RECALLS,
    SIZES,
    THRESHOLDS,
    Evaluation,
    Objects,
    assign,
    average_precision,
    evaluate,
    interpolated,
    precision_recall,
)
from course_lib.detection.decoding import detect, objects, peaks
from course_lib.detection.losses import PADDING, detection_losses, focal_loss, targets
from course_lib.detection.network import (
    STRIDE,
    Detector,
    PerceptualBackbone,
    Prediction,
    Residual,
    SmallBackbone,
    cell_centres,
    to_boxes,
)
from course_lib.detection.pedestrians import HELD_OUT, Photograph, load_pedestrians, on_canvas
from course_lib.detection.pretrained import Pretrained, load_pretrained
from course_lib.detection.shipped import PEDESTRIAN_SIDE, SHIPPED, load
from course_lib.detection.suppression import nms, soft_nms
from course_lib.detection.training import Annotated, detection_step, optimiser_and_schedule, padded

__all__ = [
    "BACKGROUND",
    "FORMATS",
    "HELD_OUT",
    "IGNORED",
    "MAX_DETECTIONS",
    "PADDING",
    "PEDESTRIAN_SIDE",
    "RECALLS",
    "SHIPPED",
    "SIZES",
    "STRIDE",
    "THRESHOLDS",
    "Annotated",
    "Detector",
    "Evaluation",
    "Objects",
    "PerceptualBackbone",
    "Photograph",
    "Prediction",
    "Pretrained",
    "Residual",
    "SmallBackbone",
    "Vary",
    "anchor_grid",
    "area",
    "assign",
    "average_precision",
    "cell_centres",
    "check_boxes",
    "clip",
    "convert",
    "crowd_iou",
    "decode_boxes",
    "detect",
    "detection_losses",
    "detection_step",
    "encode_boxes",
    "evaluate",
    "focal_loss",
    "giou",
    "interpolated",
    "intersection",
    "iou",
    "load",
    "load_pedestrians",
    "load_pretrained",
    "match_anchors",
    "mirrored",
    "nms",
    "objects",
    "on_canvas",
    "optimiser_and_schedule",
    "padded",
    "pairwise",
    "peaks",
    "precision_recall",
    "random_squares",
    "recoloured",
    "soft_nms",
    "targets",
    "to_boxes",
]
