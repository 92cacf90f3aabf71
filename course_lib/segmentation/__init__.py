"""Segmentation: which class is each pixel (semantic), which object (instance), and both (panoptic).

`model` is trained by `training`; `instance` and `panoptic` turn its maps into objects and one map; `semantic`,
`panoptic` and `detection.coco` with `mask_iou` measure; `rle` stores masks as COCO does; `people` is for photographs;
`classical` needs no training.
"""

from course_lib.segmentation import rle
from course_lib.segmentation.classical import (
    connected_components,
    distance_transform,
    otsu_threshold,
    subtract_background,
    watershed,
)
from course_lib.segmentation.instance import centre_targets, find_centres, group, mask_iou
from course_lib.segmentation.model import FineBackbone, Maps, PretrainedInstances, PretrainedSemantic, SegmentationNet
from course_lib.segmentation.panoptic import (
    STUFF,
    THINGS,
    Panoptic,
    Quality,
    answer,
    evaluate,
    match,
    mean_quality,
    merge,
    paint_panoptic,
    panoptic_quality,
    predict,
    truth,
)
from course_lib.segmentation.people import (
    PEOPLE_SIDE,
    People,
    PeopleDataset,
    evaluate_people,
    find_people,
    load_coco_people,
    random_squares,
    shipped_people,
)
from course_lib.segmentation.semantic import COLOURS, confusion_matrix, enlarge, paint, rim
from course_lib.segmentation.training import (
    SegmentationDataset,
    cross_entropy,
    dice,
    dice_loss,
    mirror,
    optimiser_and_schedule,
    segmentation_losses,
    segmentation_step,
)
