"""Radiance fields and splats: closed forms, limits, gradients, brute force, and what the shipped splats know."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, rng, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import reconstruction
from course_lib.base import checkpoints, datasets, zoo
from course_lib.base.loop import Loop
from course_lib.reconstruction import epipolar, radiance, splats
from course_lib.reconstruction.cameras import orbit
from course_lib.reconstruction.radiance import RadianceMLP, VoxelGrid, ray_weights

BALL = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))

# --- along a ray


@given(st.integers(1, 12), st.floats(0, 50), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_weights_are_parts_of_one(pieces, strength, seed):
    sigma, delta = strength * uniform(3, pieces, seed=seed), uniform(3, pieces, seed=seed + 1)
    weights = ray_weights(sigma, delta)
    assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-12).all()
    torch.testing.assert_close(1 - weights.sum(-1), torch.exp(-(sigma * delta).sum(-1)), atol=1e-12, rtol=0)


def test_quadrature_is_exact_for_constant_density():
    """However a ray is cut, its colour is that of the integral in closed form."""
    sigma, length = 1.7, 2.3
    for cuts in (1, 2, 7, 40):
        delta = uniform(cuts).add(0.01)
        delta = delta / delta.sum() * length
        weights = ray_weights(torch.full((cuts,), sigma, dtype=torch.float64), delta)
        assert weights.sum().item() == pytest.approx(1 - math.exp(-sigma * length), rel=1e-12)
        ends = delta.cumsum(0)
        exact = torch.exp(-sigma * (ends - delta)) - torch.exp(-sigma * ends)
        torch.testing.assert_close(weights, exact, atol=1e-14, rtol=1e-10)


def test_weights_of_many_fine_pieces_are_the_integral():
    t = torch.linspace(0, 3, 30_001, dtype=torch.float64)
    density = 1 + torch.sin(2 * t)
    T = torch.exp(-torch.cumulative_trapezoid(density, t))
    expected = torch.trapezoid(torch.cat([torch.ones(1).double(), T]) * density * t.cos(), t)
    middle = (t[1:] + t[:-1]) / 2
    weights = ray_weights(1 + torch.sin(2 * middle), t.diff())
    assert float((weights * middle.cos()).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_transparent_and_opaque_limits():
    assert (ray_weights(torch.zeros(4), torch.ones(4)) == 0).all()
    wall = torch.tensor([0.0, 0, 1e9, 5])
    assert ray_weights(wall, torch.ones(4)).tolist() == [0, 0, 1, 0]


def test_gradients_of_the_weights():
    sigma, delta = uniform(2, 5).add(0.1).requires_grad_(), uniform(2, 5, seed=1).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(ray_weights, (sigma, delta))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype):
    sigma, delta = 3 * uniform(4, 8), uniform(4, 8, seed=1)
    found = ray_weights(sigma.to(dtype), delta.to(dtype))
    assert found.dtype == dtype and (found.double() - ray_weights(sigma, delta)).abs().max() < 0.03


def test_rays_enter_and_leave_a_box():
    o = torch.tensor([[3.0, 0, 0], [0, 0, 0], [3, 3, 0], [-3, 0.5, 0.5]])
    d = torch.tensor([[-1.0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]])
    near, far = radiance.enter_and_leave(o, d, BALL)
    torch.testing.assert_close(near, torch.tensor([2.0, 0, 0, 2]))
    torch.testing.assert_close(far[[0, 1, 3]], torch.tensor([4.0, 1, 4]))
    assert near[2] == far[2], "it misses"
    t, delta = radiance.sample_rays(near, far, 8, rng())
    assert (t.diff() >= 0).all() and ((near[:, None] <= t) & (t <= far[:, None])).all()
    torch.testing.assert_close(delta.sum(1), far - near)
    torch.testing.assert_close(radiance.sample_rays(near, far, 4)[0][0], torch.tensor([2.25, 2.75, 3.25, 3.75]))


class Ball(nn.Module):
    """A grey ball of constant density."""

    box = BALL

    def __init__(self, density):
        super().__init__()
        self.density = nn.Parameter(torch.tensor(density))

    def occupied(self, X):
        return X.norm(dim=-1) < 1.01

    def forward(self, X, directions):
        return self.density * (X.norm(dim=-1) < 0.8), torch.full_like(X, 0.2)


def test_a_ball_of_fog_has_its_closed_form():
    camera = orbit(20, 10, size=15, distance=3)
    o, d = camera.rays()
    chord = 2 * (0.64 - torch.linalg.cross(o, d).square().sum(-1)).clamp_min(0).sqrt()
    clear = torch.exp(-1.3 * chord)
    found = reconstruction.render_field(Ball(1.3), camera, n=2000)
    torch.testing.assert_close(found, (0.2 * (1 - clear) + clear).expand(3, 15, 15), atol=2e-3, rtol=0)


# --- fields


def grid(n=6, occupancy=None, seed=0):
    made = VoxelGrid(((-1.0, -2.0, 0.0), (1.0, 1.0, 0.5)), n, occupancy)
    with torch.no_grad():
        made.values.copy_(normal(n**3, 4, seed=seed))
    return made


def test_trilinear_interpolation_is_torchs():
    made = grid().double()
    X = made.low + uniform(50, 3) * (made.high - made.low)
    density, colour = made(X, X)
    cube = made.values.T.reshape(1, 4, 6, 6, 6)
    at = (2 * (X - made.low) / (made.high - made.low) - 1).flip(1).view(1, -1, 1, 1, 3)  # it takes z, y, x
    expected = F.grid_sample(cube, at, align_corners=True).view(4, -1).T
    torch.testing.assert_close(colour, torch.sigmoid(expected[:, 1:]), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(density, 30 * F.softplus(expected[:, 0] - 2), atol=1e-6, rtol=1e-6)


def test_corners_weigh_one_and_edges_are_theirs():
    made = grid()
    corners, weights = made.corners(torch.stack([made.low, made.high, (made.low + made.high) / 2, made.high + 1]))
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert corners[0, weights[0].argmax()] == 0 and corners[1, weights[1].argmax()] == 6**3 - 1
    assert corners[3, weights[3].argmax()] == 6**3 - 1 and corners.max() < 6**3, "beyond the box its rim goes on"


def test_a_finer_grid_is_the_same_field():
    made = grid(n=4)
    X = made.low + uniform(30, 3, dtype=torch.float32) * (made.high - made.low)
    for ours, theirs in zip(made(X, X), made.refined(7)(X, X), strict=True):  # 7 − 1 is a multiple of 4 − 1
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_empty_cells_are_not_asked():
    occupancy = torch.zeros(2, 2, 2, dtype=torch.bool)
    occupancy[0] = True
    made, camera = grid(8, occupancy), orbit(0, 30, size=8, target=(0.0, -0.5, 0.25))
    asked = []
    made.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    reconstruction.render_field(made, camera)
    assert torch.cat(asked)[:, 0].max() <= 0, "the half with x > 0 is empty"
    free = grid(8)
    with torch.no_grad():
        free.values[:, 0] = torch.where(torch.arange(8).repeat_interleave(64) > 3, -60.0, made.values[:, 0])
        made.values.copy_(free.values)
    difference = reconstruction.render_field(made, camera) - reconstruction.render_field(free, camera)
    assert difference.abs().max() < 0.35, "only the cell at the border differs"


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="n ≥ 2"):
        VoxelGrid(BALL, 1)
    with pytest.raises(ValueError, match="low < high"):
        VoxelGrid((BALL[1], BALL[0]), 4)
    for occupancy in (torch.zeros(2, 2, 2).bool(), torch.ones(2, 2, 2), torch.ones(2, 2).bool()):
        with pytest.raises(ValueError, match="bool occupancy"):
            VoxelGrid(BALL, 4, occupancy)


def test_positional_encoding_is_the_papers():
    x = uniform(4, 3)
    found = radiance.positional_encoding(x, 5)
    expected = [x, *(f(2**k * math.pi * x) for k in range(5) for f in (torch.sin, torch.cos))]
    torch.testing.assert_close(found, torch.cat(expected, 1))
    assert torch.equal(radiance.positional_encoding(x, 0), x)


def test_the_networks_density_does_not_depend_on_the_direction():
    torch.manual_seed(0)
    network = RadianceMLP(BALL, frequencies=3, width=16, depth=2)
    X, d = uniform(6, 3, dtype=torch.float32), F.normalize(normal(6, 3, dtype=torch.float32), dim=1)
    (a, red), (b, blue) = network(X, d), network(X, -d)
    assert torch.equal(a, b) and not torch.equal(red, blue) and (a >= 0).all()


@pytest.mark.parametrize("make", [lambda: VoxelGrid(BALL, 12), lambda: RadianceMLP(BALL, 4, 32, 2)])
def test_fields_learn(make):
    torch.manual_seed(0)
    views, field = reconstruction.load_turntable(4, 16, samples=1), make()
    optimiser = torch.optim.Adam(field.parameters(), 0.05 if isinstance(field, VoxelGrid) else 5e-3)
    step = reconstruction.radiance_step(field, optimiser, 24, rng())
    rays = reconstruction.Rays.of(views)
    assert len(rays) == 4 * 256
    loop = Loop(step, rays, steps=60, batch_size=256, stateful={"field": field, "optimiser": optimiser})
    losses = loop.run()["loss"]
    assert sum(losses[-5:]) < 0.35 * sum(losses[:5])


# --- splats


def blobs(n=12, seed=0):
    made = splats.Splats(n).double()
    with torch.no_grad():
        made.means.copy_(0.5 * normal(n, 3, seed=seed))
        made.log_scales.copy_(-1.6 + 0.4 * normal(n, 3, seed=seed + 1))
        made.quaternions.copy_(normal(n, 4, seed=seed + 2))
        made.opacity.copy_(normal(n, seed=seed + 3))
        made.colour.copy_(normal(n, 3, seed=seed + 4))
    return made


def brute_force(made, camera, background):
    """Pixel by pixel, blob by blob, as the paper's appendix has it."""
    R, t, K = camera.R.double(), camera.t.double(), camera.K.double()
    blobs = []
    for mean, scale, q, o, c in zip(made.means, made.log_scales.exp(), made.quaternions, made.opacity, made.colour,
                                    strict=True):  # fmt: skip
        X = R @ mean + t
        if X[2] <= splats.NEAR:
            continue
        w, xyz = q[0] / q.norm(), q[1:] / q.norm()
        turn = epipolar.rotation(2 * torch.atan2(xyz.norm(), w) * xyz / xyz.norm())
        Sigma = turn @ torch.diag(scale**2) @ turn.T
        J = torch.autograd.functional.jacobian(lambda Y: (K @ (R @ Y + t))[:2] / (R @ Y + t)[2], mean.detach())
        flat = J @ Sigma @ J.T + splats.BLUR * torch.eye(2)
        blobs.append((X[2].item(), (K @ X)[:2] / X[2], torch.linalg.inv(flat), torch.sigmoid(o), torch.sigmoid(c)))
    blobs.sort(key=lambda blob: blob[0])
    image = torch.zeros(3, camera.height, camera.width, dtype=torch.float64)
    for i in range(camera.height):
        for j in range(camera.width):
            T, pixel = 1.0, torch.tensor([j + 0.5, i + 0.5], dtype=torch.float64)
            for _, x, inverse, o, c in blobs:
                alpha = min(0.99, (o * torch.exp(-0.5 * (pixel - x) @ inverse @ (pixel - x))).item())
                if alpha >= 1 / 255:
                    image[:, i, j] += T * alpha * c.detach()
                    T *= 1 - alpha
            image[:, i, j] += T * background
    return image


@pytest.mark.parametrize("camera", [orbit(0, 20, size=20, distance=3), orbit(70, -30, size=19, distance=1.2)])
def test_splats_are_those_of_brute_force(camera):
    made = blobs()
    torch.testing.assert_close(made(camera, 0.3), brute_force(made, camera, 0.3), atol=1e-5, rtol=0)


def test_tiles_leave_no_seam():
    made, camera = blobs(30, seed=7), orbit(0, 10, size=40, distance=3)
    whole = made(camera)
    saved, splats.TILE = splats.TILE, 1000
    try:
        torch.testing.assert_close(made(camera), whole, atol=1e-12, rtol=0)
    finally:
        splats.TILE = saved


def test_covariances_have_their_axes():
    q, scales = normal(5, 4), uniform(5, 3).add(0.1)
    Sigma = splats.covariances(q, scales)
    torch.testing.assert_close(torch.linalg.eigvalsh(Sigma), (scales**2).sort(1)[0])
    R = splats.rotations(q)
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand(5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(5).double())
    torch.testing.assert_close(splats.rotations(torch.tensor([[1.0, 0, 0, 0]])), torch.eye(3)[None])


def test_gradients_of_splats():
    made, camera = blobs(4), orbit(0, 20, size=5, distance=3, focal=0.5)
    names = [name for name, _ in made.named_parameters()]

    def draw(*values):
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (camera,))

    inputs = [p.detach().clone().requires_grad_() for p in made.parameters()]
    assert torch.autograd.gradcheck(draw, inputs, atol=1e-4, rtol=1e-3)


def test_splats_keep_their_digits_under_autocast():
    made, camera = blobs().float(), orbit(0, 20, size=20, distance=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(camera)
    assert torch.equal(found, made(camera))


def test_limits_of_splats():
    camera = orbit(0, 0, size=12, distance=3)
    one = splats.Splats.at(torch.zeros(1, 3), 0.2)
    with torch.no_grad():
        one.opacity.fill_(-100)
        assert (one(camera, 0.6) == 0.6).all(), "transparent"
        one.opacity.fill_(100)
        one.colour.fill_(100)
        one.log_scales.fill_(3)
        torch.testing.assert_close(one(camera, 0.0), torch.full((3, 12, 12), 0.99), atol=0.01, rtol=0)
        one.means.copy_(torch.tensor([[9.0, 0, 0]]))
        assert (one(camera, 0.6) == 0.6).all(), "behind the camera"
    with pytest.raises(ValueError, match="at least one splat"):
        splats.Splats(0)


def test_splats_learn():
    views = reconstruction.load_turntable(3, 16, samples=1)
    made = splats.Splats.at(uniform(60, 3, dtype=torch.float32) - 0.5, 0.1)
    optimiser = torch.optim.Adam(made.groups(), eps=1e-15)
    step = reconstruction.splat_step(made, optimiser, views.cameras)
    parts = {"splats": made, "optimiser": optimiser}
    losses = Loop(step, reconstruction.Pictures(views), steps=60, batch_size=1, stateful=parts).run()["loss"]
    assert sum(losses[-6:]) < 0.4 * sum(losses[:6])


@pytest.mark.skipif(
    not (checkpoints.folder() / "splats_turntable.safetensors").is_file(), reason="the checkpoint is not there"
)
def test_the_shipped_splats_know_views_that_they_have_not_seen():
    shipped = zoo.load("splats_turntable", "cpu")
    header = checkpoints.load("splats_turntable")[1]
    judges = reconstruction.load_turntable(3, 64, start=3.75)
    found = reconstruction.mean_psnr(lambda camera: shipped(camera).clamp(0, 1), judges)
    assert found > 24 and "PSNR, dB" in header["score"]


def test_psnr():
    assert radiance.psnr(torch.full((3, 4, 4), 0.6), torch.full((3, 4, 4), 0.5)) == pytest.approx(20, rel=1e-4)


@pytest.mark.skipif(
    not (datasets.data_folder() / "multiview" / "lego_100views_100px.npz").exists(), reason="COURSE_DATA has no lego"
)
def test_the_legos_cameras_fit_its_silhouettes():
    views = reconstruction.load_lego().shrunk(2)
    left = reconstruction.visual_hull(views.masks[:20], views.cameras[:20], views.box, 40)
    assert 0.05 < float((left > 0.5).double().mean()) < 0.5
    inside = reconstruction.voxel_centres(views.box, 40)[left > 0.5]
    for camera, mask in zip(views.cameras[20:30], views.masks[20:30], strict=True):  # views that carved nothing
        x, _ = camera.project(inside)
        j, i = x.long().clamp(0, 49).unbind(1)
        assert (mask[i, j] > 0.2).double().mean() > 0.93
