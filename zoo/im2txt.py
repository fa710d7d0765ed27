"""The captioner of an im2txt checkpoint (Vinyals et al. 2015, arXiv:1411.4555; tensorflow/models, research/im2txt).

Takes a ForeignCheckpoint and the words of its captioner. Gives a Captioner: the head's tensors in our names, order and
layout, its record for the manifest, `vocabulary.json`. Next: `zoo.importer`.

What differs between theirs and ours:

- The LSTM is one matrix of [inputs + units, 4 · units], gates in the order input, cell, forget, output; 1 is added to
  the forget gate whenever it runs. Ours is Keras': a matrix for inputs, one for the state, gates in the order input,
  forget, cell, output, and the 1 is in the bias.
- Words have other numbers: `vocabulary.json` begins with four tokens of its own. im2txt pads by a mask, so our `<pad>`
  has nothing that it could come from: its output is one that is never chosen.
- Outputs that no word has become words `<unused-N>`: they take part in the softmax, so that probabilities stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from zoo.architectures.facts import Shape
from zoo.errors import InvalidArgument
from zoo.im2txt_vocabulary import END, START, UNKNOWN, MissingWordCounts, WordCounts, check_outputs
from zoo.input_spec import InputSpec
from zoo.manifest import Head, VocabularyFacts
from zoo.readers.checkpoint import ForeignCheckpoint
from zoo.restore_report import Mismatch, RestoreReport, guess_cause
from zoo.vocabulary_file import PAD, SPECIALS, TOKENIZER, vocabulary_bytes

# TensorFlow 1.2 and later, 1.0 and 1.1, 0.12 and before; with and without the scope of dynamic_rnn.
_LSTM_SCOPES = ("lstm/basic_lstm_cell", "lstm/BasicLSTMCell/Linear", "lstm/BasicLSTMCell", "lstm/rnn/basic_lstm_cell")
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "image": ("image_embedding/weights",),
    "image_bias": ("image_embedding/biases",),  # im2txt's has none
    "words": ("seq_embedding/map",),
    "lstm": tuple(f"{scope}/{name}" for scope in _LSTM_SCOPES for name in ("kernel", "weights", "Matrix")),
    "lstm_bias": tuple(f"{scope}/{name}" for scope in _LSTM_SCOPES for name in ("bias", "biases", "Bias")),
    "output": ("logits/weights",),
    "output_bias": ("logits/biases",),
}
_FORGET_BIAS = 1.0  # BasicLSTMCell's default, which im2txt leaves
_NEVER = -1e4  # the output of <pad>: e^-10000 is 0 in any float, and a mean over outputs stays small

# The configuration that im2txt's checkpoints were trained and are run with (configuration.py, caption_generator.py).
_ARGUMENTS: dict[str, JsonValue] = {
    "normalise_features": "none",
    "feature_dropout": 0.0,
    "embedding_dropout": 0.3,
    "output_dropout": 0.3,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "word_bag": 0.0,
    "max_words": 20,
    "beam_size": 3,
    "length_penalty": 0.0,
}


class NoCaptioner(InvalidArgument):
    """A vocabulary for a checkpoint that has a backbone only."""


class IncompleteCaptioner(InvalidArgument):
    """A checkpoint that has some of a captioner's tensors, or some of them twice."""


class NotFloats(InvalidArgument):
    """Weights of another type."""


@dataclass(frozen=True, kw_only=True)
class CaptionerNames:
    """What a checkpoint calls a captioner's tensors."""

    image: str
    image_bias: str | None
    words: str
    lstm: str
    lstm_bias: str
    output: str
    output_bias: str

    @property
    def all(self) -> frozenset[str]:
        names = (self.image, self.image_bias, self.words, self.lstm, self.lstm_bias, self.output, self.output_bias)
        return frozenset(name for name in names if name is not None)


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A captioner head, ready for the catalogue.

    Attributes:
        tensors: by our names; empty, and no head, where `report` has mismatches.
        report: what became of the checkpoint's tensors. A matrix that is cut in two stands there as two.
        notes: for the user.
    """

    tensors: Mapping[str, np.ndarray]
    head: Head | None
    vocabulary: bytes
    vocabulary_facts: VocabularyFacts | None
    report: RestoreReport
    notes: tuple[str, ...]


def find_captioner(names: Iterable[str], source: str | Path, *, vocabulary: Path | None) -> CaptionerNames | None:
    """The captioner among the names of a checkpoint; None where there is none.

    Args:
        vocabulary: the file of its words, if the user named one.
    Raises:
        NoCaptioner: a vocabulary, but no captioner. MissingWordCounts: a captioner, but no vocabulary.
        IncompleteCaptioner, naming what is missing or there twice.
    """
    known = set(names)
    scope = _scope(known)
    found = {
        part: [scope + name for name in spellings if scope + name in known] for part, spellings in _SPELLINGS.items()
    }
    if not any(found[part] for part in ("image", "words", "lstm", "lstm_bias")):
        if vocabulary is not None:
            raise NoCaptioner(
                f"{source} has a backbone only, no captioner head: {vocabulary} has nothing to name the outputs of",
                hint="import it without --vocabulary, then train a captioner: finetune run --head captioner",
            )
        return None
    if vocabulary is None:
        raise MissingWordCounts(
            f"{source} holds an im2txt captioner, whose words are in a file of their own", hint=_hint(source, scope)
        )
    missing = [" or ".join(_SPELLINGS[part][:2]) for part in found if not found[part] and part != "image_bias"]
    twice = [" and ".join(stored) for stored in found.values() if len(stored) > 1]
    if missing or twice:
        parts = [f"has no {name}" for name in missing] + [f"has both {both}" for both in twice]
        raise IncompleteCaptioner(
            f"{source} holds an im2txt captioner that is not whole: it {'; it '.join(parts)}",
            hint=f"import the backbone alone: {_excludes(scope)}",
        )
    bias = found.pop("image_bias")
    return CaptionerNames(image_bias=bias[0] if bias else None, **{part: stored[0] for part, stored in found.items()})


def read_captioner(
    checkpoint: ForeignCheckpoint, names: CaptionerNames, *, words: WordCounts, where: str, feature_dim: int
) -> Captioner:
    """Converts the tensors.

    Args:
        where: the file of the words, for messages.
        feature_dim: D of the backbone's feature vectors.
    Raises:
        InvalidWordCounts: a file of another captioner. NotFloats.
    """
    tensors = checkpoint.tensors
    odd = [f"{name} is {tensors[name].dtype}" for name in sorted(names.all) if tensors[name].dtype != np.float32]
    if odd:
        raise NotFloats(f"the captioner has weights that are no floating-point numbers: {', '.join(odd)}")
    mismatched = _mismatches(tensors, names, feature_dim)
    if mismatched:
        report = RestoreReport(mismatched=mismatched, guess=guess_cause(mismatched))
        return Captioner(tensors={}, head=None, vocabulary=b"", vocabulary_facts=None, report=report, notes=())
    size, embedding = tensors[names.words].shape
    spare = check_outputs(words, tensors[names.words], where)
    ours = _image(tensors, names, embedding) | _lstm(tensors, names, embedding)
    ours |= _words(tensors, names, _order(words, spare))
    listed = [word for word in words.words if word not in (START, END, UNKNOWN)]
    counts = [words.counts[words.numbers[word]] for word in listed]
    return Captioner(
        tensors=ours,
        head=Head(
            kind="captioner",
            arguments={
                "embedding": embedding,
                "units": tensors[names.output].shape[0],
                "min_count": max(1, min(counts, default=1)),
                **_ARGUMENTS,
            },
        ),
        vocabulary=vocabulary_bytes(
            words=[*listed, *(f"<unused-{number}>" for number in range(size - spare, size))],
            counts=[*counts, *[0] * spare],
            min_count=max(1, min(counts, default=1)),
        ),
        vocabulary_facts=VocabularyFacts(size=size + 1, tokenizer=TOKENIZER),
        report=_report(names, embedding, checkpoint.widened),
        notes=tuple(_notes(words, spare, where)),
    )


def other_heads(names: Iterable[str]) -> dict[str, str]:
    """Stored names of a classifier beside the captioner → why nothing wants them: a version has one head."""
    return {name: "the classifier's output layer: the captioner is the head" for name in names if "/Logits/" in name}


def usual_input_spec(spec: InputSpec) -> InputSpec:
    """What im2txt shows the network: photos squashed to 346 × 346, not antialiased, of which the middle 299 × 299."""
    return spec.model_copy(update={"fit": "squash", "crop_fraction": 299 / 346, "antialias": False})


def _scope(names: Set[str]) -> str:
    """What stands before the captioner's scopes, where something does."""
    for part in ("words", "image"):
        (name,) = _SPELLINGS[part]
        scopes = [stored.removesuffix(name) for stored in names if stored == name or stored.endswith(f"/{name}")]
        if len(scopes) == 1:
            return scopes[0]
    return ""


def _hint(source: str | Path, scope: str) -> str:
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    beside = folder / "word_counts.txt"
    there = f" (there is {beside})" if beside.is_file() else ""
    return f"name it: --vocabulary word_counts.txt{there}; or import the backbone alone: {_excludes(scope)}"


def _excludes(scope: str) -> str:
    return " ".join(f"--exclude {scope}{each}" for each in ("image_embedding", "seq_embedding", "lstm", "logits"))


def _mismatches(tensors: Mapping[str, np.ndarray], names: CaptionerNames, feature_dim: int) -> tuple[Mismatch, ...]:
    """Sizes as the words' table and the LSTM's matrix have them; everything else must agree."""
    shapes = {name: tuple(tensors[name].shape) for name in names.all}
    size, embedding = (shapes[names.words] + (0, 0))[:2]
    units = shapes[names.lstm][-1] // 4 if shapes[names.lstm] else 0
    wanted: dict[str, tuple[str, Shape]] = {
        names.image: ("image_embedding/kernel", (feature_dim, embedding)),
        names.words: ("word_embedding/embeddings", (size, embedding)),
        names.lstm: ("lstm/kernel and recurrent_kernel", (embedding + units, 4 * units)),
        names.lstm_bias: ("lstm/bias", (4 * units,)),
        names.output: ("output/kernel", (units, size)),
        names.output_bias: ("output/bias", (size,)),
    }
    if names.image_bias is not None:
        wanted[names.image_bias] = ("image_embedding/bias", (embedding,))
    return tuple(
        Mismatch(name=f"head/{ours} (stored as {stored})", stored=shapes[stored], wanted=shape)
        for stored, (ours, shape) in wanted.items()
        if shapes[stored] != shape
    )


def _image(tensors: Mapping[str, np.ndarray], names: CaptionerNames, embedding: int) -> dict[str, np.ndarray]:
    bias = np.zeros(embedding, np.float32) if names.image_bias is None else tensors[names.image_bias]
    return {"image_embedding/kernel": tensors[names.image], "image_embedding/bias": bias}


def _lstm(tensors: Mapping[str, np.ndarray], names: CaptionerNames, embedding: int) -> dict[str, np.ndarray]:
    """Gates from (input, cell, forget, output) to (input, forget, cell, output), the forget gate's 1 into its bias."""

    def gates(value: np.ndarray) -> np.ndarray:
        input_, cell, forget, output = np.split(value, 4, axis=-1)
        return np.concatenate([input_, forget, cell, output], axis=-1)

    matrix, bias = gates(tensors[names.lstm]), gates(tensors[names.lstm_bias])
    units = len(bias) // 4
    bias[units : 2 * units] += np.float32(_FORGET_BIAS)
    return {"lstm/kernel": matrix[:embedding], "lstm/recurrent_kernel": matrix[embedding:], "lstm/bias": bias}


def _order(words: WordCounts, spare: int) -> np.ndarray:
    """im2txt's number of each word of ours, after `<pad>`: start, end, unknown, the words, the spare ones."""
    first = [words.numbers[token] for token in (START, END, UNKNOWN)]
    rest = [number for number in range(len(words.words) + spare) if number not in first]
    return np.asarray([*first, *rest])


def _words(tensors: Mapping[str, np.ndarray], names: CaptionerNames, order: np.ndarray) -> dict[str, np.ndarray]:
    embedding_VE, kernel_UV, bias_V = tensors[names.words], tensors[names.output], tensors[names.output_bias]
    never = np.float32(_NEVER)
    return {
        "word_embedding/embeddings": np.insert(embedding_VE[order], PAD, np.float32(0), axis=0),
        "output/kernel": np.insert(kernel_UV[:, order], PAD, np.float32(0), axis=1),
        "output/bias": np.insert(bias_V[order], PAD, never),
    }


def _report(names: CaptionerNames, embedding: int, widened: Mapping[str, str]) -> RestoreReport:
    """The LSTM's one matrix is two of ours: `…[:512]` are its rows for inputs."""
    renamed = {
        names.image: "head/image_embedding/kernel",
        names.words: "head/word_embedding/embeddings",
        f"{names.lstm}[:{embedding}]": "head/lstm/kernel",
        f"{names.lstm}[{embedding}:]": "head/lstm/recurrent_kernel",
        names.lstm_bias: "head/lstm/bias",
        names.output: "head/output/kernel",
        names.output_bias: "head/output/bias",
    }
    if names.image_bias is not None:
        renamed[names.image_bias] = "head/image_embedding/bias"
    ours = tuple(renamed.values())
    return RestoreReport(
        restored=ours,
        renamed=renamed,
        transposed=tuple(name for name in ours if "image_embedding" not in name),
        widened=tuple(name for stored, name in renamed.items() if stored.partition("[")[0] in widened),
        fresh=() if names.image_bias else ("head/image_embedding/bias",),
    )


def _notes(words: WordCounts, spare: int, where: str) -> Iterable[str]:
    numbers = [words.numbers[token] for token in (START, END, UNKNOWN)]
    yield (
        f"words have other numbers here: im2txt's {START}, {END} and {UNKNOWN} ({', '.join(map(str, numbers))}) became "
        f"{', '.join(map(str, range(1, len(SPECIALS))))}; rows of word_embedding and columns of output are in that "
        f"order, {SPECIALS[PAD]} is new and never said"
    )
    if spare:
        outputs = len(words.words) + spare
        yield (
            f"{where} lists {words.lines} words, the captioner has {outputs} outputs: the last {spare}, which no word "
            "has, are kept as <unused-N>, so that probabilities stay as they were"
        )
    yield "the LSTM's gates were put in Keras' order, and the 1 that im2txt adds to the forget gate into its bias"
    yield (
        f"im2txt split captions by NLTK's word_tokenize, with punctuation as words; {TOKENIZER}, by which training "
        "goes on and captions are scored, has none"
    )
