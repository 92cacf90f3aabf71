"""Chapter 8: segmentation. Which class is each pixel (semantic), which object (instance), and both (panoptic).

`losses` and `network` are what is trained, by `training`; `instance` and `panoptic` turn its maps into objects and one
picture; `semantic`, `panoptic` and chapter 7's `detection.coco` with `mask_iou` measure; `rle` stores masks as COCO
does; `painting` shows; `classical` needs no training; `shipped` loads what the recipe trained, `pretrained` what
torchvision offers.
"""

from course_lib.segmentation import rle
from course_lib.segmentation.classical import connected_components, depth, flatten, otsu_threshold
from course_lib.segmentation.evaluation import STUFF, THINGS, answer, evaluate, predict, truth
from course_lib.segmentation.instance import Instances, centre_targets, find_centres, group, instances, mask_iou
from course_lib.segmentation.losses import cross_entropy, dice, dice_loss
from course_lib.segmentation.network import OFFSET_UNIT, Maps, SegmentationNet
from course_lib.segmentation.painting import COLOURS, enlarge, paint, paint_panoptic, rim
from course_lib.segmentation.panoptic import Panoptic, Quality, Summary, match, mean_quality, merge, panoptic_quality
from course_lib.segmentation.pretrained import PretrainedInstances, PretrainedSemantic, load_deeplab, load_mask_rcnn
from course_lib.segmentation.semantic import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy
from course_lib.segmentation.shipped import load
from course_lib.segmentation.training import Targets, mirror, optimiser_and_schedule, segmentation_step

__all__ = [
    "COLOURS",
    "OFFSET_UNIT",
    "STUFF",
    "THINGS",
    "Instances",
    "Maps",
    "Panoptic",
    "PretrainedInstances",
    "PretrainedSemantic",
    "Quality",
    "SegmentationNet",
    "Summary",
    "Targets",
    "answer",
    "centre_targets",
    "confusion_matrix",
    "connected_components",
    "cross_entropy",
    "depth",
    "dice",
    "dice_loss",
    "enlarge",
    "evaluate",
    "find_centres",
    "flatten",
    "group",
    "instances",
    "iou_per_class",
    "load",
    "load_deeplab",
    "load_mask_rcnn",
    "mask_iou",
    "match",
    "mean_iou",
    "mean_quality",
    "merge",
    "mirror",
    "optimiser_and_schedule",
    "otsu_threshold",
    "paint",
    "paint_panoptic",
    "panoptic_quality",
    "pixel_accuracy",
    "predict",
    "rim",
    "rle",
    "segmentation_step",
    "truth",
]
