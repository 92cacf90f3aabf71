"""Solutions of the assignment on diffusion for the tests: other right ones, and wrong ones as students write them."""

RIGHT = {
    "schedule": """
def linear_alpha_bar(T):
    left, found = 1.0, []
    for t in range(1, T + 1):
        beta = (1e-4 + (0.02 - 1e-4) * (t - 1) / (T - 1)) * 1000 / T
        left = left * (1 - min(0.999, beta))
        found.append(left)
    return torch.tensor(found, dtype=torch.float64)
""",
    "forward": """
def noisy(x0, t, noise, alpha_bar):
    rows = []
    for k in range(len(x0)):
        a = 1.0 if t[k] == 0 else alpha_bar[t[k] - 1].item()
        rows.append(math.sqrt(a) * x0[k] + math.sqrt(1 - a) * noise[k])
    return torch.stack(rows)
""",
    "posterior": """
def posterior(x0, xt, t, alpha_bar):
    means, variances = [], []
    for k, time in enumerate(t.tolist()):
        now = alpha_bar[time - 1].item()
        before = 1.0 if time == 1 else alpha_bar[time - 2].item()
        alpha = now / before
        means.append(
            (math.sqrt(before) * (1 - alpha) * x0[k] + math.sqrt(alpha) * (1 - before) * xt[k]) / (1 - now)
        )
        variances.append((1 - alpha) * (1 - before) / (1 - now))
    return torch.stack(means), torch.tensor(variances, dtype=x0.dtype)
""",
    "velocity": """
def from_velocity(xt, v, t, alpha_bar):
    angle = torch.acos(alpha_bar[t - 1].sqrt())
    angle = angle.reshape([-1] + [1] * (xt.ndim - 1))
    return torch.cos(angle) * xt - torch.sin(angle) * v, torch.sin(angle) * xt + torch.cos(angle) * v
""",
    "guidance": """
def guided(conditional, unconditional, w, phi=0.0):
    strong = w * conditional + (1 - w) * unconditional
    flat = strong.flatten(1)
    ratio = conditional.flatten(1).std(1) / flat.std(1)
    factor = phi * ratio + (1 - phi)
    return (flat * factor[:, None]).reshape(strong.shape)
""",
    "sampler": """
def ddim(denoiser, x, times, alpha_bar, eta=0.0, rng=None):
    padded = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar.double()])
    for k in range(len(times) - 1):
        now, then = padded[times[k]], padded[times[k + 1]]
        predicted = denoiser(x, torch.tensor([times[k]] * x.shape[0]))
        clean = (x - (1 - now).sqrt() * predicted) / now.sqrt()
        variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        x = then.sqrt() * clean + (1 - then - variance).clamp(min=0).sqrt() * predicted
        if eta > 0:
            x = x + variance.sqrt() * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x
""",
}

WRONG = {
    "schedule": {
        "not scaled with T": """
def linear_alpha_bar(T):
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    return (1 - beta).cumprod(0)
""",
        "no cap": """
def linear_alpha_bar(T):
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)
    return (1 - beta).cumprod(0)
""",
        "float32": """
def linear_alpha_bar(T):
    beta = (torch.linspace(1e-4, 0.02, T) * (1000 / T)).clamp(max=0.999)
    return (1 - beta).cumprod(0)
""",
        "a sum for the product": """
def linear_alpha_bar(T):
    beta = (torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)).clamp(max=0.999)
    return torch.exp(-beta.cumsum(0))
""",
    },
    "forward": {
        "off by one": """
def noisy(x0, t, noise, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    a = everything[(t + 1).clamp(max=len(alpha_bar))].reshape(-1, *[1] * (x0.ndim - 1))
    return (a.sqrt() * x0 + (1 - a).sqrt() * noise).to(x0.dtype)
""",
        "no roots": """
def noisy(x0, t, noise, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    a = everything[t].reshape(-1, *[1] * (x0.ndim - 1))
    return (a * x0 + (1 - a) * noise).to(x0.dtype)
""",
        "time 0 wraps round": """
def noisy(x0, t, noise, alpha_bar):
    a = alpha_bar[t - 1].reshape(-1, *[1] * (x0.ndim - 1))
    return (a.sqrt() * x0 + (1 - a).sqrt() * noise).to(x0.dtype)
""",
        "promoted to float64": """
def noisy(x0, t, noise, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    a = everything[t].reshape(-1, *[1] * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
""",
    },
    "posterior": {
        "beta as the variance": """
def posterior(x0, xt, t, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    now, before = everything[t], everything[t - 1]
    beta = 1 - now / before
    shape = (-1, *[1] * (x0.ndim - 1))
    mean = (before.sqrt() * beta / (1 - now)).reshape(shape) * x0
    return mean + ((now / before).sqrt() * (1 - before) / (1 - now)).reshape(shape) * xt, beta
""",
        "the standard deviation": """
def posterior(x0, xt, t, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    now, before = everything[t], everything[t - 1]
    beta = 1 - now / before
    shape = (-1, *[1] * (x0.ndim - 1))
    mean = (before.sqrt() * beta / (1 - now)).reshape(shape) * x0
    mean = mean + ((now / before).sqrt() * (1 - before) / (1 - now)).reshape(shape) * xt
    return mean, (beta * (1 - before) / (1 - now)).sqrt()
""",
        "alpha-bar for alpha": """
def posterior(x0, xt, t, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    now, before = everything[t], everything[t - 1]
    beta = 1 - now / before
    shape = (-1, *[1] * (x0.ndim - 1))
    mean = (before.sqrt() * beta / (1 - now)).reshape(shape) * x0
    mean = mean + (now.sqrt() * (1 - before) / (1 - now)).reshape(shape) * xt
    return mean, beta * (1 - before) / (1 - now)
""",
        "the mean alone": """
def posterior(x0, xt, t, alpha_bar):
    everything = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])
    now, before = everything[t], everything[t - 1]
    beta = 1 - now / before
    shape = (-1, *[1] * (x0.ndim - 1))
    mean = (before.sqrt() * beta / (1 - now)).reshape(shape) * x0
    return mean + ((now / before).sqrt() * (1 - before) / (1 - now)).reshape(shape) * xt
""",
    },
    "velocity": {
        "by division": """
def from_velocity(xt, v, t, alpha_bar):
    a = alpha_bar[t - 1].reshape(-1, *[1] * (xt.ndim - 1))
    noise = (1 - a).sqrt() * xt + a.sqrt() * v
    return (xt - (1 - a).sqrt() * noise) / a.sqrt(), noise
""",
        "the other order": """
def from_velocity(xt, v, t, alpha_bar):
    a = alpha_bar[t - 1].reshape(-1, *[1] * (xt.ndim - 1))
    return (1 - a).sqrt() * xt + a.sqrt() * v, a.sqrt() * xt - (1 - a).sqrt() * v
""",
        "a wrong sign": """
def from_velocity(xt, v, t, alpha_bar):
    a = alpha_bar[t - 1].reshape(-1, *[1] * (xt.ndim - 1))
    return a.sqrt() * xt + (1 - a).sqrt() * v, (1 - a).sqrt() * xt - a.sqrt() * v
""",
        "off by one": """
def from_velocity(xt, v, t, alpha_bar):
    a = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])[t - 1].reshape(-1, *[1] * (xt.ndim - 1))
    return a.sqrt() * xt - (1 - a).sqrt() * v, (1 - a).sqrt() * xt + a.sqrt() * v
""",
    },
    "guidance": {
        "one more than w": """
def guided(conditional, unconditional, w, phi=0.0):
    strong = conditional + w * (conditional - unconditional)
    axes = tuple(range(1, strong.ndim))
    rescaled = strong * (conditional.std(axes, keepdim=True) / strong.std(axes, keepdim=True))
    return phi * rescaled + (1 - phi) * strong
""",
        "deviation of the batch": """
def guided(conditional, unconditional, w, phi=0.0):
    strong = unconditional + w * (conditional - unconditional)
    return phi * strong * (conditional.std() / strong.std()) + (1 - phi) * strong
""",
        "deviation of each channel": """
def guided(conditional, unconditional, w, phi=0.0):
    strong = unconditional + w * (conditional - unconditional)
    rescaled = strong * (conditional.std((-2, -1), keepdim=True) / strong.std((-2, -1), keepdim=True))
    return phi * rescaled + (1 - phi) * strong
""",
        "phi forgotten": """
def guided(conditional, unconditional, w, phi=0.0):
    return unconditional + w * (conditional - unconditional)
""",
    },
    "sampler": {
        "no sigma in the root": """
def ddim(denoiser, x, times, alpha_bar, eta=0.0, rng=None):
    everything = [1.0, *alpha_bar.tolist()]
    for t, s in zip(times[:-1], times[1:]):
        a, b = everything[t], everything[s]
        noise = denoiser(x, torch.full((len(x),), t))
        x0 = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * noise
        if eta > 0:
            x = x + sigma * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x
""",
        "fresh noise each step": """
def ddim(denoiser, x, times, alpha_bar, eta=0.0, rng=None):
    everything = [1.0, *alpha_bar.tolist()]
    for t, s in zip(times[:-1], times[1:]):
        a, b = everything[t], everything[s]
        noise = denoiser(x, torch.full((len(x),), t))
        x0 = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x
""",
        "off by one": """
def ddim(denoiser, x, times, alpha_bar, eta=0.0, rng=None):
    everything = [1.0, *alpha_bar.tolist()]
    for t, s in zip(times[:-1], times[1:]):
        a, b = everything[t - 1], everything[max(s - 1, 0)]
        noise = denoiser(x, torch.full((len(x),), t))
        x0 = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        sigma = eta * math.sqrt((1 - b) / max(1 - a, 1e-12)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(max(1 - b - sigma**2, 0)) * noise
        if eta > 0:
            x = x + sigma * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x
""",
        "the last step left out": """
def ddim(denoiser, x, times, alpha_bar, eta=0.0, rng=None):
    everything = [1.0, *alpha_bar.tolist()]
    for t, s in zip(times[:-2], times[1:-1]):
        a, b = everything[t], everything[s]
        noise = denoiser(x, torch.full((len(x),), t))
        x0 = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(max(1 - b - sigma**2, 0)) * noise
        if eta > 0:
            x = x + sigma * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x
""",
    },
}
