"""Solutions of the assignment on upsampling for the tests: other right ones, and wrong ones as students write them."""

RIGHT = {
    "kernels": """
def fitting_layers(factor, largest):
    found = []
    for k in range(1, largest + 1):
        for p in range(k):
            if k - 2 * p == factor and k % factor == 0:
                found.append((k, factor, p))
    return sorted(found)
""",
    "linear": """
def stretch(x, size):
    n = x.shape[-1]
    rows = torch.zeros(size, n, dtype=torch.float64)
    for i in range(size):
        u = min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
        a = math.floor(u)
        b = min(a + 1, n - 1)
        rows[i, a] += 1 - (u - a)
        rows[i, b] += u - a
    return (x.double() @ rows.T).to(x.dtype)
""",
    "transposed": """
def transposed(x, weight, stride=1, padding=0):
    B, C, n = x.shape
    k = weight.shape[2]
    with_zeros = torch.zeros(B, C, (n - 1) * stride + 1, dtype=x.dtype)
    with_zeros = with_zeros.index_copy(2, torch.arange(n) * stride, x)
    padded = torch.nn.functional.pad(with_zeros, (k - 1, k - 1))
    windows = padded.unfold(2, k, 1).flip(3)
    y = torch.einsum("bcnk,cok->bon", windows, weight)
    return y[:, :, padding:-padding] if padding else y
""",
    "shuffle": """
def depth_to_space(x, r):
    B, D, h, w = x.shape
    C = D // (r * r)
    y = torch.empty(B, C, h * r, w * r, dtype=x.dtype)
    for i in range(r):
        for j in range(r):
            y[:, :, i::r, j::r] = x[:, (i * r + j) * C : (i * r + j + 1) * C]
    return y
""",
    "blur": """
def visits(n, k, s):
    o = torch.arange((n - 1) * s + k)
    return sum(((o >= i * s) & (o < i * s + k)).long() for i in range(n))
""",
    "learned": """
def learn_kernel(x, y, k):
    B, n = x.shape
    rows, targets = [], []
    for m in range(2 * n):  # output m gets x[i] with the weight j = m + p - 2i
        row = torch.zeros(B, k, dtype=x.dtype)
        for i in range(n):
            j = m + (k - 2) // 2 - 2 * i
            if 0 <= j < k:
                row[:, j] = x[:, i]
        rows.append(row)
        targets.append(y[:, m])
    A, b = torch.cat(rows), torch.cat(targets)
    return torch.linalg.solve(A.T @ A, A.T @ b)
""",
}

WRONG = {
    "kernels": {
        "any overlap": """
def fitting_layers(factor, largest):
    return [(k, factor, (k - factor) // 2) for k in range(factor, largest + 1) if (k - factor) % 2 == 0]
""",
        "odd differences too": """
def fitting_layers(factor, largest):
    return [(k, factor, (k - factor) // 2) for k in range(factor, largest + 1, factor)]
""",
        "without the largest": """
def fitting_layers(factor, largest):
    return [(k, factor, (k - factor) // 2) for k in range(factor, largest, factor) if (k - factor) % 2 == 0]
""",
        "a constant": """
def fitting_layers(factor, largest):
    return [(2, 2, 0), (4, 2, 1), (6, 2, 2)]
""",
    },
    "linear": {
        "corners aligned": """
def stretch(x, size):
    n = x.shape[-1]
    u = torch.linspace(0, n - 1, size, dtype=torch.float64)
    left = u.floor().long()
    right = (left + 1).clamp(max=n - 1)
    t = (u - left).to(x.dtype)
    return x[..., left] * (1 - t) + x[..., right] * t
""",
        "no half pixel": """
def stretch(x, size):
    n = x.shape[-1]
    u = (torch.arange(size, dtype=torch.float64) * n / size).clamp(0, n - 1)
    left = u.floor().long()
    right = (left + 1).clamp(max=n - 1)
    t = (u - left).to(x.dtype)
    return x[..., left] * (1 - t) + x[..., right] * t
""",
        "nearest": """
def stretch(x, size):
    n = x.shape[-1]
    return x[..., torch.arange(size) * n // size]
""",
        "positions in float32": """
def stretch(x, size):
    n = x.shape[-1]
    u = ((torch.arange(size, dtype=torch.float32) + 0.5) * (n / size) - 0.5).clamp(0, n - 1)
    left = u.floor().long()
    right = (left + 1).clamp(max=n - 1)
    t = (u - left).to(x.dtype)
    return x[..., left] * (1 - t) + x[..., right] * t
""",
    },
    "transposed": {
        "flipped kernel": """
def transposed(x, weight, stride=1, padding=0):
    B, _, n = x.shape
    _, C_out, k = weight.shape
    y = x.new_zeros(B, C_out, (n - 1) * stride + k)
    for j in range(k):
        placed = torch.zeros_like(y)
        placed[:, :, j : j + (n - 1) * stride + 1 : stride] = torch.einsum("bcn,co->bon", x, weight[:, :, k - 1 - j])
        y = y + placed
    return y[:, :, padding : y.shape[2] - padding]
""",
        "padding added": """
def transposed(x, weight, stride=1, padding=0):
    B, _, n = x.shape
    _, C_out, k = weight.shape
    y = x.new_zeros(B, C_out, (n - 1) * stride + k + 2 * padding)
    for j in range(k):
        placed = torch.zeros_like(y)
        placed[:, :, padding + j : padding + j + (n - 1) * stride + 1 : stride] = torch.einsum(
            "bcn,co->bon", x, weight[:, :, j]
        )
        y = y + placed
    return y
""",
        "last one wins": """
def transposed(x, weight, stride=1, padding=0):
    B, _, n = x.shape
    _, C_out, k = weight.shape
    y = x.new_zeros(B, C_out, (n - 1) * stride + k)
    for i in range(n):
        y[:, :, i * stride : i * stride + k] = torch.einsum("bc,cok->bok", x[:, :, i], weight)
    return y[:, :, padding : y.shape[2] - padding]
""",
        "no gradient": """
def transposed(x, weight, stride=1, padding=0):
    B, _, n = x.shape
    _, C_out, k = weight.shape
    y = x.new_zeros(B, C_out, (n - 1) * stride + k)
    with torch.no_grad():
        for i in range(n):
            y[:, :, i * stride : i * stride + k] += torch.einsum("bc,cok->bok", x[:, :, i], weight)
    return y[:, :, padding : y.shape[2] - padding]
""",
    },
    "shuffle": {
        "the lesson's order": """
def depth_to_space(x, r):
    B, D, h, w = x.shape
    return x.reshape(B, D // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(B, D // r**2, r * h, r * w)
""",
        "i and j swapped": """
def depth_to_space(x, r):
    B, D, h, w = x.shape
    return x.reshape(B, r, r, D // r**2, h, w).permute(0, 3, 4, 2, 5, 1).reshape(B, D // r**2, r * h, r * w)
""",
        "only reshaped": """
def depth_to_space(x, r):
    B, D, h, w = x.shape
    return x.reshape(B, D // r**2, r * h, r * w)
""",
        "for two only": """
def depth_to_space(x, r):
    B, D, h, w = x.shape
    y = x.reshape(B, 2, 2, D // 4, h, w)
    return y.permute(0, 3, 4, 1, 5, 2).reshape(B, D // 4, 2 * h, 2 * w)
""",
    },
    "blur": {
        "floats": """
def visits(n, k, s):
    count = torch.zeros((n - 1) * s + k)
    for i in range(n):
        count[i * s : i * s + k] += 1
    return count
""",
        "the middle everywhere": """
def visits(n, k, s):
    return torch.full(((n - 1) * s + k,), -(-k // s))
""",
        "padded": """
def visits(n, k, s):
    count = torch.zeros(n * s, dtype=torch.int64)
    for i in range(n):
        count[i * s : i * s + k] += 1
    return count
""",
        "without overlap": """
def visits(n, k, s):
    count = torch.zeros((n - 1) * s + k, dtype=torch.int64)
    for i in range(n):
        count[i * s : i * s + k] = 1
    return count
""",
    },
    "learned": {
        "the tent": """
def learn_kernel(x, y, k):
    return torch.tensor([0.0] * ((k - 4) // 2) + [0.25, 0.75, 0.75, 0.25] + [0.0] * ((k - 4) // 2), dtype=x.dtype)
""",
        "backwards": """
def learn_kernel(x, y, k):
    (B, n), p = x.shape, (k - 2) // 2
    spread = torch.zeros(B, 2 * n + 2 * k, dtype=x.dtype)
    spread[:, k : k + 2 * n : 2] = x
    columns = [spread[:, k + p - j : k + p - j + 2 * n].flatten() for j in range(k)]
    return torch.linalg.lstsq(torch.stack(columns, 1), y.flatten()[:, None]).solution[:, 0].flip(0)
""",
        "zeros": """
def learn_kernel(x, y, k):
    return torch.zeros(k, dtype=x.dtype)
""",
        "off by one sample": """
def learn_kernel(x, y, k):
    (B, n), p = x.shape, k // 2
    spread = torch.zeros(B, 2 * n + 2 * k, dtype=x.dtype)
    spread[:, k : k + 2 * n : 2] = x
    columns = [spread[:, k + p - j : k + p - j + 2 * n].flatten() for j in range(k)]
    return torch.linalg.lstsq(torch.stack(columns, 1), y.flatten()[:, None]).solution[:, 0]
""",
    },
}
