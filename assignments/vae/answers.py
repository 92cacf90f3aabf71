"""Solutions of the assignment on VAEs for the tests: other right ones, and wrong ones as students write them."""

# The conditional VAE of the exercise, with what a student may get wrong left open.
TRAIN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(74, 128), nn.ReLU(), nn.Linear(128, 8))
        self.dec = nn.Sequential(nn.Linear(14, 128), nn.ReLU(), nn.Linear(128, 64))

    def encode(self, x, y):
        h = self.enc(torch.cat([x.flatten(1), {label}], 1))
        return h[:, :4], h[:, 4:]

    def decode(self, z, y):
        return self.dec(torch.cat([{code}, {label}], 1)).view(-1, 1, 8, 8)


def train(x, y):
    torch.manual_seed(0)
    net = Net()
    adam = torch.optim.Adam(net.parameters(), lr=0.005)
    for step in range({steps}):
        i = torch.randperm(len(x))[:128]
        mu, log_var = net.encode(x[i], y[i])
        l = net.decode({draw}, y[i])
        match = (x[i] * F.logsigmoid(l) + (1 - x[i]) * F.logsigmoid(-l)).flatten(1).{over_pixels}(1)
        kl = 0.5 * (mu**2 + log_var.exp() - 1 - log_var).sum(1)
        loss = ({sign}match + {weight} * kl).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net
"""
OPEN = {
    "label": "torch.eye(10)[y]", "code": "z", "steps": "400", "draw": "mu + (log_var / 2).exp() * torch.randn_like(mu)",
    "over_pixels": "sum", "sign": "-", "weight": "1",
}  # fmt: skip


def trained(**changes: str) -> str:
    return TRAIN.format(**OPEN | changes)


RIGHT = {
    "divergence": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    s_q, s_p = torch.exp(log_var_q / 2), torch.exp(log_var_p / 2)
    each = (log_var_p - log_var_q) / 2 + (s_q / s_p) ** 2 / 2 + ((mu_q - mu_p) / s_p) ** 2 / 2 - 1 / 2
    return each.sum(dim=-1)
""",
    "greys": """
def log_probability(x, mu, log_s):
    a, b = ((x + d - mu) / log_s.exp() for d in (0.5, -0.5))
    # where both are positive, count from the other end, so that nothing is rounded to 1
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    low, high = torch.where(flip, 255 - x, x) == 0, torch.where(flip, 255 - x, x) == 255
    la, lb = F.logsigmoid(a), F.logsigmoid(b)
    inside = la + torch.log1p(-torch.exp(lb - la))
    return torch.where(low, la, torch.where(high, F.logsigmoid(-b), inside)).sum((1, 2, 3))
""",
    "weights": """
def tighter(log_w):
    top = log_w.max(0).values
    w = (log_w - top).exp()
    return top + w.mean(0).log(), w.sum(0) ** 2 / (w**2).sum(0)
""",
    "lazy": """
def awake(mu, least=0.01):
    return ((mu - mu.mean(0)) ** 2).mean(0) > least


def free_nats(kl, floor):
    total = torch.zeros((), dtype=kl.dtype)
    for column in kl.unbind(1):
        mean = column.mean()
        total = total + (mean if mean > floor else floor)
    return total
""",
    "codes": """
class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, chosen):
        return chosen.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def quantise(z, book):
    distances = (z[:, None] - book[None, :, :, None, None]).pow(2).sum(2)
    numbers = distances.min(1).indices
    chosen = F.embedding(numbers, book).movedim(-1, 1)
    loss = F.mse_loss(chosen, z.detach()) + F.mse_loss(z, chosen.detach()) / 4
    return Straight.apply(z, chosen.detach()), numbers, loss
""",
    "order": trained(),
}

WRONG = {
    "divergence": {
        "p and q exchanged": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    mu_q, log_var_q, mu_p, log_var_p = mu_p, log_var_p, mu_q, log_var_q
    each = log_var_p - log_var_q + (log_var_q.exp() + (mu_q - mu_p) ** 2) / log_var_p.exp() - 1
    return 0.5 * each.sum(-1)
""",
        "always from N(0, I)": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    return 0.5 * (mu_q**2 + log_var_q.exp() - 1 - log_var_q).sum(-1)
""",
        "the distance not divided": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    each = log_var_p - log_var_q + (log_var_q - log_var_p).exp() + (mu_q - mu_p) ** 2 - 1
    return 0.5 * each.sum(-1)
""",
        "a mean over the coordinates": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    each = log_var_p - log_var_q + (log_var_q.exp() + (mu_q - mu_p) ** 2) / log_var_p.exp() - 1
    return 0.5 * each.mean(-1)
""",
        "log of the deviations": """
def kl_between(mu_q, log_var_q, mu_p, log_var_p):
    each = (log_var_p - log_var_q) / 2 + (log_var_q.exp() + (mu_q - mu_p) ** 2) / log_var_p.exp() - 1
    return 0.5 * each.sum(-1)
""",
    },
    "greys": {
        "the difference as it stands": """
def log_probability(x, mu, log_s):
    a, b = torch.sigmoid((x + 0.5 - mu) / log_s.exp()), torch.sigmoid((x - 0.5 - mu) / log_s.exp())
    P = torch.where(x == 0, a, torch.where(x == 255, 1 - b, a - b))
    return P.log().sum((1, 2, 3))
""",
        "no open ends": """
def log_probability(x, mu, log_s):
    a, b = (x + 0.5 - mu) / log_s.exp(), (x - 0.5 - mu) / log_s.exp()
    return (F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(b - a))).sum((1, 2, 3))
""",
        "the density in the middle": """
def log_probability(x, mu, log_s):
    t = (x - mu) / log_s.exp()
    a, b = (x + 0.5 - mu) / log_s.exp(), (x - 0.5 - mu) / log_s.exp()
    inside = F.logsigmoid(t) + F.logsigmoid(-t) - log_s
    return torch.where(x == 0, F.logsigmoid(a), torch.where(x == 255, F.logsigmoid(-b), inside)).sum((1, 2, 3))
""",
        "a small number in the logarithm": """
def log_probability(x, mu, log_s):
    a, b = torch.sigmoid((x + 0.5 - mu) / log_s.exp()), torch.sigmoid((x - 0.5 - mu) / log_s.exp())
    P = torch.where(x == 0, a, torch.where(x == 255, 1 - b, a - b))
    return P.clamp(min=1e-12).log().sum((1, 2, 3))
""",
        "a mean over the pixels": """
def log_probability(x, mu, log_s):
    a, b = (x + 0.5 - mu) / log_s.exp(), (x - 0.5 - mu) / log_s.exp()
    inside = F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(b - a))
    return torch.where(x == 0, F.logsigmoid(a), torch.where(x == 255, F.logsigmoid(-b), inside)).mean((1, 2, 3))
""",
    },
    "weights": {
        "the mean of the logarithms": """
def tighter(log_w):
    w = torch.softmax(log_w, 0)
    return log_w.mean(0), 1 / w.square().sum(0)
""",
        "weights as they stand": """
def tighter(log_w):
    w = log_w.exp()
    return w.mean(0).log(), w.sum(0) ** 2 / w.square().sum(0)
""",
        "not divided by K": """
def tighter(log_w):
    w = torch.softmax(log_w, 0)
    return torch.logsumexp(log_w, 0), 1 / w.square().sum(0)
""",
        "weights of the batch": """
def tighter(log_w):
    w = torch.softmax(log_w, 1)
    return torch.logsumexp(log_w, 0) - math.log(len(log_w)), w.sum(0) ** 2 / w.square().sum(0)
""",
        "the largest weight": """
def tighter(log_w):
    w = torch.softmax(log_w, 0)
    return torch.logsumexp(log_w, 0) - math.log(len(log_w)), 1 / w.max(0).values
""",
    },
    "lazy": {
        "the floor under each image": """
def awake(mu, least=0.01):
    return mu.var(0, correction=0) > least


def free_nats(kl, floor):
    return kl.clamp(min=floor).mean(0).sum()
""",
        "the floor under the sum": """
def awake(mu, least=0.01):
    return mu.var(0, correction=0) > least


def free_nats(kl, floor):
    return kl.sum(1).mean().clamp(min=floor)
""",
        "far from 0 is awake": """
def awake(mu, least=0.01):
    return mu.square().mean(0) > least


def free_nats(kl, floor):
    return kl.mean(0).clamp(min=floor).sum()
""",
        "the deviation": """
def awake(mu, least=0.01):
    return mu.std(0, correction=0) > least


def free_nats(kl, floor):
    return kl.mean(0).clamp(min=floor).sum()
""",
        "divided by n - 1": """
def awake(mu, least=0.01):
    return mu.var(0) > least


def free_nats(kl, floor):
    return kl.mean(0).clamp(min=floor).sum()
""",
        "nothing below the floor": """
def awake(mu, least=0.01):
    return mu.var(0, correction=0) > least


def free_nats(kl, floor):
    return F.relu(kl.mean(0) - floor).sum()
""",
    },
    "codes": {
        "no gradient": """
def quantise(z, book):
    numbers = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(1).reshape(len(z), *z.shape[2:])
    chosen = book[numbers].permute(0, 3, 1, 2)
    loss = (z.detach() - chosen).square().mean() + 0.25 * (z - chosen.detach()).square().mean()
    return chosen, numbers, loss
""",
        "reshaped, channels mixed up": """
def quantise(z, book):
    numbers = torch.cdist(z.reshape(-1, z.shape[1]), book).argmin(1)
    chosen = book[numbers].reshape(z.shape)
    loss = (z.detach() - chosen).square().mean() + 0.25 * (z - chosen.detach()).square().mean()
    return z + (chosen - z).detach(), numbers.reshape(len(z), *z.shape[2:]), loss
""",
        "the quarter on the book": """
def quantise(z, book):
    numbers = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(1).reshape(len(z), *z.shape[2:])
    chosen = book[numbers].permute(0, 3, 1, 2)
    loss = 0.25 * (z.detach() - chosen).square().mean() + (z - chosen.detach()).square().mean()
    return z + (chosen - z).detach(), numbers, loss
""",
        "nothing detached in the loss": """
def quantise(z, book):
    numbers = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(1).reshape(len(z), *z.shape[2:])
    chosen = book[numbers].permute(0, 3, 1, 2)
    return z + (chosen - z).detach(), numbers, 1.25 * (z - chosen).square().mean()
""",
        "the loss of the quantised map": """
def quantise(z, book):
    numbers = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(1).reshape(len(z), *z.shape[2:])
    found = z + (book[numbers].permute(0, 3, 1, 2) - z).detach()
    return found, numbers, (z.detach() - found).square().mean() + 0.25 * (z - found.detach()).square().mean()
""",
    },
    "order": {
        "without the divergence": trained(weight="0"),
        "deaf to the label": trained(label="0 * torch.eye(10)[y]"),
        "no noise": trained(draw="mu"),
        "a mean over the pixels": trained(over_pixels="mean"),
        "z unused": trained(code="0 * z"),
        "the wrong sign": trained(sign=""),
        "hardly trained": trained(steps="25"),
    },
}
