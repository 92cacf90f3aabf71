"""Solutions of the assignment on GANs for the tests: other right ones, and wrong ones as students write them."""

RIGHT = {
    "losses": """
def losses(real, fake):
    ones, zeros = torch.ones_like, torch.zeros_like
    d = F.binary_cross_entropy_with_logits(real, ones(real)) + F.binary_cross_entropy_with_logits(fake, zeros(fake))
    return d, F.binary_cross_entropy_with_logits(fake, ones(fake))
""",
    "theory": """
def best_discriminator(p, q):
    return ((p + 1e-300) / (p + q + 2e-300)).to(p.dtype) if p.dtype == torch.float64 else best_discriminator(
        p.double(), q.double()
    ).to(p.dtype)


def divergence(p, q):
    total = torch.zeros((), dtype=p.dtype)
    for a, b in zip(p.tolist(), q.tolist()):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a else 0) / 2 + (b * math.log(b / m) if b else 0) / 2
    return total
""",
    "penalty": """
def r1(discriminator, x, gamma=1.0):
    x = x.clone().requires_grad_()
    logits = discriminator(x)
    gradient = torch.autograd.grad(logits, x, torch.ones_like(logits), create_graph=True)[0]
    return 0.5 * gamma * (gradient**2).sum() / len(x)
""",
    "step": """
def game_step(G, D, optimiser_G, optimiser_D, x, z):
    fake = G(z)
    loss_D = F.softplus(-D(x)).mean() + F.softplus(D(fake.detach())).mean()
    optimiser_D.zero_grad()
    loss_D.backward()
    optimiser_D.step()
    for parameter in D.parameters():
        parameter.requires_grad_(False)
    loss_G = -F.logsigmoid(D(fake)).mean()
    optimiser_G.zero_grad()
    loss_G.backward()
    optimiser_G.step()
    for parameter in D.parameters():
        parameter.requires_grad_(True)
    return float(loss_D.detach()), float(loss_G.detach())
""",
    "walk": """
def walk(a, b, n):
    cosine = F.cosine_similarity(a[None], b[None]).item()
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    rows = []
    for k in range(n):
        t = k / (n - 1)
        if math.sin(theta) < 1e-4:
            rows.append(a * (1 - t) + b * t)
        else:
            rows.append(a * (math.sin((1 - t) * theta) / math.sin(theta)) + b * (math.sin(t * theta) / math.sin(theta)))
    return torch.stack(rows)
""",
    "modes": """
def shares(points, centres, radius):
    counts = torch.zeros(len(centres) + 1, dtype=torch.float64)
    for point in points:
        if point.isnan().any():
            counts[-1] += 1
            continue
        distances = (centres - point).norm(dim=1)
        counts[int(distances.argmin()) if distances.min() <= radius else -1] += 1
    return (counts / len(points)).to(points.dtype)
""",
}

WRONG = {
    "losses": {
        "saturating": """
def losses(real, fake):
    return F.softplus(-real).mean() + F.softplus(fake).mean(), -F.softplus(fake).mean()
""",
        "logarithms as they stand": """
def losses(real, fake):
    D, DG = torch.sigmoid(real), torch.sigmoid(fake)
    return -D.log().mean() - (1 - DG).log().mean(), -DG.log().mean()
""",
        "logits for probabilities": """
def losses(real, fake):
    return ((real - 1) ** 2).mean() + (fake**2).mean(), ((fake - 1) ** 2).mean()
""",
        "one mean over both": """
def losses(real, fake):
    return 2 * torch.cat([F.softplus(-real), F.softplus(fake)]).mean(), F.softplus(-fake).mean()
""",
    },
    "theory": {
        "the other way round": """
def best_discriminator(p, q):
    total = p + q
    return torch.where(total > 0, q / total.clamp(min=1e-30), torch.full_like(p, 0.5))


def divergence(p, q):
    m = (p + q) / 2
    return (torch.xlogy(p, p) + torch.xlogy(q, q)).sum() / 2 - torch.xlogy(m, m).sum()
""",
        "NaN at zeros": """
def best_discriminator(p, q):
    return p / (p + q)


def divergence(p, q):
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
""",
        "no half": """
def best_discriminator(p, q):
    total = p + q
    return torch.where(total > 0, p / total.clamp(min=1e-30), torch.full_like(p, 0.5))


def divergence(p, q):
    m = (p + q) / 2
    return (torch.xlogy(p, p) + torch.xlogy(q, q)).sum() - 2 * torch.xlogy(m, m).sum()
""",
        "KL instead": """
def best_discriminator(p, q):
    total = p + q
    return torch.where(total > 0, p / total.clamp(min=1e-30), torch.full_like(p, 0.5))


def divergence(p, q):
    both = (p > 0) & (q > 0)
    return (p[both] * (p[both] / q[both]).log()).sum()
""",
    },
    "penalty": {
        "without the graph": """
def r1(discriminator, x, gamma=1.0):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x)
    return gamma / 2 * gradient.square().flatten(1).sum(1).mean()
""",
        "mean over numbers": """
def r1(discriminator, x, gamma=1.0):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gamma / 2 * gradient.square().mean()
""",
        "the length, not its square": """
def r1(discriminator, x, gamma=1.0):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gamma / 2 * gradient.flatten(1).norm(dim=1).mean()
""",
        "gradient of the mean": """
def r1(discriminator, x, gamma=1.0):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).mean(), x, create_graph=True)
    return gamma / 2 * gradient.square().flatten(1).sum(1).mean()
""",
    },
    "step": {
        "fake not detached, one backward for both": """
def game_step(G, D, optimiser_G, optimiser_D, x, z):
    fake = G(z)
    loss_D = F.softplus(-D(x)).mean() + F.softplus(D(fake)).mean()
    optimiser_D.zero_grad()
    optimiser_G.zero_grad()
    loss_D.backward()
    optimiser_D.step()
    loss_G = F.softplus(-D(G(z))).mean()
    loss_G.backward()
    optimiser_G.step()
    return loss_D.item(), loss_G.item()
""",
        "G first": """
def game_step(G, D, optimiser_G, optimiser_D, x, z):
    loss_G = F.softplus(-D(G(z))).mean()
    optimiser_G.zero_grad()
    loss_G.backward()
    optimiser_G.step()
    loss_D = F.softplus(-D(x)).mean() + F.softplus(D(G(z).detach())).mean()
    optimiser_D.zero_grad()
    loss_D.backward()
    optimiser_D.step()
    return loss_D.item(), loss_G.item()
""",
        "G against the old D": """
def game_step(G, D, optimiser_G, optimiser_D, x, z):
    fake = G(z)
    loss_G = F.softplus(-D(fake)).mean()
    loss_D = F.softplus(-D(x)).mean() + F.softplus(D(fake.detach())).mean()
    gradients = torch.autograd.grad(loss_G, list(G.parameters()))
    optimiser_D.zero_grad()
    loss_D.backward()
    optimiser_D.step()
    for parameter, gradient in zip(G.parameters(), gradients):
        parameter.grad = gradient
    optimiser_G.step()
    return loss_D.item(), loss_G.item()
""",
        "G's gradient left in D": """
def game_step(G, D, optimiser_G, optimiser_D, x, z):
    loss_D = F.softplus(-D(x)).mean() + F.softplus(D(G(z).detach())).mean()
    optimiser_D.zero_grad()
    loss_D.backward()
    optimiser_D.step()
    loss_G = F.softplus(-D(G(z))).mean()
    optimiser_G.zero_grad()
    loss_G.backward()
    optimiser_G.step()
    return loss_D.item(), loss_G.item()
""",
    },
    "walk": {
        "straight": """
def walk(a, b, n):
    t = torch.linspace(0, 1, n, dtype=a.dtype)[:, None]
    return (1 - t) * a + t * b
""",
        "the end left out": """
def walk(a, b, n):
    t = (torch.arange(n, dtype=a.dtype) / n)[:, None]
    theta = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if torch.sin(theta) < 1e-4:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
""",
        "NaN where parallel": """
def walk(a, b, n):
    t = torch.linspace(0, 1, n, dtype=a.dtype)[:, None]
    theta = torch.acos(a @ b / (a.norm() * b.norm()) + 1e-6 * (a.dtype == torch.float32))
    return (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
""",
        "pushed out to the sphere": """
def walk(a, b, n):
    t = torch.linspace(0, 1, n, dtype=a.dtype)[:, None]
    line = (1 - t) * a + t * b
    return line / line.norm(dim=1, keepdim=True) * ((1 - t) * a.norm() + t * b.norm())
""",
    },
    "modes": {
        "of those that are near": """
def shares(points, centres, radius):
    distances = torch.cdist(points, centres).nan_to_num(nan=math.inf)
    least, nearest = distances.min(1)
    found = torch.bincount(nearest[least <= radius], minlength=len(centres)).to(points.dtype)
    found = found / found.sum().clamp(min=1)
    return torch.cat([found, (least > radius).to(points.dtype).mean()[None]])
""",
        "radius forgotten": """
def shares(points, centres, radius):
    nearest = torch.cdist(points, centres).argmin(1)
    return torch.bincount(nearest, minlength=len(centres) + 1).to(points.dtype) / len(points)
""",
        "every centre in reach": """
def shares(points, centres, radius):
    near = ((points[:, None] - centres) ** 2).sum(2).sqrt() <= radius
    return torch.cat([near.to(points.dtype).mean(0), (~near.any(1)).to(points.dtype).mean()[None]])
""",
        "squared distances": """
def shares(points, centres, radius):
    k = len(centres)
    distances = (points[:, None] - centres[None]).square().sum(2).nan_to_num(nan=math.inf)
    least, nearest = distances.min(1)
    nearest = torch.where(least <= radius, nearest, torch.full_like(nearest, k))
    return torch.bincount(nearest, minlength=k + 1).to(points.dtype) / len(points)
""",
    },
}
