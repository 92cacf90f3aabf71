"""Diffusion: noise is added to data until nothing is left of it, and a network learns the way back.

Network, loss and sampler are separate. In reading order: `process` (the mathematics of both ways), `denoiser` (what a
network's answer means), `losses` (how it is trained), `samplers` (how it draws), `toy2d` (data for which the best
denoiser is known, and points in the plane).
"""

from course_lib.diffusion.denoiser import Denoiser, guided
from course_lib.diffusion.losses import diffusion_step, draw_times, simple_loss, weight
from course_lib.diffusion.process import (
    Schedule,
    cosine,
    from_betas,
    from_function,
    linear,
    mu_from_epsilon,
    posterior,
    q_sample,
    q_step,
    straight,
    target,
    to_epsilon,
    to_x0,
)
from course_lib.diffusion.samplers import State, ddim, ddpm, dpm_solver, heun, last, noise_stream, sample
from course_lib.diffusion.toy2d import GaussianMixture, PointNetwork, cat_outline, gaussian, spiral
