"""Chapter 7: detection (детекция). Where in the image is what: boxes and classes, found at once, and how to score it.

Boxes and their overlap, suppression of duplicates, anchors and their matching, COCO's evaluation, and an anchor-free
detector are separate: `boxes`, `suppression`, `anchors`, `coco`, `network`, `losses`, `training`, `decoding`.
"""

from course_lib.detection.anchors import (
    BACKGROUND,
    IGNORED,
    anchor_grid,
    decode_boxes,
    encode_boxes,
    match_anchors,
)
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
    nms,
    pairwise,
    soft_nms,
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
    precision_recall_curve,
)
from course_lib.detection.model import (
    PEDESTRIAN_SIDE,
    STRIDE,
    Detector,
    PerceptualBackbone,
    Prediction,
    Pretrained,
    Residual,
    SmallBackbone,
    cell_centres,
    detect,
    objects,
    peaks,
    to_boxes,
)
from course_lib.detection.pedestrians import HELD_OUT, Photograph, load_pedestrians, on_canvas
from course_lib.detection.training import (
    PADDING,
    DetectionDataset,
    Vary,
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
