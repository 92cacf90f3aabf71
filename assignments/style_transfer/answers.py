"""Solutions of the assignment on style transfer for the tests: other right ones, and wrong ones as students write."""

RIGHT = {
    "receptive": """
def sees(layers):
    def reach(position):
        low = high = position
        for kernel, stride in layers[::-1]:
            low, high = low * stride, high * stride + kernel - 1
        return low, high

    (low, high), (following, _) = reach(0), reach(1)
    return high - low + 1, following - low
""",
    "adain": """
def adain(content, style, strength=1.0):
    rows = []
    for p, s in zip(content, style):
        channels = []
        for a, b in zip(p, s):
            normal = (a - a.mean()) / torch.sqrt((a - a.mean()).pow(2).mean() + 1e-5)
            target = normal * torch.sqrt((b - b.mean()).pow(2).mean() + 1e-5) + b.mean()
            channels.append(strength * target + (1 - strength) * a)
        rows.append(torch.stack(channels))
    return torch.stack(rows)
""",
    "colours": """
def match_colours(image, palette):
    def root(S):
        U, s, _ = torch.linalg.svd(S)
        return U * s.sqrt() @ U.mT

    p, a = (x.to(torch.float64).permute(0, 2, 3, 1).reshape(-1, 3) for x in (image, palette))
    roots = [root(torch.cov(x.T, correction=0) + torch.eye(3).double() * 1e-6) for x in (p, a)]
    y = torch.linalg.solve(roots[0], (p - p.mean(0)).T).T @ roots[1] + a.mean(0)
    return y.T.reshape(image.shape).type_as(image)
""",
    "shifted": """
def shifted_gram(features, dy, dx):
    B, C, H, W = features.shape
    rolled = torch.roll(features, (-dy, -dx), (2, 3))
    y, x = torch.arange(H)[:, None] + dy, torch.arange(W)[None] + dx
    inside = ((y >= 0) & (y < H) & (x >= 0) & (x < W)).to(features.dtype)
    return (features * inside).flatten(2) @ rolled.flatten(2).mT / inside.sum()
""",
    "masked": """
def masked_gram(features, mask):
    small = F.interpolate(mask, size=features.shape[2:], mode="area")
    G = torch.einsum("bchw,bdhw,bhw->bcd", features, features, small[:, 0])
    total = small.sum((1, 2, 3))
    G = G.clone()
    for b in range(len(G)):
        if total[b] > 0:
            G[b] = G[b] / total[b]
    return G
""",
    "paint": """
def paint(start, targets, features, steps):
    x = start.clamp(0.01, 0.99)
    u = torch.nn.Parameter(x.log() - (1 - x).log())
    adam = torch.optim.Adam([u], lr=0.1)
    norms = [A.norm() for A in targets]
    losses = []

    def loss():
        total = 0
        for f, A, n in zip(features(u.sigmoid()), targets, norms):
            f = f.reshape(*f.shape[:2], -1)
            total = total + ((f @ f.transpose(1, 2) / f.shape[-1] - A) / n).pow(2).sum()
        return total

    while len(losses) < steps:
        now = loss()
        (u.grad,) = torch.autograd.grad(now, u)
        adam.step()
        losses.append(float(now))
    return u.data.sigmoid(), losses
""",
}

WRONG = {
    "receptive": {
        "strides forgotten": """
def sees(layers):
    return 1 + sum(kernel - 1 for kernel, _ in layers), math.prod(stride for _, stride in layers)
""",
        "its own stride counted": """
def sees(layers):
    side, distance = 1, 1
    for kernel, stride in layers:
        distance *= stride
        side += (kernel - 1) * distance
    return side, distance
""",
        "from the last layer on": """
def sees(layers):
    side, distance = 1, 1
    for kernel, stride in reversed(layers):
        side += (kernel - 1) * distance
        distance *= stride
    return side, distance
""",
        "strides added": """
def sees(layers):
    side, distance = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * distance
        distance += stride - 1
    return side, distance
""",
    },
    "adain": {
        "over the batch": """
def adain(content, style, strength=1.0):
    def moments(x):
        return x.mean((0, 2, 3), keepdim=True), (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    (m, s), (n, r) = moments(content), moments(style)
    return strength * ((content - m) / s * r + n) + (1 - strength) * content
""",
        "over the channels too": """
def adain(content, style, strength=1.0):
    def moments(x):
        return x.mean((1, 2, 3), keepdim=True), (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    (m, s), (n, r) = moments(content), moments(style)
    return strength * ((content - m) / s * r + n) + (1 - strength) * content
""",
        "divided by n - 1": """
def adain(content, style, strength=1.0):
    def moments(x):
        return x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()

    (m, s), (n, r) = moments(content), moments(style)
    return strength * ((content - m) / s * r + n) + (1 - strength) * content
""",
        "strength the other way round": """
def adain(content, style, strength=1.0):
    def moments(x):
        return x.mean((2, 3), keepdim=True), (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    (m, s), (n, r) = moments(content), moments(style)
    styled = (content - m) / s * r + n
    return styled if strength == 1 else strength * content + (1 - strength) * styled
""",
        "1e-5 outside the root": """
def adain(content, style, strength=1.0):
    def moments(x):
        return x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True).sqrt() + 1e-5

    (m, s), (n, r) = moments(content), moments(style)
    return strength * ((content - m) / s * r + n) + (1 - strength) * content
""",
    },
    "colours": {
        "Cholesky for the root": """
def match_colours(image, palette):
    p, a = image.double()[0].flatten(1), palette.double()[0].flatten(1)
    P, A = (torch.linalg.cholesky(torch.cov(x, correction=0) + 1e-6 * torch.eye(3).double()) for x in (p, a))
    found = A @ torch.linalg.solve(P, p - p.mean(1, keepdim=True)) + a.mean(1, keepdim=True)
    return found.reshape(image.shape).to(image.dtype)
""",
        "no roots": """
def match_colours(image, palette):
    p, a = image.double()[0].flatten(1), palette.double()[0].flatten(1)
    P, A = (torch.cov(x, correction=0) + 1e-6 * torch.eye(3).double() for x in (p, a))
    found = A @ torch.linalg.solve(P, p - p.mean(1, keepdim=True)) + a.mean(1, keepdim=True)
    return found.reshape(image.shape).to(image.dtype)
""",
        "each channel alone": """
def match_colours(image, palette):
    p, a = image.double()[0].flatten(1), palette.double()[0].flatten(1)
    scale = a.std(1, correction=0, keepdim=True) / (p.std(1, correction=0, keepdim=True) + 1e-6)
    return ((p - p.mean(1, keepdim=True)) * scale + a.mean(1, keepdim=True)).reshape(image.shape).to(image.dtype)
""",
        "clamped": """
def match_colours(image, palette):
    def root(S, k):
        values, U = torch.linalg.eigh(S)
        return U @ torch.diag(values**k) @ U.T

    p, a = image.double()[0].flatten(1), palette.double()[0].flatten(1)
    P, A = (torch.cov(x, correction=0) + 1e-6 * torch.eye(3).double() for x in (p, a))
    found = root(A, 0.5) @ root(P, -0.5) @ (p - p.mean(1, keepdim=True)) + a.mean(1, keepdim=True)
    return found.clamp(0, 1).reshape(image.shape).to(image.dtype)
""",
        "no small number on the diagonal": """
def match_colours(image, palette):
    def root(S, k):
        values, U = torch.linalg.eigh(S)
        return U @ torch.diag(values**k) @ U.T

    p, a = image.double()[0].flatten(1), palette.double()[0].flatten(1)
    P, A = torch.cov(p, correction=0), torch.cov(a, correction=0)
    found = root(A, 0.5) @ root(P, -0.5) @ (p - p.mean(1, keepdim=True)) + a.mean(1, keepdim=True)
    return found.reshape(image.shape).to(image.dtype)
""",
    },
    "shifted": {
        "round the border": """
def shifted_gram(features, dy, dx):
    return torch.einsum("biyx,bjyx->bij", features, features.roll((-dy, -dx), (2, 3))) / features[0, 0].numel()
""",
        "divided by all positions": """
def shifted_gram(features, dy, dx):
    H, W = features.shape[2:]
    here = features[:, :, max(0, -dy) : H - max(0, dy), max(0, -dx) : W - max(0, dx)]
    there = features[:, :, max(0, dy) : H - max(0, -dy), max(0, dx) : W - max(0, -dx)]
    return torch.einsum("biyx,bjyx->bij", here, there) / (H * W)
""",
        "the other way": """
def shifted_gram(features, dy, dx):
    H, W = features.shape[2:]
    here = features[:, :, max(0, -dy) : H - max(0, dy), max(0, -dx) : W - max(0, dx)]
    there = features[:, :, max(0, dy) : H - max(0, -dy), max(0, dx) : W - max(0, -dx)]
    return torch.einsum("biyx,bjyx->bji", here, there) / here[0, 0].numel()
""",
        "absolute shifts": """
def shifted_gram(features, dy, dx):
    dy, dx = abs(dy), abs(dx)
    H, W = features.shape[2:]
    here, there = features[:, :, : H - dy, : W - dx], features[:, :, dy:, dx:]
    return torch.einsum("biyx,bjyx->bij", here, there) / here[0, 0].numel()
""",
        "x and y swapped": """
def shifted_gram(features, dy, dx):
    dy, dx = dx, dy
    H, W = features.shape[2:]
    here = features[:, :, max(0, -dy) : H - max(0, dy), max(0, -dx) : W - max(0, dx)]
    there = features[:, :, max(0, dy) : H - max(0, -dy), max(0, dx) : W - max(0, -dx)]
    return torch.einsum("biyx,bjyx->bij", here, there) / here[0, 0].numel()
""",
    },
    "masked": {
        "the mask on both sides": """
def masked_gram(features, mask):
    m = F.adaptive_avg_pool2d(mask, features.shape[2:])
    flat, total = (features * m).flatten(2), m.sum((2, 3))[..., None]
    return flat @ flat.mT / torch.where(total > 0, total, torch.ones_like(total))
""",
        "divided by all positions": """
def masked_gram(features, mask):
    m = F.adaptive_avg_pool2d(mask, features.shape[2:])
    return (features * m).flatten(2) @ features.flatten(2).mT / m[0, 0].numel()
""",
        "every n-th pixel of the mask": """
def masked_gram(features, mask):
    n = mask.shape[2] // features.shape[2]
    m = mask[:, :, ::n, ::n]
    total = m.sum((2, 3))[..., None]
    return (features * m).flatten(2) @ features.flatten(2).mT / torch.where(total > 0, total, torch.ones_like(total))
""",
        "NaN for an empty mask": """
def masked_gram(features, mask):
    m = F.adaptive_avg_pool2d(mask, features.shape[2:])
    return (features * m).flatten(2) @ features.flatten(2).mT / m.sum((2, 3))[..., None]
""",
        "at least one position": """
def masked_gram(features, mask):
    m = F.adaptive_avg_pool2d(mask, features.shape[2:])
    return (features * m).flatten(2) @ features.flatten(2).mT / m.sum((2, 3))[..., None].clamp(min=1)
""",
    },
    "paint": {
        "gradients pile up": """
def paint(start, targets, features, steps):
    u = torch.logit(start.clamp(0.01, 0.99)).requires_grad_()
    optimiser, history = torch.optim.Adam([u], lr=0.1), []
    for _ in range(steps):
        pairs = zip(features(u.sigmoid()), targets)
        loss = sum((gram(f) - A).square().sum() / A.square().sum() for f, A in pairs)
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return u.detach().sigmoid(), history
""",
        "means, not relative": """
def paint(start, targets, features, steps):
    u = torch.logit(start.clamp(0.01, 0.99)).requires_grad_()
    optimiser, history = torch.optim.Adam([u], lr=0.1), []
    for _ in range(steps):
        loss = sum((gram(f) - A).square().mean() for f, A in zip(features(u.sigmoid()), targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return u.detach().sigmoid(), history
""",
        "pixels clamped, no sigmoid": """
def paint(start, targets, features, steps):
    x = start.clamp(0.01, 0.99).requires_grad_()
    optimiser, history = torch.optim.Adam([x], lr=0.1), []
    for _ in range(steps):
        loss = sum((gram(f) - A).square().sum() / A.square().sum() for f, A in zip(features(x), targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        x.data.clamp_(0, 1)
        history.append(loss.item())
    return x.detach(), history
""",
        "losses after the steps": """
def paint(start, targets, features, steps):
    u = torch.logit(start.clamp(0.01, 0.99)).requires_grad_()
    optimiser, history = torch.optim.Adam([u], lr=0.1), []

    def loss():
        pairs = zip(features(u.sigmoid()), targets)
        return sum((gram(f) - A).square().sum() / A.square().sum() for f, A in pairs)

    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        history.append(loss().item())
    return u.detach().sigmoid(), history
""",
        "the start not clamped": """
def paint(start, targets, features, steps):
    u = torch.logit(start).requires_grad_()
    optimiser, history = torch.optim.Adam([u], lr=0.1), []
    for _ in range(steps):
        pairs = zip(features(u.sigmoid()), targets)
        loss = sum((gram(f) - A).square().sum() / A.square().sum() for f, A in pairs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return u.detach().sigmoid(), history
""",
        "the start as it is": """
def paint(start, targets, features, steps):
    history = []
    for _ in range(steps):
        loss = sum((gram(f) - A).square().sum() / A.square().sum() for f, A in zip(features(start), targets))
        history.append(loss.item())
    return start, history
""",
    },
}
