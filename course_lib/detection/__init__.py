"""Chapter 7: detection (детекция). Where in the picture is what: boxes and classes, found at once, and how to score it.

Boxes and their overlap, suppression of duplicates, anchors and their matching, COCO's evaluation, and an anchor-free
detector are separate: `boxes`, `suppression`, `anchors`, `coco`, `network`, `losses`, `training`, `decoding`.
"""

from course_lib.detection.anchors import BACKGROUND, IGNORED, anchor_grid, decode_boxes, encode_boxes, match_anchors
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
from course_lib.detection.suppression import nms, soft_nms

__all__ = [
    "BACKGROUND",
    "FORMATS",
    "IGNORED",
    "MAX_DETECTIONS",
    "RECALLS",
    "SIZES",
    "THRESHOLDS",
    "Evaluation",
    "Objects",
    "anchor_grid",
    "area",
    "assign",
    "average_precision",
    "check_boxes",
    "clip",
    "convert",
    "crowd_iou",
    "decode_boxes",
    "encode_boxes",
    "evaluate",
    "giou",
    "interpolated",
    "intersection",
    "iou",
    "match_anchors",
    "nms",
    "pairwise",
    "precision_recall",
    "soft_nms",
]
