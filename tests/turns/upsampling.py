"""Answers to the turns of lesson 2: two wrong ones of the kind students give, and a right one written differently."""

import torch


def bilinear_wrong_1(x, H, W):
    """Edges on edges: PyTorch's default instead of the lecture's convention."""
    return torch.nn.functional.interpolate(x[None, None], (H, W), mode="bilinear")[0, 0]


def bilinear_wrong_2(x, H, W):
    """The two fractions change places."""
    (h, w), y = x.shape, x.new_empty(H, W)
    for i in range(H):
        for j in range(W):
            down, right = i * (h - 1) / (H - 1), j * (w - 1) / (W - 1)
            r, c = min(int(down), h - 2), min(int(right), w - 2)
            t, u = right - c, down - r
            above, below = x[r, c] * (1 - u) + x[r, c + 1] * u, x[r + 1, c] * (1 - u) + x[r + 1, c + 1] * u
            y[i, j] = (1 - t) * above + t * below
    return y


def bilinear_other(x, H, W):
    """A tent around each input pixel, one matrix for each axis; in float32."""

    def tents(n, m):
        places = torch.linspace(0, n - 1, m, dtype=x.dtype)
        return (1 - (places[:, None] - torch.arange(n)).abs()).clamp(min=0)

    return (tents(x.shape[0], H) @ x @ tents(x.shape[1], W).T).float()


def places_wrong_1(h, H):
    """Corners on corners: the lecture's convention instead of the one asked for."""
    return torch.arange(H) * (h - 1) / (H - 1)


def places_wrong_2(h, H):
    """Forgets that the border pixel is repeated."""
    return (torch.arange(H) + 0.5) * h / H - 0.5


def places_other(h, H):
    """The middles between the edges of the output pixels, in float32."""
    edges = torch.linspace(0, h, H + 1) - 0.5
    return ((edges[:-1] + edges[1:]) / 2).clamp(min=0, max=h - 1)


def _patches(x, weight, stride, padding, letters, add):
    (B, _, h, w), k = x.shape, weight.shape[2]
    C_out = weight.shape[letters.split(",")[1].index("o")]
    y = x.new_zeros(B, C_out, (h - 1) * stride + k, (w - 1) * stride + k)
    for i in range(h):
        for j in range(w):
            place = y[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            patch = torch.einsum(letters, x[:, :, i, j], weight)
            place.copy_(place + patch if add else patch)
    return y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]


def transposed_convolution_wrong_1(x, weight, stride=1, padding=0):
    """Writes where it should add."""
    return _patches(x, weight, stride, padding, "bd,doij->boij", add=False)


def transposed_convolution_wrong_2(x, weight, stride=1, padding=0):
    """Takes the weight for a convolution's, (C_out, C_in, k, k)."""
    return _patches(x, weight, stride, padding, "bd,odij->boij", add=True)


def transposed_convolution_other(x, weight, stride=1, padding=0):
    """Zeros between the pixels, then a convolution with the flipped kernel; in float32."""
    (B, C, h, w), k = x.shape, weight.shape[2]
    x, weight = x.float(), weight.float()
    nails = x.new_zeros(B, C, (h - 1) * stride + 1, (w - 1) * stride + 1)
    nails[:, :, ::stride, ::stride] = x
    y = torch.nn.functional.conv2d(nails, weight.transpose(0, 1).flip(2, 3), padding=k - 1)
    return y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]


def geometry_wrong_1(r):
    """Even visits, but the kernels only touch."""
    return r, r, 0


def geometry_wrong_2(r):
    """Right for the one side n = 9."""
    return 12 * r // 4, 3 * r // 4, 0


def geometry_other(r):
    """The same for odd and even factors: three visits."""
    return 3 * r, r, r


def pixel_shuffle_wrong_1(x, r):
    """The order of the channels is (i, j, c) instead of (c, i, j)."""
    B, C, H, W = x.shape
    x = x.reshape(B, r, r, C // r**2, H, W).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(B, C // r**2, H * r, W * r)


def pixel_shuffle_wrong_2(x, r):
    """Rows and columns of a cell change places."""
    B, C, H, W = x.shape
    x = x.reshape(B, C // r**2, r, r, H, W).permute(0, 1, 4, 3, 5, 2)
    return x.reshape(B, C // r**2, H * r, W * r)


def pixel_shuffle_other(x, r):
    """A strided copy for each place in a cell, into float32."""
    B, C, H, W = x.shape
    y = torch.zeros(B, C // r**2, H * r, W * r)
    for i in range(r):
        for j in range(r):
            y[:, :, i::r, j::r] = x[:, i * r + j :: r**2]
    return y
