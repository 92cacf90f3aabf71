"""Train the variational autoencoder on MNIST.

    python recipes/vae.py        # about 2 minutes on 2 cores; continues where it was interrupted

MNIST is found in `COURSE_DATA`, or downloaded. Samples are drawn to build/ as the training goes: the means of p(x|z),
at z from the prior, which are also what is judged.
"""

import torch
from torch import Tensor

from course_lib import vae
from course_lib.base import datasets, metrics
from course_lib.base.loop import Loop
from recipes import common

NAME = "vae_mnist"
DRAWS = 50  # of z for each image, for the estimate of log p(x)


@torch.no_grad()
def bounds(network: vae.VAE, images: Tensor, rng: torch.Generator) -> dict[str, float]:
    """The mean ELBO and the mean importance-weighted bound on log p(x), in nats an image."""
    found = []
    for part in images.split(100):
        noise = torch.randn(DRAWS, len(part), network.z_dim, generator=rng).to(part)
        likelihood, divergence = vae.elbo(network, part, noise[0])
        found.append(torch.stack([likelihood - divergence, vae.log_likelihood(network, part, noise)]))
    means = torch.cat(found, 1).mean(1).tolist()
    return {"ELBO, nats": means[0], f"bound on log p(x), {DRAWS} draws, nats": means[1]}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=30_000, batch_size=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--z-dim", type=int, default=20)
    args = parser.parse_args(argv)
    run = common.setup(args, NAME, script=__file__)

    data, held_out = datasets.load("mnist"), datasets.load("mnist", "test")
    network = vae.VAE(hidden=args.hidden, z_dim=args.z_dim).to(run.device)
    optimiser = torch.optim.Adam(network.parameters(), args.lr)
    # The learning rate falls to zero along a half cosine.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, run.steps)
    rng = torch.Generator(run.device).manual_seed(run.seed)
    raise_elbo = vae.vae_step(network, optimiser, rng)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        losses = raise_elbo(batch)
        schedule.step()
        return losses

    stateful = {"vae": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}

    def grid(loop: Loop) -> Tensor:
        return vae.sample(network, common.IMAGES, torch.Generator().manual_seed(0))

    hooks = [common.draw(run, grid, 5000)]
    loop = common.train(run, step, data, stateful=stateful, hooks=hooks, save_every=5000)
    common.round_to_half(network)
    n = 200 if run.quick else common.EVALUATED
    rng = torch.Generator().manual_seed(run.seed)
    scores = metrics.evaluate(vae.sample(network, n, rng).cpu(), "mnist")
    scores |= bounds(network, held_out[slice(n)][0].to(run.device), rng)
    common.export(run, network, scores, seconds=loop.seconds, data="mnist")
    return scores


if __name__ == "__main__":
    main()
