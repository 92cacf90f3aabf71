"""recipes/cat_faces.py: faces cut out of a made-up folder in the format of the CAT data set."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from course_lib.base import datasets
from recipes import cat_faces

RED, BLUE = (255, 0, 0), (0, 0, 255)


def photograph(folder, name, left, right, size=(600, 500), grey=128):
    """A grey image with a red left and a blue right eye, and its nine points."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (grey, grey, grey))
    radius = np.hypot(right[0] - left[0], right[1] - left[1]) / 8
    for (x, y), colour in ((left, RED), (right, BLUE)):
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    image.save(folder / name, quality=95)
    others = [(300, 300)] * 7
    words = ["9", *(str(number) for point in (left, right, *others) for number in point)]
    (folder / f"{name}.cat").write_text(" ".join(words) + " ")


@pytest.fixture
def folder(tmp_path):
    """Three whole faces in two folders, and one of each kind that is left out."""
    root = tmp_path / "CAT"
    photograph(root / "CAT_00", "upright.jpg", (260, 220), (340, 220))
    photograph(root / "CAT_00", "turned.jpg", (270, 200), (330, 260), grey=90)
    photograph(root / "CAT_01", "wide.jpg", (240, 230), (360, 200), grey=160)
    photograph(root / "CAT_01", "again.jpg", (260, 220), (340, 220))
    photograph(root / "CAT_01", "small.jpg", (290, 220), (310, 220))
    photograph(root / "CAT_01", "edge.jpg", (20, 220), (100, 220))
    (root / "CAT_01" / "no_photograph.jpg.cat").write_text("9 " + "1 2 " * 9)
    photograph(root / "CAT_01", "three_points.jpg", (260, 220), (340, 220))
    (root / "CAT_01" / "three_points.jpg.cat").write_text("3 1 2 3 4 5 6")
    return root


def centre(image, colour):
    """Where a colour lies, x and y."""
    others = [c for c in range(3) if colour[c] == 0]
    weight = (image[np.argmax(colour)].astype(float) - image[others].max(0)).clip(40) - 40
    rows, columns = np.indices(weight.shape) + 0.5
    return (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()


def test_eyes_come_to_lie_at_one_place(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    counts = cat_faces.main([str(folder), "--out", str(tmp_path)])
    assert counts == {
        "photographs": 8, "repeated": 1, "too small": 1, "leaves the photograph": 1, "damaged": 2, "train": 2, "test": 1
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "three_points.jpg.cat: expected 9 and 9 pairs" in printed and "no_photograph.jpg.cat" in printed
    splits = [datasets.load("cat_faces", split).images.numpy() for split in datasets.SPLITS]
    assert [part.shape for part in splits] == [(2, 3, 64, 64), (1, 3, 64, 64)]
    faces = np.concatenate(splits)
    for face in faces:
        assert centre(face, RED) == pytest.approx(tuple(cat_faces.LEFT), abs=0.6)
        assert centre(face, BLUE) == pytest.approx(tuple(cat_faces.RIGHT), abs=0.6)
    assert sorted(int(face[1, 60, 32]) for face in faces) == pytest.approx([90, 128, 160], abs=3)


def test_the_cache_is_the_default_and_a_second_run_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    contents = []
    for _ in range(2):
        cat_faces.main([str(folder)])
        contents.append([(tmp_path / "cache" / "cat_faces" / f"{name}.zip").read_bytes() for name in datasets.SPLITS])
    assert contents[0] == contents[1] and datasets.is_available("cat_faces")


def test_a_folder_without_points_or_faces_ends_with_a_message(folder, tmp_path):
    with pytest.raises(SystemExit, match="no file of points, such as CAT_00/00000001_000.jpg.cat, in"):
        cat_faces.main([str(tmp_path / "nowhere")])
    photograph(tmp_path / "one", "a.jpg", (260, 220), (340, 220))
    with pytest.raises(SystemExit, match="two faces or more.*of 1 came 1"):
        cat_faces.main([str(tmp_path / "one")])


@pytest.mark.parametrize("text", ["", "9 1 2", "8 " + "1 2 " * 8, "9 " + "1 2 " * 9, "nine " + "1 2 " * 9])
def test_points_that_are_none(text, tmp_path):
    path = tmp_path / "x.jpg.cat"
    path.write_text(text)
    with pytest.raises(ValueError):
        cat_faces.read_eyes(path)
