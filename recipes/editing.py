"""Train the networks of the lesson on editing.

    python recipes/editing.py                                  # all, one after the other
    python recipes/editing.py --model super_resolution_x2      # one of them; continues where it was interrupted

The networks for super-resolution learn from the photographs of BSDS500 in `COURSE_DATA`, without them from those that
are built in. They are judged on Set5 (Bevilacqua et al. 2012; the folder Set5 of `COURSE_DATA`), without it on built-in
photographs that they have not seen. What is judged and kept is the moving average of the weights, so that no learning
rate has to fall to an end that is known before: more `--steps` go on from where fewer stopped. The layers before the
last of ×2 begin as those of ×4, whose small images are cheaper to learn from.

The networks of paired translation learn from faces of cats and their edges (for the faces see `recipes/cat_faces.py`),
and from scenes of the toy world and their maps. The first is judged by the edges and the features of its answers to
held-out edges, the second by what the panoptic network reads in its answers to new maps.

The generators of unpaired translation learn from scenes by day and other scenes by night. They are judged on new scenes
rendered at both times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from course_lib import segmentation
from course_lib.base import datasets, images, metrics, zoo
from course_lib.base.loop import Loop
from course_lib.editing import paired, unpaired
from course_lib.editing import super_resolution as sr
from recipes import common

LEARNT = {  # steps and batch size
    "super_resolution_x4": (8000, 8),
    "super_resolution_x2": (9000, 8),
    "edges_to_cats": (3400, 16),
    "maps_to_scenes": (2600, 16),
    "cycle_day_night": (5000, 4),
}
SCENES, NEW_SCENES, SCENES_A_SIDE = 3000, 300, 2000


def judges() -> tuple[str, list[Tensor]]:
    """The photographs that judge super-resolution: their name, and (1, 3, H, W) each."""
    files = sorted((datasets.data_folder() / "Set5").glob("*.png"))
    if files:
        return "Set5", [images.load(file) for file in files]
    return "built-in", [datasets.load_image(name) for name in sr.HELD_OUT]


def super_resolution(run: common.Run, lr: float) -> dict[str, object]:
    """Train, judge and save one network; returns the scores."""
    network = zoo.build(run.name)
    if run.name == "super_resolution_x2" and not run.quick:  # as between scales in Lim et al. (2017), section 3.3
        network.body.load_state_dict(zoo.load("super_resolution_x4", "cpu").body.state_dict())
    network = network.to(run.device)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    rng = torch.Generator().manual_seed(run.seed)
    step = sr.super_resolution_step(network, optimiser, rng)
    stateful = {"network": network, "optimiser": optimiser, "rng": rng}
    data = sr.tiles(sr.photographs(), side=24 * network.factor, stride=16 * network.factor)
    loop = common.train(run, step, data, stateful=stateful, averages={"network": 0.999}, save_every=250)
    best = common.round_to_half(loop.averaged["network"]).cpu()
    name, held_out = judges()
    r = best.factor
    rule = sr.evaluate(lambda y: sr.bicubic(y, r), held_out, r)
    scores = sr.evaluate(best, held_out, r)
    scores |= {"PSNR of bicubic, dB": rule["PSNR, dB"], "SSIM of bicubic": rule["SSIM"]}
    common.export(run, best, scores, seconds=loop.seconds, data="bsds500", held_out=name, tiles=len(data))
    return scores


def translation(
    run: common.Run, lr: float, data: Any, pairs: Callable[[Any, torch.Generator], tuple[Tensor, Tensor]], shown: Tensor
) -> Loop:
    """Train one network of paired translation, and draw now and then what it makes of `shown`."""
    generator = zoo.build(run.name).to(run.device)
    discriminator = paired.PatchDiscriminator(shown.shape[1] + 3).to(run.device)
    optimisers = [torch.optim.Adam(network.parameters(), lr, (0.5, 0.99)) for network in (generator, discriminator)]
    rng = torch.Generator().manual_seed(run.seed)
    step = paired.translation_step(generator, discriminator, *optimisers)
    stateful = {"generator": generator, "discriminator": discriminator, "rng": rng}
    stateful |= {"generator_optimiser": optimisers[0], "discriminator_optimiser": optimisers[1]}
    hook = common.draw(run, lambda loop: paired.translate(loop.averaged["generator"], shown).cpu(), 500)
    options = {"averages": {"generator": 0.998}, "hooks": [hook], "save_every": 250}
    return common.train(run, lambda batch: step(pairs(batch, rng)), data, stateful=stateful, **options)


def edges_to_cats(run: common.Run, lr: float) -> dict[str, object]:
    """Train, judge and save the network that answers edges with faces of cats; returns the scores."""
    data, held_out = datasets.load("cat_faces"), datasets.load("cat_faces", "test")[:][0]
    given = paired.edges(held_out)
    loop = translation(run, lr, data, lambda batch, rng: paired.edge_pairs(batch[0], rng), given[:40])
    best = common.round_to_half(loop.averaged["generator"])
    answers, features = paired.translate(best, given).cpu(), metrics.extractor("cat_faces")
    real = features(data[: 100 if run.quick else 2000][0])
    sides = {"": answers, " of the edges": given.expand(-1, 3, -1, -1), " of held-out faces": held_out}
    scores = {f"Fréchet distance{name}": metrics.frechet_distance(real, features(x)) for name, x in sides.items()}
    scores |= {"edges agree": paired.edge_agreement(answers, given)}
    common.export(run, best, scores, seconds=loop.seconds, data="cat_faces", held_out=len(held_out))
    return scores


def maps_to_scenes(run: common.Run, lr: float) -> dict[str, object]:
    """Train, judge and save the network that answers semantic maps with scenes; returns the scores."""
    n = 20 if run.quick else SCENES
    data = TensorDataset(*paired.scene_pairs(n, seed=run.seed + 1))
    maps, new = paired.scene_pairs(20 if run.quick else NEW_SCENES, seed=run.seed + 2)
    given = paired.one_hot(maps)
    loop = translation(run, lr, data, paired.map_pairs, given[:40])
    best = common.round_to_half(loop.averaged["generator"])
    judge = zoo.load("panoptic_scenes", run.device)

    def read(x: Tensor) -> float:
        found = segmentation.predict(judge, x).logits.argmax(1)
        return segmentation.semantic.mean_iou(segmentation.confusion_matrix(found, maps, given.shape[1]))

    sides = {"": paired.translate(best, given).cpu(), " of painted maps": segmentation.paint(maps)}
    scores = {f"mIoU{name}": read(x) for name, x in (sides | {" of true scenes": new.float() / 255}).items()}
    common.export(run, best, scores, seconds=loop.seconds, data="scenes", scenes=n, held_out=len(maps))
    return scores


def cycle_day_night(run: common.Run, lr: float) -> dict[str, object]:
    """Train, judge and save both generators between day and night; returns the scores."""
    n, new = (20, 20) if run.quick else (SCENES_A_SIDE, NEW_SCENES)
    networks = zoo.build(run.name).to(run.device)
    data = TensorDataset(*(unpaired.scenes_by(side, n, seed=run.seed + 1 + i) for i, side in enumerate(networks)))
    truth = {side: unpaired.scenes_by(side, new, seed=run.seed + 3) / 255 for side in networks}
    discriminators = nn.ModuleDict({side: paired.PatchDiscriminator(3, 24) for side in networks}).to(run.device)
    pools = nn.ModuleDict({side: unpaired.ImagePool(x.shape[1:]) for side, x in truth.items()}).to(run.device)
    rates = ((networks, lr), (discriminators, 0.3 * lr))  # as fast as the generators, they would soon be sure
    optimisers = [torch.optim.Adam(network.parameters(), rate, (0.5, 0.99)) for network, rate in rates]
    rng = torch.Generator().manual_seed(run.seed)
    step = unpaired.cycle_step(networks, discriminators, *optimisers, pools, rng)
    stateful = {"networks": networks, "discriminators": discriminators, "pools": pools, "rng": rng}
    stateful |= {"generator_optimiser": optimisers[0], "discriminator_optimiser": optimisers[1]}

    def shown(loop: Loop) -> Tensor:
        """Ten scenes by day, their translations, and ten by night."""
        day, night = (truth[side][:10] for side in networks)
        there, back = (unpaired.translate(loop.averaged["networks"], *x) for x in ((day, "night"), (night, "day")))
        return torch.cat([day, there.cpu(), night, back.cpu()])

    options = {"averages": {"networks": 0.998}, "hooks": [common.draw(run, shown, 500)], "save_every": 250}
    loop = common.train(run, lambda batch: step(unpaired.mirrored(batch, rng)), data, stateful=stateful, **options)
    best = common.round_to_half(loop.averaged["networks"])
    scores = unpaired.evaluate(best, truth)
    common.export(run, best, scores, seconds=loop.seconds, data="scenes", scenes=n, held_out=new)
    return scores


LEARN = {"edges_to_cats": edges_to_cats, "maps_to_scenes": maps_to_scenes, "cycle_day_night": cycle_day_night}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores of the last network."""
    parser = common.parser(__doc__, steps=0, batch_size=0)
    parser.add_argument("--model", choices=list(LEARNT))
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    scores: dict[str, object] = {}
    for name in common.select(args, args.model, "super_resolution_x4", LEARNT):
        steps, batch_size = LEARNT[name]
        chosen = {"model": name, "steps": args.steps or steps, "batch_size": args.batch_size or batch_size}
        run = common.setup(args, name, script=__file__, **chosen)
        scores = LEARN.get(name, super_resolution)(run, args.lr)
    return scores


if __name__ == "__main__":
    main()
