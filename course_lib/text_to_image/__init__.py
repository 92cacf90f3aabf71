"""Text to image from its parts, as in DALL-E 2 (unCLIP, Ramesh et al. 2022, arXiv 2204.06125), in the toy world.

In reading order: `data` (scenes and what is said of them), `text` (tokeniser and transformer), `clip` (images and
captions in one space), `prior` (from a caption's vector to an image's), `decoder` (from there, or from the words, to
images), `judge` (whether they show what was asked for), `upsampler`.
"""

from course_lib.text_to_image.clip import (
    CLIP,
    EMBEDDING,
    ImageEncoder,
    Pairs,
    classify,
    clip_step,
    contrastive_loss,
    embed,
    retrieval,
    tells_apart,
)
from course_lib.text_to_image.data import (
    HELD_OUT,
    PARTS,
    SIDE,
    Captioned,
    briefer,
    draw_captioned,
    is_held_out,
    shorten,
    swap,
)
from course_lib.text_to_image.decoder import (
    WAYS,
    Decoder,
    DecoderData,
    decoder_step,
    edge_weight,
    from_vectors,
    generate,
    mirrored,
    placed,
    variations,
)
from course_lib.text_to_image.judge import QUESTIONS, Reading, by_objects, read
from course_lib.text_to_image.prior import PriorNetwork, draw_embeddings, draw_vectors, scaled
from course_lib.text_to_image.text import (
    LONGEST,
    PADDING,
    START,
    VOCABULARY,
    Block,
    MultiHeadAttention,
    Read,
    TextEncoder,
    Tokenizer,
    attention,
    check_tokens,
)
from course_lib.text_to_image.upsampler import upsample
