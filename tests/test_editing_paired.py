"""Paired translation: edges against scikit-image, patches against their gradient, the loss against a loop, a toy."""

import math

import numpy as np
import pytest
import torch
from conftest import normal, rng, uniform
from skimage import feature
from torch import nn

from course_lib import scenes, segmentation
from course_lib.base import datasets, images, metrics, zoo
from course_lib.base.loop import Loop
from course_lib.editing import paired

# --- edges


def test_the_edge_of_a_half_plane_is_one_line_in_any_direction():
    v, u = torch.meshgrid(*[torch.arange(32.0)] * 2, indexing="ij")
    for angle in np.linspace(0, 2 * math.pi, 16, endpoint=False):
        away = math.cos(angle) * (u - 15.5) + math.sin(angle) * (v - 15.5) + 0.01
        lines = paired.edges((away > 0).float().expand(1, 1, 32, 32), keep=1.0)[0, 0]
        assert away[lines > 0].abs().max() < 1.5
        assert 28 <= lines.sum() <= 64  # from as many as rows to a full staircase
        for flipped in (lines[:, :-1] + lines[:, 1:], lines[:-1] + lines[1:]):
            assert (flipped == 2).sum() <= 33


def test_edges_are_those_of_canny():
    """With scikit-image's, whose thresholds are one, so that nothing is linked; it interpolates between neighbours."""
    photograph = images.resize(datasets.load_image("cat")[..., 95:395], 96)
    limits = {"low_threshold": 0.8, "high_threshold": 0.8, "use_quantiles": True, "mode": "nearest"}
    canny = feature.canny(photograph.mean(1)[0].numpy(), sigma=1.0, **limits)
    theirs = torch.from_numpy(canny).float()[None, None]
    found = paired.edges(photograph, theirs.mean().item())
    assert (found * theirs).sum() / theirs.sum() > 0.9
    for a, b in ((found, theirs), (theirs, found)):
        assert (a * nn.functional.max_pool2d(b, 3, 1, 1)).sum() / a.sum() > 0.99


def test_edges_are_as_many_as_asked_for_and_know_no_light():
    x = uniform(3, 3, 20, 24)
    found = paired.edges(x, torch.tensor([0.0, 0.05, 0.1]))
    assert found.shape == (3, 1, 20, 24) and found.dtype == x.dtype
    assert found.unique().tolist() == [0, 1]
    assert found.sum((1, 2, 3)).tolist() == [0, 24, 48]
    assert torch.equal(paired.edges(0.5 * x + 0.25, 0.1), paired.edges(x, np.float32(0.1)))
    assert torch.equal(paired.edges(x[..., :20].mT, 0.1), paired.edges(x[..., :20], 0.1).mT)
    assert torch.equal(paired.edges(x.contiguous(memory_format=torch.channels_last), 0.1), paired.edges(x, 0.1))
    assert not paired.edges(torch.full((1, 3, 8, 8), 0.3), 1.0).any()
    halves = paired.edges(x.bfloat16(), 0.1)
    assert halves.dtype == torch.bfloat16 and paired.edges(x.bfloat16().double(), 0.1).equal(halves.double())


def test_agreement_is_one_of_the_same_and_falls_with_the_distance():
    x = uniform(2, 3, 32, 32)
    given = paired.edges(x)
    assert paired.edge_agreement(x, given) == 1
    line = (torch.arange(32) < 16).double().expand(1, 3, 32, 32)
    there = paired.edges(line)
    assert paired.edge_agreement(line, there.roll(1, 3)) == 1
    assert paired.edge_agreement(line, there.roll(5, 3)) == 0
    assert paired.edge_agreement(line, torch.zeros_like(there)) == 0
    # a second line that is not in the image: all that is there is right, and half of what is asked for is found
    both = there + there.roll(8, 3)
    found = paired.edges(line, 2 / 32)
    precision, recall = 1.0, found.sum().item() / both.sum().item()
    assert paired.edge_agreement(line, both) == pytest.approx(2 * precision * recall / (precision + recall))


# --- maps


def test_maps_and_scenes_belong_together():
    maps, drawn = paired.scene_pairs(3, seed=5)
    for i, scene in enumerate(scenes.Scenes(3, 64, 5).render_all()):
        assert torch.equal(maps[i].long(), scene.semantic)
        torch.testing.assert_close(drawn[i] / 255, scene.image, rtol=0, atol=0.5 / 255 + 1e-6)
    given, x = paired.map_pairs((maps, drawn), rng(1))
    mirrored = [torch.equal(given[i].argmax(0), maps[i].long().flip(1)) for i in range(3)]
    assert len(set(mirrored)) == 2
    for i, turned in enumerate(mirrored):
        assert torch.equal(x[i] * 255, (drawn[i].flip(2) if turned else drawn[i]).float())


def test_one_hot_is_a_one_at_the_class():
    maps = torch.tensor([[[0, 3], [2, 3]]])
    found = paired.one_hot(maps.numpy().astype(np.uint8), 4)
    assert found.shape == (1, 4, 2, 2) and found.dtype == torch.float32
    assert torch.equal(found.argmax(1), maps) and torch.equal(found.sum(1), torch.ones(1, 2, 2))


def test_half_of_the_cats_are_mirrored_with_their_edges():
    x = uniform(8, 3, 16, 16)
    given, turned = paired.edge_pairs(x, rng(3))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(turned, x, strict=True)]
    assert 0 < sum(mirrored) < 8
    few = given.mean((1, 2, 3))
    assert few.max() <= paired.LINES[1] and few.min() > paired.LINES[0] - 1 / 256 and few.unique().numel() > 4
    assert torch.equal(paired.edges(turned, few + 1e-6), given)


# --- networks and loss


@pytest.mark.parametrize("place", [(0, 0), (5, 7), (13, 13)])
def test_a_logit_sees_34_pixels(place):
    discriminator = paired.PatchDiscriminator(4, width=8).double().eval()
    x = normal(1, 4, 64, 64).requires_grad_()
    logits = discriminator(x)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0][place].backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    for n, where in zip(place, (seen.any(1), seen.any(0)), strict=True):
        rows = where.nonzero().flatten()
        first = 4 * n - 11  # 1 · (1 + 1 · (…)): one pixel of padding in each of the four layers
        assert rows.min() == max(first, 0) and rows.max() == min(first + 33, 63)


def test_the_loss_is_that_of_a_loop():
    logits, answer, x = normal(2, 1, 3, 3, seed=1), normal(2, 3, 4, 5, seed=2), normal(2, 3, 4, 5, seed=3)
    adversarial = [-math.log(1 / (1 + math.exp(-logit))) for logit in logits.flatten().tolist()]
    absolute = [abs(a - b) for a, b in zip(answer.flatten().tolist(), x.flatten().tolist(), strict=True)]
    expected = sum(adversarial) / 18 + 7 * sum(absolute) / 120
    assert paired.translation_loss(logits, answer, x, 7).item() == pytest.approx(expected, rel=1e-6)
    assert paired.translation_loss(logits, answer, x, 0).item() == pytest.approx(sum(adversarial) / 18, rel=1e-6)


def test_a_step_is_the_papers_by_hand():
    """Algorithm: D on −½[log D(c, x) + log(1 − D(c, G(c)))], then G against the new D; with SGD, to the last weight."""
    torch.manual_seed(0)
    networks = [nn.Conv2d(2, 1, 3, padding=1).double(), nn.Conv2d(3, 1, 3).double()]
    by_hand = [nn.Conv2d(2, 1, 3, padding=1).double(), nn.Conv2d(3, 1, 3).double()]
    for a, b in zip(networks, by_hand, strict=True):
        b.load_state_dict(a.state_dict())
    given, x = uniform(2, 2, 6, 6), uniform(2, 1, 6, 6, seed=1)
    step = paired.translation_step(*networks, *[torch.optim.SGD(n.parameters(), 0.1) for n in networks], weight=3.0)
    losses = step((given, x))
    G, D = by_hand
    answer, y = G(given), 2 * x - 1
    on = [torch.sigmoid(D(torch.cat([given, z], 1))) for z in (y, answer.detach())]
    d = -(on[0].log().mean() + (1 - on[1]).log().mean()) / 2
    d.backward()
    with torch.no_grad():
        for p in D.parameters():
            p -= 0.1 * p.grad
    g = -torch.sigmoid(D(torch.cat([given, answer], 1))).log().mean() + 3 * (answer - y).abs().mean()
    for p, gradient in zip(G.parameters(), torch.autograd.grad(g, list(G.parameters())), strict=True):
        p.data -= 0.1 * gradient
    for a, b in zip(networks, by_hand, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert losses["D"].item() == pytest.approx(d.item(), rel=1e-6)
    assert losses["G"].item() == pytest.approx(g.item(), rel=1e-6)
    assert losses["error"].item() == pytest.approx((answer - y).abs().mean().item() / 2, rel=1e-6)
    assert all(p.requires_grad for p in networks[1].parameters())


def test_it_learns_to_answer_with_what_is_given():
    """A toy: the image is what is given. The error must fall to a small part of what grey has."""
    torch.manual_seed(0)
    generator, discriminator = paired.Translator(3, width=8), paired.PatchDiscriminator(6, width=8)
    optimisers = [torch.optim.Adam(n.parameters(), 3e-3, (0.5, 0.99)) for n in (generator, discriminator)]
    step = paired.translation_step(generator, discriminator, *optimisers)
    colours = uniform(64, 3, 2, 2, dtype=torch.float32).repeat_interleave(8, 2).repeat_interleave(8, 3)
    stateful = {"generator": generator, "discriminator": discriminator}
    loop = Loop(lambda x: step((x, x)), colours, steps=150, batch_size=8, stateful=stateful)
    loop.run()
    grey = (colours - 0.5).abs().mean().item()
    new = uniform(8, 3, 2, 2, seed=9, dtype=torch.float32).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (paired.translate(generator, new) - new).abs().mean() < 0.4 * grey


def test_answers_are_images_and_do_not_depend_on_their_neighbours():
    generator = paired.Translator(2, width=8)
    nn.init.normal_(generator.unet.last.weight)
    given = normal(3, 2, 32, 16, dtype=torch.float32)
    found = paired.translate(generator, given)
    assert found.shape == (3, 3, 32, 16) and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found[1:2], paired.translate(generator, given[1:2]))
    torch.testing.assert_close(found, (generator(given).detach() + 1) / 2)
    assert paired.translate(generator.bfloat16(), given).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: paired.edges(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), TypeError, "float"),
        (lambda: paired.edges(uniform(1, 2, 8, 8)), ValueError, "1 or 3"),
        (lambda: paired.edges(uniform(1, 3, 3, 8)), ValueError, "4 px"),
        (lambda: paired.edges(uniform(1, 3, 8, 8), float("nan")), ValueError, "proportion"),
        (lambda: paired.edges(uniform(1, 3, 8, 8), 1.1), ValueError, "proportion"),
        (lambda: paired.edge_agreement(uniform(1, 3, 8, 8), uniform(1, 3, 8, 8)), ValueError, r"\(1, 1, 8, 8\)"),
        (lambda: paired.one_hot(torch.zeros(1, 8, 8)), TypeError, "whole numbers"),
        (lambda: paired.one_hot(torch.zeros(8, 8, dtype=torch.int64)), ValueError, r"\(B, H, W\)"),
        (lambda: paired.one_hot(torch.full((1, 8, 8), 255)), ValueError, "0 … 13, got 255 … 255"),
        (lambda: paired.translation_loss(normal(1), normal(1, 3), normal(3, 1)), ValueError, r"answer \(3, 1\)"),
        (lambda: paired.translate(paired.Translator(1, 8), uniform(1, 3, 16, 16).float()), ValueError, "1, H, W"),
        (
            lambda: paired.translate(paired.Translator(1, 8), uniform(1, 1, 8, 16).float()),
            ValueError,
            "multiples of 16",
        ),
        (lambda: paired.translate(paired.Translator(1, 8), torch.ones(1, 1, 16, 16) > 0), TypeError, "float"),
    ],
)
def test_bad_input_is_refused_with_words(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_a_step_refuses_images_out_of_range():
    generator, discriminator = paired.Translator(1, 8), paired.PatchDiscriminator(4, 8)
    optimisers = [torch.optim.Adam(n.parameters()) for n in (generator, discriminator)]
    with pytest.raises(ValueError, match="values from"):
        paired.translation_step(generator, discriminator, *optimisers)(
            (torch.ones(1, 1, 16, 16), -torch.ones(1, 3, 16, 16))
        )


# --- what ships


def test_the_shipped_scenes_are_read_as_the_maps_that_were_asked_for():
    maps, drawn = paired.scene_pairs(60, seed=77)
    network, judge = zoo.load("maps_to_scenes", "cpu"), zoo.load("panoptic_scenes", "cpu")

    def read(x):
        found = segmentation.predict(judge, x).logits.argmax(1)
        return segmentation.semantic.mean_iou(segmentation.confusion_matrix(found, maps, len(scenes.CLASSES)))

    translated = read(paired.translate(network, paired.one_hot(maps)))
    assert translated > 0.8
    assert translated > read(segmentation.paint(maps)) + 0.05
    assert read(drawn / 255) > 0.9


def test_the_shipped_cats_have_the_edges_and_look_more_like_cats_than_the_edges_do():
    if not datasets.is_available("cat_faces"):
        pytest.skip("needs cat_faces, in COURSE_DATA or the cache")
    x, _ = datasets.load("cat_faces", "test")[:200]
    given = paired.edges(x)
    found = paired.translate(zoo.load("edges_to_cats", "cpu"), given)
    assert paired.edge_agreement(found, given) > paired.edge_agreement(x.roll(1, 0), given) + 0.1
    features = metrics.extractor("cat_faces")
    real = features(datasets.load("cat_faces")[:500][0])
    away = [metrics.frechet_distance(real, features(y)) for y in (found, given.expand(-1, 3, -1, -1))]
    assert away[0] < 0.5 * away[1]
