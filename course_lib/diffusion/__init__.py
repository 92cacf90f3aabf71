"""Chapter 5: diffusion. Noise is added to data until nothing is left of it; a network learns the way back.

Network, loss and sampler are separate: `schedule` and `process` hold the mathematics of both ways, `denoiser` says what
a network's answer means, `losses` and `training` teach it, `samplers` and `sampling` draw. `exact` holds data for which
the best denoiser is known.
"""

from course_lib.diffusion.denoiser import Denoiser, guided
from course_lib.diffusion.exact import Mixture, gaussian
from course_lib.diffusion.losses import bits_per_dimension, bound_terms, draw_times, simple_loss, weight
from course_lib.diffusion.plane import PointNetwork, spiral
from course_lib.diffusion.process import (
    KINDS,
    mu_from_epsilon,
    posterior,
    posterior_coefficients,
    q_sample,
    q_step,
    target,
    to_epsilon,
    to_x0,
)
from course_lib.diffusion.samplers import State, ddim, ddpm, dpm_solver, heun, last
from course_lib.diffusion.sampling import sample
from course_lib.diffusion.schedule import Schedule, cosine, from_betas, from_function, linear
from course_lib.diffusion.shipped import SHIPPED, build, load
from course_lib.diffusion.training import diffusion_step

__all__ = [
    "KINDS",
    "SHIPPED",
    "Denoiser",
    "Mixture",
    "PointNetwork",
    "Schedule",
    "State",
    "bits_per_dimension",
    "bound_terms",
    "build",
    "cosine",
    "ddim",
    "ddpm",
    "diffusion_step",
    "dpm_solver",
    "draw_times",
    "from_betas",
    "from_function",
    "gaussian",
    "guided",
    "heun",
    "last",
    "linear",
    "load",
    "mu_from_epsilon",
    "posterior",
    "posterior_coefficients",
    "q_sample",
    "q_step",
    "sample",
    "simple_loss",
    "spiral",
    "target",
    "to_epsilon",
    "to_x0",
    "weight",
]
