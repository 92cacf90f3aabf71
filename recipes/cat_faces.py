"""Cut the faces out of the CAT data set, for `datasets.load("cat_faces")`.

    python recipes/cat_faces.py FOLDER               # where CAT_00 … CAT_06 lie; into the course's cache
    python recipes/cat_faces.py FOLDER --out DATA    # into DATA/cat_faces: then set COURSE_DATA=DATA

CAT (Zhang, Sun & Tang, "Cat Head Detection", ECCV 2008; https://archive.org/details/CAT_DATASET; for research and
teaching, cite the paper) has 10,000 photographs. Beside `NAME.jpg`, `NAME.jpg.cat` holds nine points in pixels: their
number, then x y of left eye, right eye, mouth, and three for each ear. Each face is turned, scaled and moved until its
eyes lie where all others' do, and kept as a JPEG of 64×64 in cat_faces/train.zip or test.zip. Left out are faces whose
square leaves the photograph, or which would have to be enlarged, and repeated images.
"""

import argparse
import collections
import hashlib
import io
import math
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from course_lib.base import datasets
from course_lib.base.checkpoints import write_atomically
from recipes import common

SIDE = datasets.FACE
LEFT, RIGHT = np.array([18.0, 25.7]), np.array([46.0, 25.7])  # where the eyes come to lie, px of the result
TESTED = 0.1  # proportion of the faces that goes to the test split
POINTS = 9


def read_eyes(path: Path) -> np.ndarray:
    """Left and right eye, (2, 2) rows of x and y in pixels, from a file of points.

    Raises:
        ValueError: not the number of points and as many pairs of numbers, or both eyes at one place.
    """
    numbers = [float(word) for word in path.read_text().split()]
    if not numbers or numbers[0] != POINTS or len(numbers) != 1 + 2 * POINTS:
        raise ValueError(f"expected {POINTS} and {POINTS} pairs x y; got {len(numbers)} numbers")
    eyes = np.array(numbers[1:5]).reshape(2, 2)
    if np.array_equal(*eyes):
        raise ValueError("both eyes lie at one place")
    return eyes


def cut(photograph: Image.Image, eyes: np.ndarray) -> Image.Image | str:
    """The face, SIDE×SIDE RGB, or in words why there is none.

    Args:
        photograph: the whole one.
        eyes: as of `read_eyes`.
    """
    # A similarity is one complex number, for scale and turn, and a shift: photograph = a · result + b.
    (left, right), (to_left, to_right) = ([complex(*point) for point in pair] for pair in (eyes, (LEFT, RIGHT)))
    a = (right - left) / (to_right - to_left)
    b = left - a * to_left
    if abs(a) < 1:
        return "too small"
    corners = [a * complex(x, y) + b for x in (0, SIDE) for y in (0, SIDE)]
    W, H = photograph.size
    if not all(0 <= c.real <= W and 0 <= c.imag <= H for c in corners):
        return "leaves the photograph"
    # First turned at the photograph's own scale, then reduced with a filter that averages: no aliasing.
    side = math.ceil(abs(a)) * SIDE
    a *= SIDE / side
    rows = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
    whole = photograph.convert("RGB")
    turned = whole.transform((side, side), Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    return turned.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def cut_all(folder: Path) -> tuple[list[bytes], collections.Counter]:
    """JPEGs of all faces, and how many photographs there were of each kind."""
    files = sorted(folder.rglob("*.cat"))
    if not files:
        raise SystemExit(f"no file of points, such as CAT_00/00000001_000.jpg.cat, in {folder}")
    faces, counts = {}, collections.Counter(photographs=len(files))
    for path in tqdm(files, unit=" photographs", disable=None):
        try:
            with Image.open(path.with_suffix("")) as photograph:
                found = cut(photograph, read_eyes(path))
        except (OSError, ValueError) as error:
            tqdm.write(f"left out: {path.relative_to(folder)}: {error}")
            found = "damaged"
        if isinstance(found, str):
            counts[found] += 1
            continue
        content = io.BytesIO()
        found.save(content, "JPEG", quality=95)
        key = hashlib.sha256(found.tobytes()).digest()
        counts["repeated"] += key in faces
        faces.setdefault(key, content.getvalue())
    return list(faces.values()), counts


def save(faces: list[bytes], path: Path) -> None:
    """Write an archive of images."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for k, content in enumerate(faces):
            packed.writestr(zipfile.ZipInfo(f"{k:05d}.jpg"), content)  # without a date: the same bytes each time
    write_atomically(path, archive.getvalue())


def main(argv: list[str] | None = None) -> dict[str, int]:
    """Cut, split and save; returns how many photographs there were of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the photographs and their .cat files, at any depth")
    parser.add_argument("--out", type=Path, help="cat_faces/ is made there (default: the course's cache)")
    args = parser.parse_args(argv)
    faces, counts = cut_all(args.folder)
    if len(faces) < 2:
        raise SystemExit(f"two faces or more are needed for two splits; of {counts['photographs']} came {len(faces)}")
    random.Random(0).shuffle(faces)
    tested = max(1, round(TESTED * len(faces)))
    splits = {"train": faces[tested:], "test": faces[:tested]}
    out = (args.out or datasets.cache_folder()) / "cat_faces"
    for split, chosen in splits.items():
        save(chosen, out / f"{split}.zip")
        counts[split] = len(chosen)
    print(common.table({name: {"images": n} for name, n in counts.items()}))
    print(f"written to {out}")
    return dict(counts)


if __name__ == "__main__":
    main()
