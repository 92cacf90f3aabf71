"""base/plots.py: figures hold what they were given, under the titles they were given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from course_lib.base import plots


def test_show_draws_every_image_under_its_title():
    images = [torch.rand(1, 3, 8, 10), torch.rand(1, 20, 30), torch.rand(3, 5, 5)]
    figure = plots.show(images, ["first", "second", "third"], columns=2)
    assert len(figure.axes) == 4  # two rows of two; the last one is empty
    assert [ax.get_title() for ax in figure.axes] == ["first", "second", "third", ""]
    shown = [ax.images[0].get_array() for ax in figure.axes[:3]]
    np.testing.assert_array_equal(shown[0], images[0][0].permute(1, 2, 0))
    assert [image.shape for image in shown] == [(8, 10, 3), (20, 30, 3), (5, 5, 3)]
    assert not figure.axes[3].images and not any(ax.axison for ax in figure.axes)
    assert len(plots.show(torch.rand(4, 3, 6, 6)).axes) == 4


def test_show_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="2 images cannot be shown under 1 titles"):
        plots.show(torch.rand(2, 3, 4, 4), ["only one"])
    with pytest.raises(ValueError, match="0 images"):
        plots.show([])


def test_show_makes_columns_as_wide_as_their_images():
    figure = plots.show([torch.rand(3, 10, 10), torch.rand(3, 10, 30)] * 2, columns=2, height=2)
    assert tuple(figure.get_size_inches()) == (8, 4)
    figure.draw_without_rendering()
    narrow, wide = (ax.get_window_extent().width for ax in figure.axes[:2])
    assert 2.5 < wide / narrow < 3.5


def test_curves():
    figure = plots.curves(
        {"a": [3.0, 2.0, 1.0], "b": ([0, 10], [1.0, 0.1])}, xlabel="step", ylabel="loss", title="t", log=True
    )
    ax = figure.axes[0]
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 3], [1, 2], [2, 1]])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0, 1], [10, 0.1]])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_yscale()) == ("step", "loss", "t", "log")
    assert ax.get_legend() is not None


def test_figures_do_not_register_with_pyplot():
    before = plt.get_fignums()
    plots.show(torch.rand(1, 3, 4, 4))
    plots.curves({"a": [1.0]}, xlabel="x", ylabel="y")
    assert plt.get_fignums() == before


def test_style_is_set():
    with mpl.rc_context():
        plots.use_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.COLOURS)


def test_matrix_shows_numbers_where_they_are():
    ax = Figure().subplots()
    M = np.arange(6).reshape(2, 3)
    plots.matrix(ax, M, "title", frame=(0, 1, 1), cut=0, top=10)
    assert [(text.get_text(), text.get_position()) for text in ax.texts][:3] == [
        ("1", (1, 0)),
        ("2", (2, 0)),
        ("3", (0, 1)),
    ]
    assert len(ax.texts) == 5  # zeros are left empty
    assert ax.images[0].get_clim() == (0, 14) and ax.get_title() == "title"
    (frame,) = ax.patches
    assert frame.get_xy() == (0.5, -0.5) and not frame.get_fill()
    plots.matrix(ax := Figure().subplots(), np.ones((3, 3)), numbers=False, cut=1)
    assert len(ax.patches) == 8 and not ax.texts  # all but the middle is cut


def test_a_figure_becomes_an_image():
    figure = Figure(figsize=(2, 1), dpi=50, facecolor=(1, 0, 0))
    image = plots.to_image(figure)
    assert image.shape == (1, 3, 50, 100) and image.dtype == torch.float32
    assert torch.equal(image[0, :, 25, 50], torch.tensor([1.0, 0, 0]))
