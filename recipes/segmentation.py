"""Train the network of chapter 8 on scenes: semantic map, centres and offsets, so instances and panoptic maps too.

    python recipes/segmentation.py        # about 8 minutes on 2 cores; continues where it was interrupted

Scenes are drawn anew, nothing is downloaded. Predictions for scenes that the network does not learn from are drawn to
build/ as the training goes, in the colours of the classes. What ships is the moving average of the network.
"""

import torch
from torch import Tensor

from course_lib import scenes, segmentation
from course_lib.base.loop import Loop
from recipes import common

HELD_OUT_SEED = 1_000_003  # of the scenes that judge; training scenes have the run's own seed
SIZE = 64  # pixels


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=7000, batch_size=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--scenes", type=int, default=8000, help="to learn from; default 8000")
    args = parser.parse_args(argv)
    run = common.setup(args, "panoptic_scenes", script=__file__)

    data = segmentation.SegmentationDataset.draw(40 if run.quick else args.scenes, SIZE, run.seed)
    judges = scenes.Scenes(20 if run.quick else 500, SIZE, HELD_OUT_SEED).render_all()
    network = segmentation.SegmentationNet().to(run.device)
    optimiser, schedule = segmentation.optimiser_and_schedule(network, run.steps, args.lr)
    rng = torch.Generator(run.device).manual_seed(run.seed)
    step = segmentation.segmentation_step(network, optimiser, rng, schedule=schedule)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    shown = torch.stack([image.image for image in judges[:40]])

    def maps(loop: Loop) -> Tensor:
        found = segmentation.predict(loop.averaged["network"], shown).logits.argmax(1)
        return torch.stack([shown, segmentation.paint(found)], 1).flatten(0, 1)

    hooks = [common.draw(run, maps, 1000)]
    loop = common.train(run, step, data, stateful=parts, averages={"network": 0.998}, hooks=hooks)
    trained = common.round_to_half(loop.averaged["network"])
    scores = segmentation.evaluate(trained, judges) | {"held-out scenes": len(judges)}
    common.export(run, trained, scores, seconds=loop.seconds, data="scenes")
    return scores


if __name__ == "__main__":
    main()
