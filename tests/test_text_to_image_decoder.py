"""The decoder told in three ways, the upsampler, and the judge: on real scenes, and on captions that are wrong."""

import importlib
import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, rng, uniform

from course_lib import scenes, upsampling
from course_lib.base import checkpoints, zoo
from course_lib.text_to_image import EMBEDDING, Captioned, Tokenizer, decoder, draw_captioned, judge, swap, upsampler
from course_lib.text_to_image.clip import CLIP

CAPTION = "A large red star on the left and a small blue disc on the right, on sand by the water at dusk."
LEAST = 0.8  # class and colour of one object right; the header tells the proportion of more captions


def awake(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In evaluation mode, and without layers that begin at 0."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.05 * normal(*parameter.shape, seed=seed + i, dtype=parameter.dtype))
    return module.eval()


@pytest.fixture(scope="module")
def network() -> decoder.Decoder:
    torch.manual_seed(0)
    return awake(decoder.Decoder())


@pytest.fixture(scope="module")
def drawn() -> Captioned:
    return draw_captioned(60, seed=4, plain=True)


# What the decoder is told


def test_told_by_tokens(network):
    """Words matter, and their order; padding does not; a mask tells nothing to some."""
    captions = [CAPTION, swap(CAPTION, "colour"), "A red star."]
    tokens = Tokenizer()(captions)
    x, t = normal(1, 3, 32, 32).float().repeat(3, 1, 1, 1), torch.full((3,), 600)
    told, silent = network(x, t, tokens), network(x, t)
    assert torch.pdist(torch.cat([told, silent[:1]]).flatten(1)).min() > 1e-3
    alone = network(x[:1], t[:1], Tokenizer()(captions[2]))  # without padding
    torch.testing.assert_close(alone, told[2:], rtol=1e-3, atol=1e-4)
    masked = network(x, t, tokens, torch.tensor([True, False, True]))
    torch.testing.assert_close(masked[1], silent[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(masked[0], told[0], rtol=1e-3, atol=1e-4)


def test_told_by_vectors(network):
    """The same vector says something else as a text's than as an image's."""
    vectors = F.normalize(normal(2, EMBEDDING).float(), dim=1)
    x, t = normal(1, 3, 32, 32).float().repeat(2, 1, 1, 1), torch.full((2,), 600)
    text, image = (network(x, t, decoder.placed(vectors, way)) for way in ("text", "image"))
    assert torch.pdist(torch.cat([text, image, network(x, t)[:1]]).flatten(1)).min() > 1e-3
    given = decoder.placed(vectors, "text")
    masked = network(x, t, given, torch.tensor([True, False]))
    torch.testing.assert_close(masked, torch.stack([text[0], network(x, t)[1]]), rtol=1e-3, atol=1e-4)


def test_a_vector_is_told_beside_the_time_and_in_rows(network):
    """Both reach the image; the rows are the U-Net's context, as words would be."""
    given = decoder.placed(F.normalize(normal(1, EMBEDDING).float(), dim=1), "image")
    x, t = normal(1, 3, 32, 32).float(), torch.tensor([600])
    rows = network.as_rows(given)
    assert rows.shape == (1, decoder.ROWS, network.text.dim)
    told = network(x, t, given)
    torch.testing.assert_close(told, network.unet(x, t, given, context=rows))
    without = [network.unet(x, t, given), network.unet(x, t, context=rows)]
    assert min((told - other).abs().max() for other in without) > 1e-3


def test_placed():
    vectors = F.normalize(normal(2, EMBEDDING), dim=1)
    text, image = (decoder.placed(vectors, way) for way in ("text", "image"))
    torch.testing.assert_close(text, torch.cat([vectors * math.sqrt(EMBEDDING), torch.zeros_like(vectors)], 1))
    torch.testing.assert_close(image, text.roll(EMBEDDING, 1))
    for bad, way in ((vectors[:, 1:], "text"), (vectors[0], "image"), (vectors, "tokens")):
        with pytest.raises(ValueError, match=r"expected vectors \(B, 128\) of a text or an image; got"):
            decoder.placed(bad, way)


def test_conditions():
    clip, prior = CLIP().eval(), zoo.build("prior_scenes").eval()
    given = {way: decoder.conditions([CAPTION, ""], way, clip, prior, rng()) for way in decoder.WAYS}
    assert given["tokens"].tolist() == Tokenizer()([CAPTION, ""]).tolist()
    vectors = clip.embed_text(Tokenizer()([CAPTION, ""]))
    torch.testing.assert_close(given["text"], decoder.placed(vectors, "text"))
    lengths = given["image"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), math.sqrt(EMBEDDING)))
    assert not given["image"][:, :EMBEDDING].any()
    with pytest.raises(ValueError, match="expected a way of text, image, tokens; got 'telepathy'"):
        decoder.conditions(CAPTION, "telepathy", clip, prior)
    with pytest.raises(ValueError, match=r"unknown words: 'stra' \(star.*\)"):
        decoder.conditions("A red stra.", "text", clip, prior)


# How it learns


def test_edge_weights_are_their_formula():
    images = uniform(2, 3, 5, 4)
    found = decoder.edge_weight(images, 3.0)
    expected = torch.ones(2, 1, 5, 4, dtype=images.dtype)
    for b in range(2):
        for i in range(5):
            for j in range(4):
                around = images[b, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(1)
                expected[b, 0, i, j] += 3 * (around.max(1).values - around.min(1).values).max()
    torch.testing.assert_close(found, expected / expected.mean())
    assert torch.equal(decoder.edge_weight(images, 0.0), torch.ones_like(found))


def test_a_mirror_of_a_mirror_is_the_scene(drawn):
    mirrored = decoder.mirrored(drawn)
    assert torch.equal(mirrored.images, drawn.images.flip(3))
    twice = decoder.mirrored(mirrored)
    assert twice.captions == drawn.captions
    assert torch.equal(twice.images, drawn.images)
    for caption, other in zip(drawn.captions, mirrored.captions, strict=True):
        places = [Counter(m.place for m in scenes.parse(c).objects) for c in (caption, other)]
        assert places[0]["left"] == places[1]["right"]
        assert places[0]["middle"] == places[1]["middle"]


@pytest.mark.parametrize("way", decoder.WAYS)
def test_a_step_teaches_the_way_that_it_tells(way, drawn):
    """Only what the way uses gets gradients; the loss of the same few images falls."""
    torch.manual_seed(0)
    denoiser = zoo.build("decoder_scenes")
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    step = decoder.decoder_step(denoiser, optimiser, rng(), ways=[way], drop=0.0)
    vectors = F.normalize(normal(2, 60, EMBEDDING).float(), dim=2)
    batch = drawn.floats(slice(6)), Tokenizer()(drawn.captions[:6]), vectors[0, :6], vectors[1, :6]
    before = {name: p.clone() for name, p in denoiser.named_parameters()}
    losses = [float(step(batch)["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    moved = {name for name, p in denoiser.named_parameters() if not torch.equal(p, before[name])}
    assert ("network.text.words.weight" in moved) == (way == "tokens")
    assert ("network.rows.0.weight" in moved) == (way != "tokens")
    matrix = "network.unet.embedding.condition.weight"
    change = (denoiser.get_parameter(matrix) - before[matrix]).abs().sum(0)
    assert [bool(half.any()) for half in change.split(EMBEDDING)] == [way == "text", way == "image"]


def test_a_way_named_twice_is_told_twice_as_often(drawn, monkeypatch):
    denoiser = zoo.build("decoder_scenes")
    vectors = F.normalize(normal(60, EMBEDDING).float(), dim=1)
    told: Counter[str] = Counter()

    def watch(x, t, condition, condition_mask, context, context_mask):
        """How many samples are told by a text's vector, by words, by nothing."""
        texts = condition[:, :EMBEDDING].any(1) & condition_mask
        told.update(text=int(texts.sum()), image=int((condition_mask & ~texts).sum()))
        told.update(tokens=int(context_mask[:, 0].logical_and(~condition_mask).sum()), all=len(x))
        return torch.zeros_like(x) + 0 * context.sum()

    monkeypatch.setattr(denoiser.network.unet, "forward", watch)
    step = decoder.decoder_step(
        denoiser, torch.optim.SGD(denoiser.parameters(), 0.0), rng(), ways=["text", "text", "tokens"], drop=0.25
    )
    batch = drawn.floats(), Tokenizer()(drawn.captions), vectors, vectors
    for _ in range(5):
        step(batch)
    assert told["all"] == 300 and told["image"] == 0
    assert told["text"] / 300 == pytest.approx(0.5, abs=0.1)
    assert told["tokens"] / 300 == pytest.approx(0.25, abs=0.1)


def test_a_step_refuses():
    denoiser = zoo.build("decoder_scenes")
    optimiser = torch.optim.Adam(denoiser.parameters())
    for options in ({"ways": []}, {"ways": ["tokens", "smells"]}, {"drop": 1.5}):
        with pytest.raises(ValueError, match=r"expected ways of text, image, tokens and drop in \[0, 1\]"):
            decoder.decoder_step(denoiser, optimiser, rng(), **options)


def test_data(drawn):
    clip = CLIP().eval()
    data = decoder.DecoderData(drawn, clip, brief=0.5)
    images, tokens, texts, pictures = data[torch.tensor([3, 0])]
    assert images.shape == (2, 3, 32, 32)
    assert images.max() <= 1
    torch.testing.assert_close(texts, clip.embed_text(tokens))
    torch.testing.assert_close(pictures, clip.embed_images(images))
    silent = decoder.DecoderData(drawn)[torch.tensor([3, 0])]
    assert not silent[2].any()
    assert not silent[3].any()


# The judge


@pytest.fixture(scope="module")
def answers(drawn) -> dict[str, torch.Tensor]:
    return judge.judge(drawn.floats(), drawn.captions)


def test_the_judge_agrees_with_real_scenes(answers):
    """Its ceiling, and that of what it asks: places are those of feet, not of boxes, so some differ."""
    floors = dict.fromkeys(judge.QUESTIONS, 0.93) | {"place": 0.85, "all": 0.8}
    assert set(answers) == set(floors)
    for question, floor in floors.items():
        assert answers[question].float().mean() >= floor, question


def test_the_judge_does_not_take_wrong_captions(drawn, answers):
    """Twins with exchanged colours or shapes have all the words, and are wrong together all the same."""
    for what, alone in (("colour", "colour"), ("shape", "class")):
        pairs = [(i, swap(caption, what)) for i, caption in enumerate(drawn.captions)]
        chosen = [(i, twin) for i, twin in pairs if twin]
        found = judge.judge(drawn.floats([i for i, _ in chosen]), [twin for _, twin in chosen])
        assert not found["class and colour"].any()
        assert found[alone].float().mean() > 0.85
    others = judge.judge(drawn.floats(), drawn.captions[1:] + drawn.captions[:1])
    assert others["all"].float().mean() < 0.05
    places = judge.judge(drawn.floats().flip(3), drawn.captions)["place"]
    one_sided = torch.tensor(
        [{m.place for m in scenes.parse(c).objects} in ({"left"}, {"right"}) for c in drawn.captions]
    )
    assert not (places & one_sided & answers["place"]).any()


def test_what_the_judge_reads():
    """One thing on an empty plain; at twice the size its boxes are twice as large."""
    one = draw_captioned(20, seed=6, plain=True, objects=(1, 1))
    small = judge.read(one.floats())
    large = judge.read(F.interpolate(one.floats(), scale_factor=2.0, mode="bicubic", antialias=True).clamp(0, 1))
    same = 0
    for a, b, caption in zip(small, large, one.captions, strict=True):
        if len(a.objects) == len(b.objects) == 1:
            assert b.objects[0].box == pytest.approx([2 * side for side in a.objects[0].box], abs=3)
            said = scenes.parse(caption)
            same += f"{said.objects[0].colour} {said.objects[0].name}" in str(a) and said.light in str(a)
    assert same >= 17
    nothing = judge.read(torch.full((1, 3, 32, 32), 0.5))[0]
    assert nothing.objects == ()
    assert str(nothing).startswith("nothing; ")


def test_by_objects(drawn, answers):
    table = judge.by_objects(answers, drawn.captions)
    one = torch.tensor([len(scenes.parse(caption).objects) == 1 for caption in drawn.captions])
    assert table["one"]["class"].value == pytest.approx(float(answers["class"][one].float().mean()))
    assert table["one"]["class"].n + table["two"]["class"].n == len(drawn)
    assert set(judge.by_objects({"all": torch.tensor([True])}, [CAPTION])) == {"two"}


def test_the_judge_refuses():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="a caption for each of 1 images, got 2"):
        judge.judge(image, [CAPTION, CAPTION])
    with pytest.raises(ValueError, match="expected a caption as of describe"):
        judge.judge(image, ["A red star."])
    with pytest.raises(ValueError, match=r"square images \(B, 3, H, H\), got \(1, 3, 32, 16\)"):
        judge.read(image[..., :16])
    with pytest.raises(ValueError, match=r"square images \(B, 3, H, H\), got \(1, 1, 32, 32\)"):
        judge.read(image[:, :1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        judge.read(image + 2)
    with pytest.raises(TypeError):
        judge.read(image.byte())


# The upsampler


def test_an_untrained_upsampler_is_bicubic():
    x = uniform(2, 3, 8, 6, dtype=torch.float32)
    network = upsampler.Upsampler(width=32, doublings=1).eval()
    torch.testing.assert_close(network(x), upsampling.bicubic(x, scale_factor=2))
    torch.testing.assert_close(upsampler.upsample(network, x), network(x).detach().clamp(0, 1))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(2, 1, 8, 6\)"):
        network(x[:, :1])


def test_pairs_are_the_same_scene():
    small, large = upsampler.draw_pairs(4, seed=1)
    assert (small.shape, large.shape) == ((4, 3, 32, 32), (4, 3, 64, 64))
    difference = F.avg_pool2d(large.float(), 2) - small.float()
    assert difference.abs().mean() < 0.03 * 255
    with pytest.raises(ValueError, match="at least one scene; got 0"):
        upsampler.draw_pairs(0, seed=1)


def test_psnr_is_its_formula():
    a, b = uniform(3, 3, 4, 4), uniform(3, 3, 4, 4, seed=1)
    expected = [10 * math.log10(1 / float(((x - y) ** 2).mean())) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(upsampler.psnr(a, b), torch.tensor(expected, dtype=a.dtype))


def test_an_upsampler_learns():
    torch.manual_seed(0)
    network = upsampler.Upsampler(width=8, blocks=1, doublings=1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    pairs = upsampler.draw_pairs(8, seed=2)
    step = upsampler.upsampler_step(network, optimiser, rng(), noise=0.0)
    errors = [float(step(pairs)["error"]) for _ in range(80)]
    assert sum(errors[-8:]) < 0.95 * sum(errors[:8])


# What ships


def test_from_captions_to_images():
    """The shipped decoder draws what is asked for: setting nearly always, one object's class and colour mostly."""
    asked = draw_captioned(36, seed=77, plain=True, objects=(1, 1)).captions
    images = decoder.generate(asked, rng=rng(1), steps=12)
    assert images.shape == (36, 3, 32, 32)
    assert images.dtype == torch.float32
    found = {question: float(answer.float().mean()) for question, answer in judge.judge(images, asked).items()}
    assert found["light"] >= 0.9
    assert found["colour"] >= 0.85
    assert found["place"] >= 0.85
    assert found["class and colour"] >= LEAST


@pytest.mark.parametrize("way", decoder.WAYS)
def test_every_way_repeats_itself_and_listens(way):
    given = {"way": way, "steps": 2, "guidance_scale": 2.0}
    one, again, other = (decoder.generate(c, rng=rng(3), **given) for c in (CAPTION, CAPTION, "A green tree, on snow."))
    assert torch.equal(one, again)
    assert (one - other).abs().mean() > 0.02


def test_large_images_and_variations():
    asked = ["A red star on the left, on sand by day.", "A blue disc on the right, on snow by day."]
    large = decoder.generate(asked, rng=rng(), steps=4, large=True)
    assert large.shape == (2, 3, 64, 64)
    small = decoder.generate(asked, rng=rng(), steps=4)
    torch.testing.assert_close(F.avg_pool2d(large, 2), small, rtol=0, atol=0.2)
    others = decoder.variations(small, rng=rng(), steps=2, guidance_scale=1.0)
    assert others.shape == small.shape
    vectors = zoo.load("clip_scenes", "cpu").embed_images(small)
    torch.testing.assert_close(decoder.from_vectors(vectors, rng=rng(), steps=2, guidance_scale=1.0), others)
    with pytest.raises(ValueError, match=r"expected vectors \(B, 128\)"):
        decoder.from_vectors(vectors[:, 1:])
    with pytest.raises(ValueError, match="expected a way of"):
        decoder.generate("A red star.", way="dance")


def test_the_shipped_upsampler_is_a_decibel_above_bicubic():
    small, large = (images.float() / 255 for images in upsampler.draw_pairs(20, seed=99))
    ours = upsampler.psnr(upsampler.upsample(zoo.load("upsampler_scenes", "cpu"), small), large).mean()
    bicubic = upsampler.psnr(upsampling.bicubic(small, scale_factor=2).clamp(0, 1), large).mean()
    assert ours > bicubic + 2


@pytest.mark.parametrize("name", ["decoder_scenes", "upsampler_scenes"])
def test_the_recipe_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    recipe = importlib.import_module("recipes.text_to_image")
    scores = recipe.main(["--quick", "--steps", "2", "--model", name])[name]
    metadata = checkpoints.restore(zoo.build(name), tmp_path / "build" / f"{name}_quick.safetensors")
    assert set(json.loads(metadata["score"])) == set(scores)
    assert f"--model {name}" in metadata["recipe"]
    if name == "decoder_scenes":
        assert set(json.loads(metadata["curve"])) == {"1", "2"}
        shipped = checkpoints.load(name)[1]
        assert set(scores) == set(json.loads(shipped["score"]))
        values = {row: score["value"] for row, score in json.loads(shipped["score"]).items()}
        assert values["two objects, real scenes"] > 0.88
        assert values["one object, tokens"] >= 0.9
        assert values["two objects, tokens"] >= 0.6
        assert values["two objects, text"] >= 0.45
        assert len(json.loads(shipped["curve"])) >= 8
    assert name in capsys.readouterr().out
