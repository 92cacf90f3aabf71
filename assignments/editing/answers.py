"""Solutions of the assignment on editing for the tests: other right ones, and wrong ones as students write them."""

RIGHT = {
    "structure": """
def structure(x, y, side=7):
    a, b = (z.unfold(2, side, 1).unfold(3, side, 1).flatten(4) for z in (x, y))  # (B, 1, h, w, side²)
    ma, mb = a.mean(-1), b.mean(-1)
    va, vb = a.var(-1, correction=0), b.var(-1, correction=0)
    both = ((a - ma[..., None]) * (b - mb[..., None])).mean(-1)
    s = (2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return s.flatten(1).mean(1)
""",
    "seam": """
def paste(target, source, mask):
    f, g = target.double(), source.double()

    def laplace(z):
        z = F.pad(z, (1, 1, 1, 1))
        return 4 * z[..., 1:-1, 1:-1] - z[..., :-2, 1:-1] - z[..., 2:, 1:-1] - z[..., 1:-1, :-2] - z[..., 1:-1, 2:]

    inside = mask.to(f.dtype)
    b = (laplace(g) - laplace(f * (1 - inside))) * inside
    u = torch.zeros_like(f)  # conjugate gradients, all channels at once
    r, p = b.clone(), b.clone()
    rr = r.square().sum((2, 3), keepdim=True)
    for _ in range(4 * int(inside.sum())):
        Ap = laplace(p) * inside
        step = rr / (p * Ap).sum((2, 3), keepdim=True).clamp(min=1e-300)
        u, r = u + step * p, r - step * Ap
        new = r.square().sum((2, 3), keepdim=True)
        if new.max() < 1e-24:
            break
        p, rr = r + new / rr.clamp(min=1e-300) * p, new
    return torch.where(mask, u.to(target.dtype), target)
""",
    "jumps": """
def walk(T, jump, n):
    def piece(top):
        down = list(range(top, top - jump, -1))  # without its end
        up_again = list(range(top - jump, top))
        return (down + up_again) * (n - 1) + down

    times = []
    for top in range(T, 0, -jump):
        times.extend(piece(top))
    return times + [0]


def up(x, t, u, noise, alpha_bar):
    signal = (alpha_bar[u] / alpha_bar[t]) ** 0.5
    spread = ((1 - alpha_bar[u]) - signal**2 * (1 - alpha_bar[t])) ** 0.5
    return (signal * x.double() + spread * noise.double()).to(x.dtype)
""",
    "backwards": """
def invert(denoiser, x, times, alpha_bar):
    # in units where the noise only grows: x / root of alpha-bar, against the noise-to-signal ratio
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
    z = x / alpha_bar[times[0]].sqrt()
    for k in range(1, len(times)):
        t, u = times[k - 1], times[k]
        z = z + (ratio[u] - ratio[t]) * denoiser(z * alpha_bar[t].sqrt(), torch.tensor([u] * len(x)))
    return z * alpha_bar[times[-1]].sqrt()
""",
    "pairs": """
def pairwise_loss(x, y, s, b):
    cosines = F.cosine_similarity(x[:, None], y[None], dim=2)
    own = torch.eye(len(x), dtype=x.dtype)
    return F.binary_cross_entropy_with_logits(s * cosines + b, own, reduction="sum") / len(x)
""",
    "sentences": """
def classify(pictures, prompts, valid, s):
    means = []
    for captions, use in zip(prompts, valid):
        captions = captions[use]
        means.append((captions / captions.norm(dim=1, keepdim=True)).mean(0))
    cosines = F.cosine_similarity(pictures[:, None], torch.stack(means)[None], dim=2)
    return (s * cosines).softmax(1)
""",
}

WRONG = {
    "structure": {
        "one window over all": """
def structure(x, y, side=7):
    mx, my = x.mean((1, 2, 3)), y.mean((1, 2, 3))
    vx, vy = x.var((1, 2, 3), correction=0), y.var((1, 2, 3), correction=0)
    both = (x * y).mean((1, 2, 3)) - mx * my
    return (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
""",
        "windows beyond the border": """
def structure(x, y, side=7):
    mean = lambda z: F.avg_pool2d(z, side, 1, side // 2, count_include_pad=False)[:, :, : x.shape[2], : x.shape[3]]
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    s = (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return s.mean((1, 2, 3))
""",
        "divided by n - 1": """
def structure(x, y, side=7):
    mean = lambda z: F.avg_pool2d(z, side, 1)
    mx, my, n = mean(x), mean(y), side**2 / (side**2 - 1)
    vx, vy, both = n * (mean(x * x) - mx**2), n * (mean(y * y) - my**2), n * (mean(x * y) - mx * my)
    s = (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return s.mean((1, 2, 3))
""",
        "constants not squared": """
def structure(x, y, side=7):
    mean = lambda z: F.avg_pool2d(z, side, 1)
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    s = (2 * mx * my + 0.01) * (2 * both + 0.03) / ((mx**2 + my**2 + 0.01) * (vx + vy + 0.03))
    return s.mean((1, 2, 3))
""",
        "one number for the batch": """
def structure(x, y, side=7):
    mean = lambda z: F.avg_pool2d(z, side, 1)
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return ((2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()
""",
    },
    "seam": {
        "copied": """
def paste(target, source, mask):
    return torch.where(mask, source, target)
""",
        "the mean brightness alone": """
def paste(target, source, mask):
    away = (target - source)[..., ~mask].mean(-1)[..., None, None]
    return torch.where(mask, source + away, target)
""",
        "too few steps": """
def paste(target, source, mask):
    f, g = target.double().clone(), source.double()
    around = lambda z: z.roll(1, 2) + z.roll(-1, 2) + z.roll(1, 3) + z.roll(-1, 3)
    for _ in range(20):
        f = torch.where(mask, (around(f) + 4 * g - around(g)) / 4, f)
    return f.to(target.dtype)
""",
        "the source's sign": """
def paste(target, source, mask):
    f, g = target.double().clone(), source.double()
    around = lambda z: z.roll(1, 2) + z.roll(-1, 2) + z.roll(1, 3) + z.roll(-1, 3)
    for _ in range(3000):
        f = torch.where(mask, (around(f) - 4 * g + around(g)) / 4, f)
    return f.to(target.dtype)
""",
        "without the source": """
def paste(target, source, mask):
    f = target.double().clone()
    for _ in range(3000):
        f = torch.where(mask, (f.roll(1, 2) + f.roll(-1, 2) + f.roll(1, 3) + f.roll(-1, 3)) / 4, f)
    return f.to(target.dtype)
""",
    },
    "jumps": {
        "one time too many": """
def walk(T, jump, n):
    times = [T]
    for top in range(T, 0, -jump):
        down, back = list(range(top - 1, top - jump - 1, -1)), list(range(top - jump + 1, top + 1))
        times += down + (back + down) * n
    return times


def up(x, t, u, noise, alpha_bar):
    r = (alpha_bar[u] / alpha_bar[t]).item()
    return math.sqrt(r) * x + math.sqrt(1 - r) * noise
""",
        "the whole way n times": """
def walk(T, jump, n):
    once = list(range(T, -1, -1))
    return once + (once[-2:0:-1] + once) * (n - 1)


def up(x, t, u, noise, alpha_bar):
    r = (alpha_bar[u] / alpha_bar[t]).item()
    return math.sqrt(r) * x + math.sqrt(1 - r) * noise
""",
        "leaps instead of steps": """
def walk(T, jump, n):
    times = [T]
    for top in range(T, 0, -jump):
        times += [top - jump] + [top, top - jump] * (n - 1)
    return times


def up(x, t, u, noise, alpha_bar):
    r = (alpha_bar[u] / alpha_bar[t]).item()
    return math.sqrt(r) * x + math.sqrt(1 - r) * noise
""",
        "as if from the image": """
def walk(T, jump, n):
    times = [T]
    for top in range(T, 0, -jump):
        down, back = list(range(top - 1, top - jump - 1, -1)), list(range(top - jump + 1, top + 1))
        times += down + (back + down) * (n - 1)
    return times


def up(x, t, u, noise, alpha_bar):
    a = alpha_bar[u].item()
    return math.sqrt(a) * x + math.sqrt(1 - a) * noise
""",
        "a difference of the variances": """
def walk(T, jump, n):
    times = [T]
    for top in range(T, 0, -jump):
        down, back = list(range(top - 1, top - jump - 1, -1)), list(range(top - jump + 1, top + 1))
        times += down + (back + down) * (n - 1)
    return times


def up(x, t, u, noise, alpha_bar):
    a, b = alpha_bar[t].item(), alpha_bar[u].item()
    return math.sqrt(b / a) * x + math.sqrt(a - b) * noise
""",
    },
    "backwards": {
        "asked where the step begins": """
def invert(denoiser, x, times, alpha_bar):
    for t, u in pairwise(times):
        a, b = alpha_bar[t].item(), alpha_bar[u].item()
        e = denoiser(x, torch.full((len(x),), t))
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    return x
""",
        "off by one in the table": """
def invert(denoiser, x, times, alpha_bar):
    for t, u in pairwise(times):
        a, b = alpha_bar[max(t - 1, 0)].item(), alpha_bar[u - 1].item()
        e = denoiser(x, torch.full((len(x),), u))
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    return x
""",
        "one leap with random noise": """
def invert(denoiser, x, times, alpha_bar):
    a = alpha_bar[times[-1]].item()
    return math.sqrt(a) * x + math.sqrt(1 - a) * torch.randn_like(x)
""",
        "not scaled up": """
def invert(denoiser, x, times, alpha_bar):
    for t, u in pairwise(times):
        a, b = alpha_bar[t].item(), alpha_bar[u].item()
        e = denoiser(x, torch.full((len(x),), u))
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) + math.sqrt(1 - b) * e
    return x
""",
        "the last step left out": """
def invert(denoiser, x, times, alpha_bar):
    for t, u in pairwise(times[:-1]):
        a, b = alpha_bar[t].item(), alpha_bar[u].item()
        e = denoiser(x, torch.full((len(x),), u))
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    return x
""",
    },
    "pairs": {
        "CLIP's loss": """
def pairwise_loss(x, y, s, b):
    logits, own = s * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T + b, torch.arange(len(x))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
""",
        "a mean over all pairs": """
def pairwise_loss(x, y, s, b):
    logits = s * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T + b
    return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).mean()
""",
        "lengths count": """
def pairwise_loss(x, y, s, b):
    return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * (s * x @ y.T + b)).sum() / len(x)
""",
        "the logarithm as it stands": """
def pairwise_loss(x, y, s, b):
    logits = s * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T + b
    return -torch.sigmoid((2 * torch.eye(len(x)) - 1) * logits).log().sum() / len(x)
""",
        "only the pairs themselves": """
def pairwise_loss(x, y, s, b):
    return -F.logsigmoid(s * F.cosine_similarity(x, y) + b).mean()
""",
        "the bias outside the sign": """
def pairwise_loss(x, y, s, b):
    logits = s * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * logits + b).sum() / len(x)
""",
    },
    "sentences": {
        "captions not normalised": """
def classify(pictures, prompts, valid, s):
    classes = F.normalize((prompts * valid[:, :, None]).sum(1), dim=1)
    return (s * F.normalize(pictures, dim=1) @ classes.T).softmax(1)
""",
        "the mean not normalised": """
def classify(pictures, prompts, valid, s):
    classes = (F.normalize(prompts, dim=2) * valid[:, :, None]).sum(1) / valid.sum(1, keepdim=True)
    return (s * F.normalize(pictures, dim=1) @ classes.T).softmax(1)
""",
        "all captions count": """
def classify(pictures, prompts, valid, s):
    classes = F.normalize(F.normalize(prompts, dim=2).mean(1), dim=1)
    return (s * F.normalize(pictures, dim=1) @ classes.T).softmax(1)
""",
        "a softmax over the pictures": """
def classify(pictures, prompts, valid, s):
    classes = F.normalize((F.normalize(prompts, dim=2) * valid[:, :, None]).sum(1), dim=1)
    return (s * F.normalize(pictures, dim=1) @ classes.T).softmax(0)
""",
        "the best caption": """
def classify(pictures, prompts, valid, s):
    cosines = F.normalize(pictures, dim=1) @ F.normalize(prompts, dim=2).flatten(0, 1).T
    cosines = cosines.unflatten(1, valid.shape).masked_fill(~valid, -1)
    return (s * cosines.max(2).values).softmax(1)
""",
    },
}
