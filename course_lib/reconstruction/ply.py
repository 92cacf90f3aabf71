"""Point clouds and meshes as PLY files, which MeshLab, Blender, CloudCompare, trimesh and plyfile read."""

import os

import numpy as np
import torch
from torch import Tensor

from course_lib.base.checkpoints import write_atomically

_TYPES = {"float": "<f4", "uchar": "u1", "int": "<i4"}


def save_ply(
    path: str | os.PathLike, points: Tensor, colours: Tensor | None = None, faces: Tensor | None = None
) -> None:
    """Write a point cloud or a mesh, binary, little-endian; an older file is replaced only by a whole one.

    Args:
        path: its folder is created if missing.
        points: (N, 3), finite, N ≥ 1.
        colours: (N, 3) in [0, 1]; kept with 8 bits.
        faces: triangles (T, 3), indices of points.

    Raises:
        ValueError: other shapes, points that are not finite, colours out of range, or faces of no point.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or not points.isfinite().all():
        raise ValueError(f"expected finite points (N, 3), N ≥ 1; got {tuple(points.shape)}")
    fields, columns = [("float", name) for name in "xyz"], [points]
    if colours is not None:
        if colours.shape != points.shape or not ((colours >= 0) & (colours <= 1)).all():
            raise ValueError(f"expected colours ({len(points)}, 3) in [0, 1]; got {tuple(colours.shape)}")
        fields += [("uchar", name) for name in ("red", "green", "blue")]
        columns.append((colours.double() * 255).round())
    values = torch.cat([column.detach().double().cpu() for column in columns], 1).numpy()
    table = np.zeros(len(points), [(name, _TYPES[kind]) for kind, name in fields])
    for k, (_, name) in enumerate(fields):
        table[name] = values[:, k]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {kind} {name}" for kind, name in fields]
    body = table.tobytes()
    if faces is not None:
        whole = faces.ndim == 2 and faces.shape[1] == 3 and not faces.is_floating_point()
        if not whole or (faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < len(points)):
            raise ValueError(f"expected faces (T, 3) of points 0 … {len(points) - 1}; got {tuple(faces.shape)}")
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        triangles = np.zeros(len(faces), [("n", "u1"), ("corners", "<i4", 3)])
        triangles["n"], triangles["corners"] = 3, faces.cpu().numpy()
        body += triangles.tobytes()
    write_atomically(path, "\n".join([*header, "end_header\n"]).encode() + body)
