"""Editing images: super-resolution, inpainting and outpainting, and from one image to another.

`super_resolution` trains a small network and judges it by the protocol of the literature. `paired` learns to translate
from pairs, `unpaired` from two sets of images without pairs. `inpainting` and `translation` need no training: they
steer a diffusion model that is there already.
"""

from course_lib.editing import paired, super_resolution, unpaired
from course_lib.editing.inpainting import consistent, inpaint, repaint, repaint_times, seam
from course_lib.editing.translation import sdedit, sdedit_times
