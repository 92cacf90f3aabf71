"""Chapter 5: diffusion. Noise is added to data until nothing is left of it; a network learns the way back.

Network, loss and sampler are separate: `schedule` and `process` hold the mathematics of both ways, `denoiser` says what
a network's answer means, `losses` and `training` teach it, `samplers` and `sampling` draw. `exact` holds data for which
the best denoiser is known.
"""

from course_lib.diffusion.denoiser import Denoiser, guided
from course_lib.diffusion.losses import bits_per_dimension, bound_terms, diffusion_step, draw_times, simple_loss, weight
from course_lib.diffusion.process import (
    PREDICTION_TYPES,
    Schedule,
    cosine,
    from_betas,
    from_function,
    linear,
    mu_from_epsilon,
    posterior,
    posterior_coefficients,
    q_sample,
    q_step,
    target,
    to_epsilon,
    to_x0,
)
from course_lib.diffusion.samplers import (
    State,
    ddim,
    ddpm,
    dpm_solver,
    heun,
    last,
    sample,
)
from course_lib.diffusion.toy2d import GaussianMixture, PointNetwork, gaussian, spiral
