"""Answers to the turns of StyleGAN's lesson: right ones written differently, and wrong ones as students give them."""

import torch
import torch.nn.functional as F


def _layers(x, layers):
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.2)
    return x


def map_noise_other(z, layers):
    return _layers(F.normalize(z, dim=1) * z.shape[1] ** 0.5, layers)


def map_noise_wrong_1(z, layers):
    """z as it comes."""
    return _layers(z, layers)


def map_noise_wrong_2(z, layers):
    """No leaky ReLU after the last layer."""
    x = F.normalize(z, dim=1) * z.shape[1] ** 0.5
    return layers[-1](_layers(x, layers[:-1]))


def modulated_conv_other(x, weight, styles, demodulate=True):
    y = F.conv2d(x * styles[:, :, None, None], weight, padding=weight.shape[-1] // 2)
    norms = styles.square() @ weight.square().sum((2, 3)).T + 1e-8
    return y / norms.sqrt()[:, :, None, None] if demodulate else y


def modulated_conv_wrong_1(x, weight, styles, demodulate=True):
    """Never demodulated."""
    return modulated_conv_other(x, weight, styles, demodulate=False)


def modulated_conv_wrong_2(x, weight, styles, demodulate=True):
    """One length for all output channels together."""
    own = weight * styles[:, None, :, None, None]
    if demodulate:
        own = own / (own.square().sum((1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
    pairs = zip(x, own, strict=True)
    return torch.cat([F.conv2d(one[None], w, padding=weight.shape[-1] // 2) for one, w in pairs])


def styled_layer_other(x, weight, s, noise, strength, bias, up=False):
    y = modulated_conv_other(x, weight, s)
    if up:
        y = F.interpolate(y, size=(2 * y.shape[2], 2 * y.shape[3]), mode="bilinear", align_corners=False)
    y = torch.add(bias, y) + noise * strength
    return torch.maximum(y, 0.2 * y) * 2**0.5


def styled_layer_wrong_1(x, weight, s, noise, strength, bias, up=False):
    """Doubles before it convolves."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear") if up else x
    return styled_layer_other(x, weight, s, noise, strength, bias)


def styled_layer_wrong_2(x, weight, s, noise, strength, bias, up=False):
    """Adds the noise after the leaky ReLU."""
    return styled_layer_other(x, weight, s, noise, 0, bias, up) + strength * noise


def mix_styles_other(ws_a, ws_b, first, last):
    return torch.cat([ws_a[:, :first], ws_b[:, first:last], ws_a[:, last:]], 1)


def mix_styles_wrong_1(ws_a, ws_b, first, last):
    """Overwrites the first argument."""
    ws_a[:, first:last] = ws_b[:, first:last]
    return ws_a


def mix_styles_wrong_2(ws_a, ws_b, first, last):
    """Counts layer `last` as inside."""
    return mix_styles_other(ws_a, ws_b, first, last + 1)


def precision_other(real, fake, k=3):
    """With sorted differences, one generated image at a time."""
    reach = (real[:, None] - real).norm(dim=2).sort(dim=1).values[:, k]
    return torch.stack([((real - x).norm(dim=1) <= reach).any() for x in fake]).float().mean()


def precision_wrong_1(real, fake, k=3):
    """Counts an image as its own first neighbour."""
    return precision_other(real, fake, k - 1)


def precision_wrong_2(real, fake, k=3):
    """Recall."""
    return precision_other(fake, real, k)
