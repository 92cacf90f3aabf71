"""Cameras, two views, bodies and files: exact points, closed forms, scikit-image, scipy and plyfile as oracles."""

import math

import numpy as np
import plyfile
import pytest
import scipy.optimize
import scipy.spatial
import skimage.transform
import torch
from conftest import normal, rng, uniform

from course_lib import reconstruction
from course_lib.base import datasets
from course_lib.reconstruction import cameras, epipolar, hull, plots, turntable
from course_lib.reconstruction.cameras import Camera, look_at, orbit

BALL = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))


def double(camera):
    return Camera(camera.K.double(), camera.R.double(), camera.t.double(), camera.height, camera.width)


def rig(n=60, views=3, seed=0):
    """Cameras around a random cloud, in float64, the cloud, and its exact pixels (V, N, 2)."""
    made = []
    for k in range(views):
        camera = double(orbit(25 * k, 10 + 9 * k, size=400, distance=4))
        U, _, Vh = torch.linalg.svd(camera.R)  # `orbit` works in float32: the nearest rotation in float64
        made.append(Camera(camera.K, U @ Vh, camera.t, 400, 400))
    X = normal(n, 3, seed=seed) * 0.5
    return made, X, torch.stack([camera.project(X)[0] for camera in made])


# --- cameras


def test_a_pixel_and_its_ray_belong_together():
    camera = double(orbit(40, 25, size=20))
    origins, directions = camera.rays()
    X = origins + (1 + 2 * uniform(20, 20, 1)) * directions
    x, depth = camera.project(X)
    i, j = torch.meshgrid(torch.arange(20.0) + 0.5, torch.arange(20.0) + 0.5, indexing="ij")
    torch.testing.assert_close(x, torch.stack([j, i], -1).double(), atol=1e-5, rtol=0)
    assert (depth > 0).all()
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(20, 20, dtype=torch.float64))


def test_the_projection_matrix_says_the_same():
    camera = double(orbit(10, 5, size=64))
    X = normal(9, 3) * 0.3
    h = torch.cat([X, torch.ones(9, 1)], 1).double() @ camera.P.T
    torch.testing.assert_close(camera.project(X)[0], h[:, :2] / h[:, 2:])
    centre = torch.cat([camera.centre, torch.ones(1).double()])
    torch.testing.assert_close(camera.P @ centre, torch.zeros(3).double(), atol=1e-6, rtol=0)


def test_look_at_is_upright_and_centred():
    camera = look_at((3, 1, 2), (0.5, 0, 0), size=100, focal=1.2)
    x, depth = camera.project(torch.tensor([[0.5, 0, 0], [0.5, 0, 0.1]]))
    torch.testing.assert_close(x[0], torch.tensor([50.0, 50]), atol=1e-3, rtol=0)
    assert x[1, 1] < 50 and abs(x[1, 0] - 50) < 1e-3, "up is up"
    assert depth[0] == pytest.approx(math.sqrt(2.5**2 + 1 + 4), rel=1e-5)


def test_a_resized_camera_sees_the_same():
    camera = orbit(33, 12, size=60)
    X = normal(5, 3, dtype=torch.float32) * 0.2
    torch.testing.assert_close(camera.resized(20, 30).project(X)[0], camera.project(X)[0] * torch.tensor([0.5, 1 / 3]))


def test_what_is_behind_the_camera_has_no_pixel():
    x, depth = orbit(0, 0, size=10, distance=3).project(torch.tensor([[0.0, 0, 0], [5.0, 0, 0]]))
    assert x[0].isfinite().all() and x[1].isnan().all() and depth[1] < 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"R": 2 * torch.eye(3)}, ValueError, "expected a rotation"),
        ({"R": torch.diag(torch.tensor([1.0, 1, -1]))}, ValueError, "expected a rotation"),
        ({"t": torch.zeros(2)}, ValueError, "t: expected"),
        ({"K": torch.eye(3, dtype=torch.int64)}, TypeError, "K: expected a tensor of floats"),
        ({"K": -torch.eye(3)}, ValueError, "focal lengths"),
        ({"height": 0}, ValueError, "image sides"),
        ({"t": torch.tensor([0.0, math.nan, 0])}, ValueError, "finite"),
    ],
)
def test_no_camera(change, error, match):
    good = {"K": torch.eye(3), "R": torch.eye(3), "t": torch.zeros(3), "height": 4, "width": 4}
    with pytest.raises(error, match=match):
        Camera(**good | change)


def test_places_without_a_view_are_refused():
    with pytest.raises(ValueError, match="axis that is not along"):
        look_at((0, 0, 2), (0, 0, 0), size=8, focal=1)
    with pytest.raises(ValueError, match="elevation"):
        orbit(0, 90, size=8)
    with pytest.raises(ValueError, match="at least one camera"):
        turntable.turntable_cameras(0, 8)


# --- triangulation


@pytest.mark.parametrize("views", [2, 3, 5])
def test_triangulation_is_exact(views):
    made, X, x = rig(views=views)
    P = torch.stack([camera.P for camera in made])
    torch.testing.assert_close(cameras.triangulate(P, x), X, atol=1e-9, rtol=0)
    torch.testing.assert_close(cameras.triangulate_optimal(P, x), X, atol=1e-9, rtol=0)


def test_optimal_triangulation_has_the_least_reprojection_error():
    made, X, x = rig(n=6, views=2)
    x = x + 3 * normal(*x.shape, seed=1)
    P = torch.stack([camera.P for camera in made])
    found = cameras.triangulate_optimal(P, x)

    def residual(X, k):
        return torch.cat([c.project(torch.from_numpy(X))[0] - x[v, k] for v, c in enumerate(made)]).numpy()

    linear = cameras.triangulate(P, x)
    for k in range(6):
        best = scipy.optimize.least_squares(residual, X[k].numpy(), args=(k,), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        np.testing.assert_allclose(found[k], best.x, atol=1e-6)
        assert (residual(found[k].numpy(), k) ** 2).sum() <= (residual(linear[k].numpy(), k) ** 2).sum() + 1e-12


def test_triangulation_of_nothing_is_refused():
    made, _, x = rig(views=2)
    same = torch.stack([made[0].P, made[0].P])
    with pytest.raises(ValueError, match="stand at one point"):
        cameras.triangulate(same, x)
    with pytest.raises(ValueError, match="V ≥ 2"):
        cameras.triangulate(same[:1], x[:1])
    with pytest.raises(ValueError, match="behind a camera"):
        cameras.triangulate(torch.stack([c.P for c in made]), x * math.nan)


# --- two views


def true_F(first, second):
    """In closed form: K₂⁻ᵀ [t]ₓ R K₁⁻¹."""
    R, K1, K2 = second.R @ first.R.T, first.K, second.K
    t = second.t - R @ first.t
    F = torch.linalg.inv(K2).T @ epipolar.cross_matrix(t) @ R @ torch.linalg.inv(K1)
    return F / F.norm(), R, t / t.norm()


def same_up_to_sign(a, b, atol):
    torch.testing.assert_close(a * torch.sign((a * b).sum()), b, atol=atol, rtol=0)


def test_eight_points_give_the_closed_form():
    made, _, x = rig(n=20)
    F, *_ = true_F(made[0], made[1])
    for n in (8, 20):
        same_up_to_sign(epipolar.eight_point(x[0, :n], x[1, :n]), F, 1e-8)
    assert torch.linalg.matrix_rank(epipolar.eight_point(x[0], x[1]), rtol=1e-9) == 2


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated")
@pytest.mark.parametrize(("noise", "atol"), [(0, 1e-8), (0.5, 1e-5)])
def test_the_eight_point_algorithm_agrees_with_scikit_image(noise, atol):
    """With noise to some digits: they scale by the root mean square of the distances, we by the mean, as HZ does."""
    _, _, x = rig(n=30)
    x = x + noise * normal(*x.shape, seed=3)
    theirs = skimage.transform.FundamentalMatrixTransform()
    theirs.estimate(x[0].numpy(), x[1].numpy())
    expected = torch.from_numpy(np.asarray(theirs.params))
    same_up_to_sign(epipolar.eight_point(x[0], x[1]), expected / expected.norm(), atol)
    ours = epipolar.sampson_distance(expected, x[0], x[1]).numpy()
    np.testing.assert_allclose(ours, theirs.residuals(x[0].numpy(), x[1].numpy()), rtol=1e-6, atol=1e-9)


def test_points_lie_on_their_epipolar_lines():
    made, _, x = rig(n=20)
    lines = epipolar.epipolar_lines(true_F(made[0], made[1])[0], x[0])
    distance = (epipolar.homogeneous(x[1]) * lines).sum(1)
    torch.testing.assert_close(distance, torch.zeros(20).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(lines[:, :2].norm(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ransac_with_forty_percent_outliers(seed):
    _, _, x = rig(n=150, seed=seed)
    clean = x.clone()
    x = x + 0.2 * normal(*x.shape, seed=seed + 10)
    wrong = torch.zeros(150, dtype=torch.bool)
    wrong[torch.randperm(150, generator=rng(seed))[:60]] = True
    x[1, wrong] = 400 * uniform(60, 2, seed=seed + 20)
    F, inliers = epipolar.ransac(x[0], x[1], rng(seed), threshold=1.5)
    assert (inliers & ~wrong).sum() >= 88, "nearly all right pairs are found"
    assert (inliers & wrong).sum() <= 8, "few wrong ones lie near their line by chance"
    assert epipolar.sampson_distance(F, clean[0], clean[1]).median() < 0.5
    again = epipolar.ransac(x[0], x[1], rng(seed), threshold=1.5)
    assert torch.equal(again[0], F) and torch.equal(again[1], inliers)


def test_the_pose_is_recovered():
    made, X, x = rig(n=40)
    first, second = made[:2]
    _, R, t = true_F(first, second)
    E = epipolar.essential_from_fundamental(epipolar.eight_point(x[0], x[1]), first.K, second.K)
    torch.testing.assert_close(torch.linalg.svdvals(E), torch.tensor([1.0, 1, 0]).double(), atol=1e-9, rtol=0)
    found_R, found_t, found_X = epipolar.relative_pose(E, x[0], x[1], first.K, second.K)
    torch.testing.assert_close(found_R, R, atol=1e-7, rtol=0)
    torch.testing.assert_close(found_t, t, atol=1e-7, rtol=0)
    baseline = (second.t - R @ first.t).norm()
    torch.testing.assert_close(found_X * baseline, X @ first.R.T + first.t, atol=1e-6, rtol=0)


def test_the_four_poses_are_all_that_an_essential_matrix_has():
    R, t = epipolar.rotation(normal(3)), torch.nn.functional.normalize(normal(3, seed=1), dim=0)
    poses = epipolar.poses_of(epipolar.cross_matrix(t) @ R)
    assert any(torch.allclose(R, r) and torch.allclose(t, s) for r, s in poses)
    for r, s in poses:
        assert torch.linalg.det(r).item() == pytest.approx(1)
        same_up_to_sign(epipolar.cross_matrix(s) @ r, epipolar.cross_matrix(t) @ R, 1e-9)


@pytest.mark.parametrize("case", ["line", "plane", "equal cameras", "one point", "one pixel"])
def test_degenerate_pairs_are_refused(case):
    made, X, _ = rig(n=20)
    if case == "line":
        X = X[:1] + uniform(20, 1) * normal(1, 3, seed=4)
    if case == "plane":
        X = X * torch.tensor([1.0, 1, 0])
    second = made[0] if case == "equal cameras" else made[1]
    if case == "one point":  # turned, not moved
        R = epipolar.rotation(torch.tensor([0, 0.1, 0]).double()) @ made[0].R
        second = Camera(made[0].K, R, -R @ made[0].centre, 400, 400)
    pairs = [camera.project(X)[0] for camera in (made[0], second)]
    if case == "one pixel":
        pairs = [pair[:1].expand(20, 2) for pair in pairs]
    with pytest.raises(ValueError, match="do not determine F"):
        epipolar.eight_point(*pairs)
    with pytest.raises(ValueError, match="degenerate"):
        epipolar.ransac(*pairs, rng())


def test_too_few_or_bad_pairs_are_refused():
    _, _, x = rig(n=20)
    with pytest.raises(ValueError, match="at least 8 pairs"):
        epipolar.eight_point(x[0, :7], x[1, :7])
    with pytest.raises(ValueError, match="at least 8 pairs"):
        epipolar.ransac(x[0], x[1, :9], rng())
    with pytest.raises(ValueError, match="finite"):
        epipolar.eight_point(x[0] * math.inf, x[1])
    E = epipolar.cross_matrix(torch.tensor([1.0, 0, 0]).double())
    with pytest.raises(ValueError, match="in front of both"):  # pairs that no pose puts in front
        shift = torch.tensor([[5.0, 0], [-5, 0]]).double().repeat(10, 1)
        epipolar.relative_pose(E, x[0], x[0] + shift, torch.eye(3).double(), torch.eye(3).double())


def test_bundle_adjustment_finds_what_noise_had_moved():
    made, X, x = rig(n=25)
    turned = [made[0]]
    for k, camera in enumerate(made[1:]):
        R = epipolar.rotation(0.02 * normal(3, seed=k)) @ camera.R
        turned.append(Camera(camera.K, R, camera.t + 0.05 * normal(3, seed=k + 5), 400, 400))
    seen = uniform(3, 25, seed=7) < 0.9
    seen[:, (seen.sum(0) < 2)] = True
    found = epipolar.bundle_adjust(turned, X + 0.05 * normal(25, 3, seed=9), x, seen, steps=12)
    assert found.errors[0] > 3 and found.errors[-1] < 1e-6
    assert all(a >= b for a, b in zip(found.errors, found.errors[1:], strict=False)), "it never gets worse"
    # The scale stays open: shapes are compared after removing it.
    size = (found.points - made[0].centre).norm() / (X - made[0].centre).norm()
    torch.testing.assert_close((found.points - made[0].centre) / size + made[0].centre, X, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cameras[1].R, made[1].R, atol=1e-6, rtol=0)


def test_bundle_adjustment_of_noise_is_scipys_minimum():
    made, X, x = rig(n=10, views=2)
    x = x + normal(*x.shape, seed=2)
    found = epipolar.bundle_adjust(made, X, x, steps=15)

    def residual(p):
        R = epipolar.rotation(torch.from_numpy(p[:3])) @ made[1].R
        h = torch.from_numpy(p[6:]).view(-1, 3) @ R.T + made[1].t + torch.from_numpy(p[3:6])
        second = (h @ made[1].K.T)[:, :2] / h[:, 2:]
        first = made[0].project(torch.from_numpy(p[6:]).view(-1, 3))[0]
        return torch.cat([first - x[0], second - x[1]]).flatten().numpy()

    best = scipy.optimize.least_squares(residual, np.concatenate([np.zeros(6), X.flatten().numpy()]), method="trf")
    rms = math.sqrt(2 * (best.fun**2).mean())
    assert found.errors[-1] == pytest.approx(rms, rel=1e-3)


def test_bundles_that_cannot_be_adjusted():
    made, X, x = rig(n=12)
    with pytest.raises(ValueError, match="2 cameras|≥ 2"):
        epipolar.bundle_adjust(made[:1], X, x[:1])
    seen = torch.ones(3, 12, dtype=torch.bool)
    seen[1:, 4] = False
    with pytest.raises(ValueError, match="point 4 is seen by fewer than two"):
        epipolar.bundle_adjust(made, X, x, seen)
    with pytest.raises(ValueError, match="behind camera"):
        epipolar.bundle_adjust(made, X + 50 * made[0].centre, x)
    with pytest.raises(ValueError, match="finite"):
        epipolar.bundle_adjust(made, X, x * math.nan)


# --- the toy, its hull, meshes and clouds


def ball_views(radius=0.6, size=64, n=6):
    """A ball's silhouettes in closed form: rays that pass the middle closer than the radius."""
    made = [orbit(360 * k / n, (-35, 0, 35)[k % 3], size=size, distance=3.5) for k in range(n)]
    masks = []
    for camera in made:
        o, d = camera.rays()
        masks.append((torch.linalg.cross(o, d).norm(dim=-1) < radius).float())
    return torch.stack(masks), made


def test_the_hull_holds_the_body_and_shrinks_to_it():
    volumes = []
    for n in (3, 6, 24):
        masks, made = ball_views(n=n)
        left = hull.visual_hull(masks, made, BALL, 48)
        volumes.append(hull.volume(left, BALL))
        inside = hull.voxel_centres(BALL, 48).norm(dim=-1) < 0.6 - 0.04
        assert (left[inside] > 0.5).all(), "no part of the body is carved"
    exact = 4 / 3 * math.pi * 0.6**3
    assert volumes[0] > volumes[1] > volumes[2] and volumes[2] == pytest.approx(exact, rel=0.06)


def test_the_toys_hull_has_its_volume():
    views = reconstruction.load_turntable(24, 64)
    volume = hull.volume(hull.visual_hull(views.masks, views.cameras, views.box, 64), views.box)
    assert volume == pytest.approx(turntable.true_volume(64), rel=0.10)


def test_what_no_camera_sees_stays():
    camera = orbit(0, 0, size=16, distance=3, focal=4.0)  # sees a narrow cone
    left = hull.visual_hull(torch.ones(1, 16, 16) * torch.eye(16)[None], [camera], BALL, 16)
    assert left[0, 0, 0] == 1 and left.min() == 0
    behind = orbit(0, 0, size=16, distance=0.5)  # stands in the box
    left = hull.visual_hull(torch.eye(16)[None], [behind], BALL, 16)
    assert (left[14:] == 1).all(), "behind the camera"


def test_hulls_that_are_refused():
    masks, made = ball_views(n=3)
    empty = masks.clone()
    empty[1] = 0
    with pytest.raises(ValueError, match="view 1 is empty"):
        hull.visual_hull(empty, made, BALL, 8)
    with pytest.raises(ValueError, match="camera 0 is for 64×64"):
        hull.visual_hull(masks[:, :32], made, BALL, 8)
    with pytest.raises(ValueError, match="V ≥ 1 cameras"):
        hull.visual_hull(masks, made[:2], BALL, 8)
    with pytest.raises(ValueError, match="low < high"):
        hull.visual_hull(masks, made, (BALL[1], BALL[0]), 8)


def test_a_mesh_lies_on_the_surface():
    centres = hull.voxel_centres(BALL, 40)
    vertices, faces = hull.mesh(0.7 - centres.norm(dim=-1), BALL, level=0)
    torch.testing.assert_close(vertices.norm(dim=1), torch.full((len(vertices),), 0.7), atol=2e-3, rtol=0)
    corners = vertices[faces]
    normal_ = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normal_ * corners.mean(1)).sum(1) > 0).float().mean() > 0.999, "counter-clockwise from outside"
    assert normal_.norm(dim=1).sum().item() / 2 == pytest.approx(4 * math.pi * 0.49, rel=0.01)
    full, _ = hull.mesh(torch.ones(4, 4, 4), BALL)
    assert full.abs().max() == pytest.approx(1, abs=1e-5), "what fills the box ends at the box"
    with pytest.raises(ValueError, match="values above 0.5"):
        hull.mesh(torch.zeros(4, 4, 4), BALL)


def test_points_are_uniform_on_a_surface():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    points = hull.sample_surface(vertices, faces, 20_000, rng())
    high = points[:, 2] > 1
    assert high.double().mean() == pytest.approx(0.9, abs=0.01), "areas 0.5 and 4.5"
    torch.testing.assert_close(points[high].mean(0), torch.tensor([1.0, 1, 5]), atol=0.03, rtol=0)


@pytest.mark.parametrize(("n", "m", "chunk"), [(1, 7, 3), (300, 200, 64), (50, 50, 1000)])
def test_chamfer_distance_is_scipys(n, m, chunk):
    a, b = normal(n, 3), normal(m, 3, seed=1)
    there = scipy.spatial.cKDTree(b.numpy()).query(a.numpy())[0].mean()
    back = scipy.spatial.cKDTree(a.numpy()).query(b.numpy())[0].mean()
    assert hull.chamfer_distance(a, b, chunk) == pytest.approx((there + back) / 2, rel=1e-12)
    assert hull.chamfer_distance(a + 1e6, a + 1e6) == 0
    with pytest.raises(ValueError, match="not empty"):
        hull.chamfer_distance(a, b[:0])


def test_the_toys_distances_are_those_of_a_slow_loop():
    toy, X = turntable.toy(), uniform(40, 3, seed=5, dtype=torch.float32) * 2 - 1
    found = turntable.signed_distance(X)
    for x, d in zip(X, found, strict=True):
        best = [math.hypot(max(math.hypot(x[0], x[1]) - 0.77, 0), x[2] + 0.77) - 0.05]
        for start, end, radius in zip(toy.start, toy.end, toy.radius, strict=False):
            u = torch.linspace(0, 1, 400)[:, None]
            best.append(float((x - start - u * (end - start)).norm(dim=1).min() - radius))
        for quad, radius in zip(toy.quads, toy.radius[len(toy.start) :], strict=True):
            u = torch.linspace(0, 1, 60)
            upper, lower = (quad[k] + u[:, None] * (quad[k + s] - quad[k]) for k, s in ((0, 1), (3, -1)))
            grid = upper[:, None] + u[None, :, None] * (lower - upper)[:, None]
            best.append(float((x - grid.reshape(-1, 3)).norm(dim=1).min() - radius))
        assert float(d) == pytest.approx(min(best), abs=4e-3)


def test_a_view_of_the_toy_shows_its_silhouette():
    camera = turntable.turntable_cameras(5, 32)[1]
    image, covered = turntable.draw_view(camera, samples=1)
    o, d = camera.rays()
    t = torch.linspace(2, 5.2, 1500)
    nearest = torch.stack([turntable.signed_distance(o + s * d) for s in t]).amin(0)
    sure = nearest.abs() > 0.004
    assert torch.equal(covered[sure] > 0, nearest[sure] < 0)
    assert (image[:, covered == 0] == 1).all() and image.min() >= 0 and image.max() <= 1
    smooth, soft = turntable.draw_view(camera)
    assert smooth.shape == (3, 32, 32) and ((soft > 0) & (soft < 1)).any()


def test_views_must_fit_together():
    views = reconstruction.load_turntable(2, 16)
    assert len(views[1:]) == 1 and views.shrunk(2).images.shape == (2, 3, 8, 8)
    assert views.shrunk(2).cameras[0].height == 8
    with pytest.raises(ValueError, match="N cameras"):
        reconstruction.Views(views.images, views.masks, views.cameras[:1], views.box)
    with pytest.raises(ValueError, match="camera 0 is for 16×16"):
        reconstruction.Views(views.images[..., :8], views.masks[..., :8], views.cameras, views.box)


# --- files


def test_a_cloud_is_read_back_by_plyfile(tmp_path):
    points, colours = normal(20, 3, dtype=torch.float32), uniform(20, 3, dtype=torch.float32)
    reconstruction.save_ply(tmp_path / "new" / "cloud.ply", points, colours)
    vertex = plyfile.PlyData.read(tmp_path / "new" / "cloud.ply")["vertex"]
    assert len(vertex.data) == 20
    for k, name in enumerate("xyz"):
        np.testing.assert_array_equal(vertex[name], points[:, k].numpy())
    np.testing.assert_array_equal(vertex["green"], (colours[:, 1] * 255).round().numpy().astype(np.uint8))


def test_a_mesh_is_read_back_by_plyfile(tmp_path):
    vertices, faces = hull.mesh(0.7 - hull.voxel_centres(BALL, 8).norm(dim=-1), BALL, level=0)
    reconstruction.save_ply(tmp_path / "ball.ply", vertices, faces=faces)
    read = plyfile.PlyData.read(tmp_path / "ball.ply")
    np.testing.assert_array_equal(np.stack(read["face"]["vertex_indices"]), faces.numpy())
    assert [p.name for p in read["vertex"].properties] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"points": torch.zeros(0, 3)}, "N ≥ 1"),
        ({"points": torch.full((2, 3), math.nan)}, "finite points"),
        ({"colours": torch.ones(3, 3) * 255}, "colours"),
        ({"colours": torch.ones(2, 3)}, "colours"),
        ({"faces": torch.tensor([[0, 1, 3]])}, "points 0 … 2"),
        ({"faces": torch.zeros(1, 4, dtype=torch.int64)}, "faces"),
    ],
)
def test_files_that_are_refused(tmp_path, given, match):
    with pytest.raises(ValueError, match=match):
        reconstruction.save_ply(tmp_path / "x.ply", **{"points": torch.zeros(3, 3)} | given)
    assert not list(tmp_path.iterdir())


def test_pictures_of_points_show_the_nearest():
    camera = orbit(0, 0, size=9, distance=3)
    points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [9.0, 0, 0]])  # hidden, in front, behind the camera
    drawn = plots.draw_points(points, torch.eye(3), camera)
    assert drawn[:, 4, 4].tolist() == [0, 1, 0] and (drawn.sum(0) == 3).sum() == 80
    wide = plots.draw_points(points, torch.eye(3), camera, side=3)
    assert (wide[0] == 0).sum() == 9
    vertices, faces = hull.mesh(0.7 - hull.voxel_centres(BALL, 12).norm(dim=-1), BALL, level=0)
    assert (plots.draw_mesh(vertices, faces, orbit(0, 0, size=24))[0] < 1).sum() > 60
    assert plots.draw_cameras([camera], points).axes


# --- real data


def real(name):
    there = (datasets.data_folder() / "multiview" / name).exists()
    return pytest.mark.skipif(not there, reason=f"COURSE_DATA has no multiview/{name}")


@real("templeSparseRing")
def test_the_temple_stands_in_its_box():
    views = reconstruction.load_temple()
    low, high = (torch.tensor(corner) for corner in views.box)
    wide = (tuple((low - 0.02).tolist()), tuple((high + 0.02).tolist()))
    left = hull.visual_hull(views.masks, views.cameras, wide, 64)
    found = hull.voxel_centres(wide, 64)[left > 0.5]
    assert (found.amin(0) - low).abs().max() < 0.012 and (found.amax(0) - high).abs().max() < 0.012, "metres"


def test_missing_data_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    for load in (reconstruction.load_lego, reconstruction.load_temple):
        with pytest.raises(FileNotFoundError, match="COURSE_DATA"):
            load()
