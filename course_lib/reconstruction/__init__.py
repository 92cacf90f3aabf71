"""3D reconstruction: from several pictures to points, bodies, and views that nobody took.

`cameras` and `epipolar` are geometry without light; `stereo` finds a depth for every pixel of two pictures; `hull`
carves a body from silhouettes; `radiance` and `splats` learn a scene from its pictures. `turntable` is a toy of which
everything is known, `views` holds pictures with their cameras, `ply` writes files.
"""

from course_lib.reconstruction import stereo
from course_lib.reconstruction.cameras import Camera, look_at, orbit, triangulate, triangulate_optimal
from course_lib.reconstruction.epipolar import (
    Bundle,
    bundle_adjust,
    eight_point,
    epipolar_lines,
    essential_from_fundamental,
    poses_of,
    ransac,
    relative_pose,
    rotation,
    sampson_distance,
)
from course_lib.reconstruction.hull import (
    chamfer_distance,
    mesh,
    sample_surface,
    visual_hull,
    volume,
    voxel_centres,
)
from course_lib.reconstruction.ply import save_ply
from course_lib.reconstruction.radiance import (
    RadianceMLP,
    Rays,
    VoxelGrid,
    mean_psnr,
    positional_encoding,
    psnr,
    radiance_step,
    ray_weights,
    render_field,
    render_rays,
)
from course_lib.reconstruction.splats import Pictures, Splats, splat, splat_step
from course_lib.reconstruction.turntable import draw_view, signed_distance, true_volume, turntable_cameras
from course_lib.reconstruction.views import Views, load_lego, load_temple, load_turntable
