"""Text to image: captions and their twins, the transformer against torch's, CLIP's loss against a loop, the prior."""

import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, rng, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import diffusion, scenes
from course_lib import text_to_image as t2i
from course_lib.base import checkpoints, zoo
from course_lib.base.loop import Loop
from course_lib.scenes.world import COLOURS, THINGS

drawn = settings(max_examples=25, deadline=None, derandomize=True, database=None)

ONE = "A large red star on the left, on sand by day."
STAR, DISC = "large red star", "small dotted blue disc"
TWO = f"A {STAR} on the left and a {DISC} in the middle, on sand by the water at dusk."


@pytest.fixture(scope="module")
def data():
    return t2i.draw_captioned(60, seed=7)


# Captioned scenes


def test_no_training_scene_has_a_held_out_pair_and_each_held_out_scene_has_one(data):
    held_out = t2i.draw_captioned(5, seed=7, held_out=True)
    for captioned, expected in ((data, False), (held_out, True)):
        for caption in captioned.captions:
            pairs = {(m.colour, m.name) for m in scenes.parse(caption).objects}
            assert bool(pairs & t2i.HELD_OUT) == expected == t2i.is_held_out(caption)


def test_held_out_pairs_take_no_colour_and_no_class_away():
    for words, position in ((COLOURS, 0), (THINGS, 1)):
        held_out = Counter(pair[position] for pair in t2i.HELD_OUT)
        assert set(held_out) <= set(words) and max(held_out.values()) == 1


def test_images_are_those_of_their_captions(data):
    assert data.images.shape == (60, 3, 32, 32) and data.images.dtype == torch.uint8
    assert {len(scenes.parse(caption).objects) for caption in data.captions} == {1, 2}
    nights = torch.tensor([scenes.parse(caption).light == "night" for caption in data.captions])
    brightness = data.floats()[:, :, :4].mean((1, 2, 3))  # of the sky
    assert brightness[nights].max() < brightness[~nights].min()


def test_scenes_depend_on_the_seed_alone_and_are_kept(data, tmp_path):
    first = t2i.draw_captioned(5, seed=7, folder=tmp_path)
    assert torch.equal(first.images, data.images[:5]) and first.captions == data.captions[:5]
    (kept,) = tmp_path.iterdir()
    again = t2i.draw_captioned(5, seed=7, folder=tmp_path)
    assert torch.equal(again.images, first.images) and again.captions == first.captions
    assert [*tmp_path.iterdir()] == [kept]
    assert t2i.draw_captioned(5, seed=8, folder=tmp_path).captions != first.captions


def test_larger_scenes_and_other_numbers_of_objects():
    three = t2i.draw_captioned(2, seed=0, size=64, objects=(3, 3))
    assert three.images.shape == (2, 3, 64, 64)
    assert all(len(scenes.parse(caption).objects) == 3 for caption in three.captions)
    with pytest.raises(ValueError, match="at least one scene; got 0"):
        t2i.draw_captioned(0, seed=0)


@pytest.mark.parametrize(
    ("what", "twin"),
    [
        ("colour", TWO.replace("red", "?").replace("blue", "red").replace("?", "blue")),
        ("shape", TWO.replace("star", "?").replace("disc", "star").replace("?", "disc")),
        (
            "place",
            "A small dotted blue disc on the left and a large red star in the middle, on sand by the water at dusk.",
        ),
    ],
)
def test_a_twin_has_the_same_words_in_another_order(what, twin):
    assert t2i.swap(TWO, what) == twin
    assert t2i.swap(twin, what) == TWO
    assert t2i.swap(ONE, what) is None


@pytest.mark.parametrize("what", ["colour", "shape", "place"])
def test_twins_are_captions_that_say_something_else(data, what):
    twins = [(caption, twin) for caption in data.captions if (twin := t2i.swap(caption, what))]
    assert len(twins) > 10
    for caption, twin in twins:
        assert sorted(caption.lower().split()) == sorted(twin.lower().split())
        assert scenes.parse(twin).objects != scenes.parse(caption).objects
        assert t2i.swap(twin, what) == caption


def test_no_twin_where_it_could_say_the_same():
    same_shape = TWO.replace("disc", "star")
    same_colour = TWO.replace("blue", "red")
    for caption in (same_shape, same_colour):
        assert t2i.swap(caption, "colour") is t2i.swap(caption, "shape") is None
    assert t2i.swap(TWO.replace("in the middle", "on the left"), "place") is None
    with pytest.raises(ValueError, match="colour, shape or place; got 'size'"):
        t2i.swap(TWO, "size")


def test_shorter_sentences():
    assert t2i.shorten(TWO, ()) == TWO
    assert t2i.shorten(ONE, ("size", "setting")) == "A red star on the left."
    assert t2i.shorten(TWO, t2i.PARTS) == "A red star and a blue disc."
    assert (
        t2i.shorten(TWO, ("place",)) == "A large red star and a small dotted blue disc, on sand by the water at dusk."
    )
    with pytest.raises(ValueError, match="got colour"):
        t2i.shorten(ONE, ("colour",))


# The tokeniser


def test_tokens_are_the_words(data):
    tokenizer = t2i.Tokenizer()
    tokens = tokenizer(data.captions)
    assert tokens.dtype == torch.int64 and (tokens[:, 0] == t2i.START).all()
    assert tokens.shape[1] == max(len(caption.replace(",", " ,").split()) + 1 for caption in data.captions)
    assert tokenizer.decode(tokens) == [caption.lower().removesuffix(".") for caption in data.captions]


def test_every_caption_of_one_or_two_objects_fits():
    thing = "large checked yellow triangle in the middle"
    longest = f"A {thing} and a {thing}, on grass before hills by day."
    assert t2i.Tokenizer()(longest.replace("before hills", "by the water")).shape[1] <= t2i.LONGEST


def test_what_does_not_matter_to_a_tokeniser():
    tokens = t2i.Tokenizer()([ONE, ONE.upper(), ONE.removesuffix("."), f"  {ONE} ", ONE.replace("red", "plain red")])
    assert (tokens == tokens[0]).all()
    assert torch.equal(t2i.Tokenizer()("an orange tree"), t2i.Tokenizer()("a orange tree"))
    assert t2i.Tokenizer()(["", "a star"]).tolist()[0] == [t2i.START, t2i.PADDING, t2i.PADDING]


def test_unknown_words_are_named_with_the_nearest_known_ones():
    with pytest.raises(ValueError, match=r"'crimson', 'starr' \(star\?\), 'gras' \(grass\?\)\. .*red orange yellow"):
        t2i.Tokenizer()("A crimson starr on gras")
    with pytest.raises(ValueError, match="'красная', 'звезда'"):
        t2i.Tokenizer()("красная звезда")
    with pytest.raises(ValueError, match="'一颗红星'"):
        t2i.Tokenizer()("一颗红星")
    with pytest.raises(ValueError, match="'w4' and 15 more"):
        t2i.Tokenizer()(" ".join(f"w{i}" for i in range(20)))


def test_refused_captions():
    with pytest.raises(ValueError, match="at most 31 words and commas, got 200"):
        t2i.Tokenizer()("star " * 200)
    with pytest.raises(ValueError, match="got none"):
        t2i.Tokenizer()([])
    with pytest.raises(TypeError, match="text, got int"):
        t2i.Tokenizer()([3])
    with pytest.raises(TypeError, match="integers, as of a Tokenizer; got torch.float32"):
        t2i.TextEncoder()(torch.zeros(1, 3))
    with pytest.raises(TypeError, match="got str"):
        t2i.TextEncoder()("a star")
    for shape in ((3,), (1, 0), (1, 33)):
        with pytest.raises(ValueError, match=r"tokens \(B, L\)"):
            t2i.TextEncoder()(torch.ones(shape, dtype=torch.int64))
    for number in (-1, len(t2i.VOCABULARY)):
        with pytest.raises(ValueError, match=f"got {number} … {number}"):
            t2i.TextEncoder()(torch.full((1, 1), number))
    with pytest.raises(ValueError, match="multiple of heads"):
        t2i.TextEncoder(dim=30, heads=4)


# Attention and the transformer


@drawn
@given(L=st.integers(1, 6), S=st.integers(1, 6), d=st.integers(1, 8), seed=st.integers(0, 99))
def test_attention_is_torchs(L, S, d, seed):
    q, k, v = normal(2, 3, L, d, seed=seed), normal(2, 3, S, d, seed=seed + 1), normal(2, 3, S, 5, seed=seed + 2)
    mask = uniform(2, 1, L, S, seed=seed) < 0.5
    mask[..., 0] = True
    torch.testing.assert_close(t2i.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(t2i.attention(q, k, v, mask), expected)


def test_attention_of_equal_keys_is_the_mean_and_of_a_clear_match_the_match():
    v = normal(4, 3)
    torch.testing.assert_close(t2i.attention(normal(2, 5), torch.ones(4, 5).double(), v), v.mean(0).expand(2, -1))
    keys = 100 * torch.eye(4).double()
    torch.testing.assert_close(t2i.attention(keys, keys, v), v)


def test_gradients_of_attention():
    inputs = [normal(2, n, 3, seed=n).requires_grad_() for n in (2, 4, 4)]
    mask = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda q, k, v: t2i.attention(q, k, v, mask), inputs)


def theirs(block: t2i.Block, heads: int) -> nn.TransformerEncoderLayer:
    """torch's layer with the block's weights."""
    dim = block.norm1.normalized_shape[0]
    layer = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj",
        "mlp.0": "linear1",
        "mlp.2": "linear2",
    }
    state = {}
    for name, tensor in block.state_dict().items():
        for mine, other in names.items():
            name = name.replace(mine, other)
        state[name] = tensor
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize(("dim", "heads"), [(8, 1), (12, 3), (64, 4)])
def test_a_block_is_torchs_layer(dim, heads):
    block = t2i.Block(dim, heads).double()
    x, mask = normal(3, 7, dim).requires_grad_(), uniform(3, 7, seed=1) < 0.6
    mask[:, 0] = True
    layer = theirs(block, heads)
    torch.testing.assert_close(block(x), layer(x))
    ours, other = block(x, mask), layer(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], other[mask])
    weight = normal(*ours[mask].shape, seed=2)
    gradients = [torch.autograd.grad((out[mask] * weight).sum(), x)[0] for out in (ours, other)]
    torch.testing.assert_close(*gradients)


def test_padding_and_neighbours_do_not_change_what_is_read():
    encoder = t2i.TextEncoder().double().eval()
    tokens = t2i.Tokenizer()([ONE, TWO, ""])
    together = encoder(tokens)
    assert together.mask.sum(1).tolist() == [13, 25, 1]
    for i, caption in enumerate([ONE, TWO, ""]):
        alone = encoder(t2i.Tokenizer()(caption))
        torch.testing.assert_close(together.pooled[i], alone.pooled[0])
        torch.testing.assert_close(together.tokens[i][together.mask[i]], alone.tokens[0])
        torch.testing.assert_close(alone.pooled, alone.tokens[:, 0])


def test_without_places_a_caption_is_a_bag_of_words():
    encoder = t2i.TextEncoder().double().eval()
    read = [encoder(t2i.Tokenizer()(caption)).pooled for caption in (TWO, t2i.swap(TWO, "colour"))]
    assert (read[0] - read[1]).abs().max() > 1e-3
    nn.init.zeros_(encoder.places)
    read = [encoder(t2i.Tokenizer()(caption)).pooled for caption in (TWO, t2i.swap(TWO, "colour"))]
    torch.testing.assert_close(*read)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_nearly_the_same(dtype, device):
    clip = t2i.CLIP().eval()
    tokens, images = t2i.Tokenizer()([ONE, TWO]), uniform(2, 3, 32, 32, dtype=torch.float32)
    exact = clip.embed_text(tokens), clip.embed_images(images)
    clip = clip.to(device, dtype)
    half = clip.embed_text(tokens.to(device)), clip.embed_images(images.to(device))
    for one, two in zip(exact, half, strict=True):
        assert two.dtype == torch.float32  # cosines need it
        assert F.cosine_similarity(one, two.cpu()).min() > 0.999


# CLIP


def loop_loss(x: torch.Tensor, y: torch.Tensor, scale: float, twins: torch.Tensor) -> torch.Tensor:
    """The contrastive loss, one logarithm after the other."""
    total, B = 0.0, len(x)
    for i in range(B):
        row = [torch.exp(scale * torch.dot(x[i], other)) for other in (*y, *twins)]
        column = [torch.exp(scale * torch.dot(other, y[i])) for other in x]
        own = torch.exp(scale * torch.dot(x[i], y[i]))
        total = total - torch.log(own / sum(row)) / B - torch.log(own / sum(column)) / B
    return total / 2


@drawn
@given(B=st.integers(1, 6), D=st.integers(1, 5), K=st.integers(0, 3), scale=st.floats(0.1, 20), seed=st.integers(0, 99))
def test_contrastive_loss_is_the_loop(B, D, K, scale, seed):
    x, y, twins = (F.normalize(normal(n, D, seed=seed + i), dim=1) for i, n in enumerate((B, B, K)))
    found = t2i.contrastive_loss(x, y, scale, twins if K else None)
    torch.testing.assert_close(found, loop_loss(x, y, scale, twins))


def test_gradients_of_the_contrastive_loss():
    x, y, twins = (normal(n, 4, seed=n).requires_grad_() for n in (3, 3, 2))
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x, y = normal(3, 4, seed=0).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(t2i.contrastive_loss, (x, y, scale, twins))


def test_contrastive_loss_of_strangers_and_of_perfect_pairs():
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert t2i.contrastive_loss(same, same, 10.0).item() == pytest.approx(math.log(8))  # a guess among 8
    apart = torch.eye(8)
    assert t2i.contrastive_loss(apart, apart, 100.0) < 1e-6
    assert t2i.contrastive_loss(apart, apart, 100.0, apart).item() == pytest.approx(
        math.log(2) / 2
    )  # twins that fit too
    for bad in ((torch.ones(2, 3), torch.ones(3, 3)), (torch.ones(3), torch.ones(3))):
        with pytest.raises(ValueError, match=r"images and texts \(B, D\)"):
            t2i.contrastive_loss(*bad, 1.0)
    with pytest.raises(ValueError, match=r"twins \(K, D\)"):
        t2i.contrastive_loss(apart, apart, 1.0, torch.ones(2, 3))


def test_the_scale_stays_below_one_hundred():
    clip = t2i.CLIP()
    assert clip.scale.item() == pytest.approx(1 / 0.07)
    step = t2i.clip_step(clip, torch.optim.SGD([clip.log_scale], lr=1e3))
    tokens = t2i.Tokenizer()([ONE, TWO])
    with torch.no_grad():
        clip.log_scale.fill_(6.0)
    assert clip.scale.item() == pytest.approx(100)
    step((uniform(2, 3, 32, 32, dtype=torch.float32), tokens, tokens[:0]))
    assert clip.log_scale.item() <= math.log(100) + 1e-6


def test_vectors_have_length_one_and_logits_are_scaled_cosines(device):
    clip = t2i.CLIP().to(device)
    images, tokens = uniform(3, 3, 32, 32, dtype=torch.float32).to(device), t2i.Tokenizer()([ONE, TWO]).to(device)
    x, y = clip.embed_images(images), clip.embed_text(tokens)
    for vectors in (x, y):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors), device=device))
    torch.testing.assert_close(clip(images, tokens), clip.scale * F.cosine_similarity(x[:, None], y[None], dim=2))
    torch.testing.assert_close(clip.embed_text(clip.text(tokens)), y)


def test_images_that_clip_refuses():
    clip = t2i.CLIP()
    with pytest.raises(ValueError, match=r"images \(B, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        clip.embed_images(torch.zeros(1, 3, 64, 64))
    with pytest.raises(TypeError, match="uint8"):
        clip.embed_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    step = t2i.clip_step(clip, torch.optim.Adam(clip.parameters()))
    tokens = t2i.Tokenizer()([ONE])
    with pytest.raises(ValueError, match="x / 255"):
        step((torch.full((1, 3, 32, 32), 255.0), tokens, tokens[:0]))


def test_pairs_are_images_captions_and_twins(data):
    pairs = t2i.Pairs(data, brief=0.5, seed=1)
    images, tokens, twins = pairs[torch.arange(len(data))]
    assert torch.equal(images, data.floats()) and len(tokens) == len(data)
    spoken = t2i.Tokenizer().decode(tokens)
    whole = [caption.lower().removesuffix(".") for caption in data.captions]
    brief = sum(len(one) < len(other) for one, other in zip(spoken, whole, strict=True))
    assert 0.3 * len(data) < brief < 0.6 * len(data)  # a few lose nothing
    own = [caption for caption in spoken if t2i.swap(caption, "colour")]
    assert t2i.Tokenizer().decode(twins) == [t2i.swap(caption, "colour") for caption in own]
    kinds = ("place", "shape")
    chosen = torch.arange(len(data)).flip(0)[:20]
    found = t2i.Tokenizer().decode(t2i.Pairs(data, brief=0.5, swaps=kinds, seed=1)[chosen][2])
    expected = [twin for what in kinds for i in chosen if (twin := t2i.swap(spoken[i], what))]
    assert found == expected and len(found) > len(kinds)
    assert not len(t2i.Pairs(data, swaps=())[torch.arange(3)][2])
    assert t2i.Tokenizer().decode(t2i.Pairs(data, brief=0.0)[torch.arange(3)][1]) == whole[:3]


@pytest.mark.parametrize("twins", [False, True])
def test_training_learns_which_caption_belongs_to_which_image(data, twins):
    torch.manual_seed(0)
    clip = t2i.CLIP()
    optimiser = torch.optim.Adam(clip.parameters(), 2e-3)
    step = t2i.clip_step(clip, optimiser, twins=twins)
    few = t2i.Captioned(data.images[:16], data.captions[:16])
    history = Loop(step, t2i.Pairs(few, brief=0.0), steps=25, batch_size=16, stateful={"clip": clip}).run()
    assert history["loss"][0] > 2 > 1 > history["loss"][-1]
    assert t2i.retrieval(clip, few).float().mean() > 0.8


class Reader(nn.Module):
    """A perfect CLIP for tests: images hold the number of their caption; `text` sees words, or a bag of words."""

    def __init__(self, captions: tuple[str, ...], ordered: bool) -> None:
        super().__init__()
        self.log_scale, self.ordered = nn.Parameter(torch.zeros(())), ordered
        self.known = self.embed_text(t2i.Tokenizer()(captions))

    def embed_text(self, tokens: torch.Tensor) -> torch.Tensor:
        one_hot = F.one_hot(tokens, len(t2i.VOCABULARY)).float()
        one_hot[tokens == t2i.PADDING] = 0
        one_hot = F.pad(one_hot, (0, 0, 0, t2i.LONGEST - tokens.shape[1]))
        return F.normalize((one_hot if self.ordered else one_hot.sum(1)).flatten(1), dim=1)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return self.known[(images[:, 0, 0, 0] * 255).round().long()]


def test_scores_of_a_perfect_reader_and_of_a_bag_of_words(data):
    numbers = torch.arange(len(data), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    numbered = t2i.Captioned(numbers, data.captions)
    perfect, bag = (Reader(data.captions, ordered) for ordered in (True, False))
    assert t2i.retrieval(perfect, numbered).all()
    for what in ("colour", "shape", "place"):
        found = t2i.tells_apart(perfect, numbered, what)
        assert found.all() and len(found) == sum(t2i.swap(caption, what) is not None for caption in data.captions)
        assert not t2i.tells_apart(bag, numbered, what).any()  # both fit the same
    answers = t2i.classify(perfect, numbered.floats(slice(5)), data.captions)
    assert answers.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="two objects that differ"):
        t2i.tells_apart(perfect, t2i.Captioned(numbers[:1], (ONE,)), "colour")


# The prior


class Best(nn.Module):
    """The best estimate of X_0 where X_0 = A c + N(0, s² I): a Gaussian's conditional mean."""

    def __init__(self, A: torch.Tensor, s: float, schedule: diffusion.Schedule) -> None:
        super().__init__()
        self.A, self.s, self.schedule = nn.Parameter(A), s, schedule

    def forward(self, x, t, condition=None, condition_mask=None):
        a, b = self.schedule.at(t, x)
        mean = condition @ self.A.T
        gain = a * self.s**2 / (a**2 * self.s**2 + b**2)
        return mean + gain * (x - a * mean)


def test_vectors_of_gaussian_data_have_the_right_mean_and_covariance():
    A, s = normal(3, 2, seed=1), 0.4
    denoiser = diffusion.Denoiser(Best(A, s, diffusion.cosine()), diffusion.cosine(), "x0", shape=(3,)).double()
    condition = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    found = t2i.draw_vectors(denoiser, condition.expand(4000, -1), steps=30, rng=rng())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.mean(0), (condition @ A.T)[0], atol=0.03, rtol=0)
    torch.testing.assert_close(found.T.cov(), s**2 * torch.eye(3).double(), atol=0.015, rtol=0)


def test_a_prior_learns_gaussian_data():
    torch.manual_seed(0)
    schedule = diffusion.cosine()
    network = t2i.PriorNetwork(dim=4, width=32, layers=2)
    prior = diffusion.Denoiser(network, schedule, "x0", shape=(4,))
    c = normal(4000, 4, dtype=torch.float32)
    x = c.roll(1, dims=1) + 0.3 * normal(4000, 4, seed=1, dtype=torch.float32)
    optimiser = torch.optim.Adam(prior.parameters(), 3e-3)
    step = diffusion.diffusion_step(prior, optimiser, rng(2), drop=0.1)
    Loop(step, torch.utils.data.TensorDataset(x, c), steps=400, batch_size=256, stateful={"prior": prior}).run()
    drawn = t2i.draw_vectors(prior, c[:1000], rng=rng(3))
    error = (drawn - c[:1000].roll(1, dims=1)).square().mean().sqrt().item()
    assert 0.1 < error < 0.4  # the data's own is 0.3; without the condition it would be 1.4, without noise 0


def test_the_prior_knows_no_caption():
    network = t2i.PriorNetwork(dim=4, width=8, layers=1).double()
    nn.init.normal_(network.nothing)
    x, t, c = normal(3, 4), torch.tensor([1, 500, 1000]), normal(3, 4, seed=1)
    mask = torch.tensor([True, False, True])
    mixed = network(x, t, c, mask)
    torch.testing.assert_close(mixed[1], network(x, t)[1])
    torch.testing.assert_close(mixed[[0, 2]], network(x, t, c)[[0, 2]])
    assert (network(x, t, c) - network(x, t)).abs().max() > 1e-3
    for bad in ((x[:, :3], t, None), (x, t[:2], None), (x, t, c[:2])):
        with pytest.raises(ValueError, match=r"expected x \(B, 4\)"):
            network(*bad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_prior_in_half_precision(dtype, device):
    torch.manual_seed(0)
    prior = diffusion.Denoiser(t2i.PriorNetwork(dim=8, width=16), diffusion.cosine(), "x0", shape=(8,)).to(device)
    texts = F.normalize(normal(5, 8, dtype=torch.float32), dim=1).to(device)
    exact = t2i.draw_embeddings(prior, texts, rng=rng())
    half = t2i.draw_embeddings(prior.to(dtype), texts, rng=rng())
    assert half.dtype == torch.float32 and F.cosine_similarity(exact, half).min() > 0.98


def test_more_candidates_come_nearer_to_the_caption():
    prior = diffusion.Denoiser(t2i.PriorNetwork(dim=8, width=16), diffusion.cosine(), "x0", shape=(8,))
    texts = F.normalize(normal(20, 8, dtype=torch.float32), dim=1)
    one, four = (t2i.draw_embeddings(prior, texts, candidates=n, steps=3, rng=rng()) for n in (1, 4))
    torch.testing.assert_close(four.norm(dim=1), torch.ones(20))
    assert (four * texts).sum() > (one * texts).sum()
    with pytest.raises(ValueError, match="at least one candidate; got 0"):
        t2i.draw_embeddings(prior, texts, candidates=0)
    with pytest.raises(ValueError, match="at least one image; got 0"):
        t2i.draw_embeddings(prior, texts[:0])
    with pytest.raises(ValueError, match="expected x"):
        t2i.draw_embeddings(prior, texts[:, :5])


# What ships


@pytest.fixture(scope="module")
def unseen():
    """Scenes that neither training nor the recipe's own judgement knows."""
    return t2i.draw_captioned(300, seed=50)


def test_the_shipped_clip_finds_captions_and_tells_twins_apart(unseen):
    clip = zoo.load("clip_scenes", "cpu")
    assert t2i.retrieval(clip, unseen).float().mean() >= 0.96  # of 300; the header's is of 500
    score = json.loads(checkpoints.load("clip_scenes")[1]["score"])
    assert score["retrieval"]["value"] >= 0.97 and score["retrieval of held-out pairs"]["value"] >= 0.95
    for what, least in (("colour", 0.98), ("shape", 0.96), ("place", 0.98)):
        assert t2i.tells_apart(clip, unseen, what).float().mean() >= least - 0.03  # of about 95
        assert score[f"swaps of {what}"]["value"] >= least


def test_the_shipped_clip_understands_short_sentences(unseen):
    clip = zoo.load("clip_scenes", "cpu")
    brief = tuple(t2i.shorten(caption, ("size", "texture")) for caption in unseen.captions)
    assert t2i.retrieval(clip, t2i.Captioned(unseen.images, brief)).float().mean() > 0.9
    lights = [scenes.parse(caption).light for caption in unseen.captions]
    clear = [i for i, light in enumerate(lights) if light != "dusk"]
    nights = torch.tensor([lights[i] == "night" for i in clear])
    answers = t2i.classify(clip, unseen.floats(clear), ["A disc, on sand by day.", "A disc, on sand at night."])
    assert (answers.bool() == nights).float().mean() > 0.95


def test_the_shipped_prior_comes_nearer_to_the_image_than_the_caption_is(unseen):
    clip, prior = (zoo.load(name, "cpu") for name in ("clip_scenes", "prior_scenes"))
    images, texts = t2i.embed(clip, unseen.floats(), unseen.captions)
    drawn = t2i.draw_embeddings(prior, texts, rng=rng())
    near, nearer = ((vectors * images).sum(1).mean().item() for vectors in (texts, drawn))
    assert nearer > near + 0.03
    score = json.loads(checkpoints.load("prior_scenes")[1]["score"])
    assert nearer == pytest.approx(score["cosine of the prior's, best of 2"], abs=0.02)
    assert near == pytest.approx(score["cosine of the caption's vector"], abs=0.02)
    again = t2i.draw_embeddings(prior, texts, rng=rng(1))
    assert 0.5 < (drawn * again).sum(1).mean() < 0.99  # one caption, several possible images


@pytest.mark.parametrize("model", ["clip_scenes", "prior_scenes"])
def test_the_recipe_runs(model, tmp_path, monkeypatch):
    import recipes.text_to_image as recipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "SCENES", 1600)
    scores = recipe.main(["--quick", "--model", model])[model]
    metadata = checkpoints.restore(zoo.build(model), tmp_path / "build" / f"{model}_quick.safetensors")
    assert f"--model {model}" in metadata["recipe"] and json.loads(metadata["score"]).keys() == scores.keys()
