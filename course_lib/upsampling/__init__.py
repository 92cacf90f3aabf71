"""Every operation that takes h×w×d to H×W×K, by hand, and equal to torch's.

Indexing, arithmetic and matrix products only; batches (B, C, H, W) of any float dtype on any device;
differentiable as often as wanted. Sizes and steps are one integer, or (vertical, horizontal).
"""

from course_lib.upsampling.convolution import (
    convolution,
    convolution_matrix,
    icnr_,
    overlap_count,
    resize_convolution,
    transposed_convolution,
    transposed_convolution_by_matrix,
    transposed_convolution_by_zeros,
)
from course_lib.upsampling.interpolation import (
    bed_of_nails,
    bicubic,
    bilinear,
    max_unpool,
    nearest,
    pixel_shuffle,
    pixel_unshuffle,
)
from course_lib.upsampling.network import FACTOR, Upsampler, shrink, upsampler_step
