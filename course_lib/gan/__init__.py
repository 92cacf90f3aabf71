"""GAN: noise becomes an image, and a classifier that is learning to tell it from a real one teaches it.

Networks and losses are separate from the alternating step and from sampling, which `training` holds. `ring` is a toy
world in the plane, where mode collapse can be seen and counted.
"""

from course_lib.gan.losses import (
    best_value,
    discriminator_loss,
    generator_loss,
    jensen_shannon,
    optimal_discriminator,
    r1_penalty,
    saturating_generator_loss,
)
from course_lib.gan.networks import (
    Discriminator,
    Downsampling,
    FullyConnectedGenerator,
    Generator,
    MaxoutDiscriminator,
    Upsampling,
)
from course_lib.gan.ring import PointDiscriminator, PointGenerator, mode_proportions, ring, ring_centres
from course_lib.gan.training import adversarial_step, augment, frozen, sample, slerp
