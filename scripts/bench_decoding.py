"""How long a caption takes once its image has been through the backbone: beam search with beam 3, vocabulary of 931.

Captions here never end by themselves, so each has `--words` words; weights are random, times don't depend on them.
`ms_a_word` is one image, warm, compiled as a server has it; `ms_a_word_plain` the same without. `batch_gain`: how many
times less an image takes among 32 than alone, both without XLA; `batch_gain_compiled`: than alone in a server. Every
figure has the best of `--runs` (what the machine can do) and the median (what it did, with whatever else runs on it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.text.vocabulary import END

VOCABULARY = 931
FEATURES, MAP = 1280, (7, 7, 1280)  # of EfficientNet-Lite0
DECODERS: dict[str, dict[str, Any]] = {
    "lstm 256": {"units": 256, "embedding": 256},
    "lstm 512": {"units": 512, "embedding": 512},
    "gru 512": {"units": 512, "embedding": 512, "cell": "gru"},
    "soft 512": {"units": 512, "embedding": 512, "attention": "soft"},
    "top down 512": {"units": 512, "embedding": 512, "attention": "top_down"},
}


def made(wanted: dict[str, Any], words: int) -> CaptionerLayer:
    """A captioner with random weights that never ends a caption."""
    arguments = CaptionerArguments.model_validate({"min_count": 1, "max_words": words, "beam_size": 3, **wanted})
    examples = [Example(id="all", captions=(" ".join(f"w{number}" for number in range(VOCABULARY - 4)),))]
    assets = CAPTIONER.learn_assets(examples, arguments)
    shape = MAP if "attention" in wanted else None
    layer = CAPTIONER.build(arguments=arguments, feature_dim=FEATURES, assets=assets, seed=1, feature_map_shape=shape)
    layer.output_projection.bias.assign(np.where(np.arange(VOCABULARY) == END, -50.0, 0.0))
    return layer


def milliseconds(action: Callable[[], Any], runs: int) -> dict[str, float]:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        times.append((time.perf_counter() - started) * 1000)
    return {"best": round(min(times), 3), "median": round(statistics.median(times), 3)}


def measure(name: str, wanted: dict[str, Any], words: int, runs: int) -> dict[str, Any]:
    layer = made(wanted, words)
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(32, layer.row.size)).astype(np.float32)
    one, many = tf.constant(rows[:1]), tf.constant(rows)

    def decode(batch: tf.Tensor, **asked: Any) -> np.ndarray:
        return np.asarray(layer.decode(batch, **asked).tokens_BKT)

    assert (decode(one) > 0).all(), "a caption ended"
    decode(many)
    alone = milliseconds(lambda: decode(one), runs)
    among = milliseconds(lambda: decode(many), max(3, runs // 4))
    warm = layer.decoding_traces
    for length in range(1, words + 1):
        decode(one, max_words=length)
        decode(many, max_words=length)
    retraced = layer.decoding_traces - warm
    layer.compile_decoding()
    decode(one)
    compiled = milliseconds(lambda: decode(one), runs)
    return {
        "figure": f"decoding {name}",
        "words": words,
        "ms_a_word": {key: round(value / words, 3) for key, value in compiled.items()},
        "ms_a_word_plain": {key: round(value / words, 3) for key, value in alone.items()},
        "ms_an_image_of_32": {key: round(value / 32, 3) for key, value in among.items()},
        "batch_gain": round(alone["best"] / (among["best"] / 32), 1),
        "batch_gain_compiled": round(compiled["best"] / (among["best"] / 32), 1),
        "traces_of_other_lengths": retraced,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoders", nargs="*", choices=[*DECODERS, []], help="default: all")
    parser.add_argument("--words", type=int, default=13)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    for name in options.decoders or DECODERS:
        print(json.dumps(measure(name, DECODERS[name], options.words, options.runs)), flush=True)


if __name__ == "__main__":
    main()
