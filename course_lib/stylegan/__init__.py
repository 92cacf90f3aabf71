"""A small StyleGAN: a mapping network, styles that modulate convolutions, noise, and mixing.

From StyleGAN (Karras et al. 2019, arXiv 1812.04948): the mapping network z → w, the learned constant, one style a
layer, per-pixel noise, style mixing and truncation. From StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): modulated
convolution with demodulation in the place of AdaIN, images summed up over the resolutions, and lazy R1. Left out:
path length regularisation, and the blur filters around resampling, whose work bilinear interpolation does here.
"""

from course_lib.stylegan.layers import EqualisedConv, EqualisedLinear, modulated_conv2d
from course_lib.stylegan.networks import (
    StyleDiscriminator,
    StyleGenerator,
    halve,
    minibatch_stddev,
    resolutions,
    widths,
)
from course_lib.stylegan.training import mix, sample, stylegan_step
