"""Whole im2txt checkpoints: imported, they caption as im2txt itself does (`tests.finetune.im2txt`, in NumPy)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo.im2txt
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.models.heads.head import Assets
from finetune.models.restore import named_variables, restore
from finetune.predictor import Predictor, WrongHead
from finetune.text.tokenizer import TOKENIZER
from finetune.text.vocabulary import VOCABULARY_FILE, Vocabulary
from tests.finetune.im2txt import SPELLINGS, Im2txt, captioner_tensors
from tests.zoo.foreign import foreign_tensors
from tests.zoo.seeded import write_slim
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.class_names import InvalidClassNames
from zoo.cli.main import app
from zoo.cli.output import run_cli
from zoo.im2txt import CaptionerNames, IncompleteCaptioner, NoCaptioner, find_captioner, read_captioner
from zoo.im2txt_vocabulary import (
    InvalidWordCounts,
    MissingWordCounts,
    WordCounts,
    check_outputs,
    read_word_counts,
)
from zoo.importer import ImportResult, import_checkpoint
from zoo.readers.checkpoint import ForeignCheckpoint
from zoo.restore_report import IncompleteRestore
from zoo.store.local import LocalStore

WORDS = ("a", "</S>", "on", "<S>", ".", "the", "dog", "man", "in", "red", "two", "n't", "frisbee", "café")
OUTPUTS = len(WORDS) + 1  # with the unknown word
FEATURES = 2048
LONGEST = 20
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("catalog")
    return Catalog(LocalStore(folder / "store"), BlobCache(folder / "cache"))


@pytest.fixture(scope="module")
def inception() -> dict[str, np.ndarray]:
    """The backbone as im2txt saves it: without logits, with the AuxLogits that TF-Slim makes beside it."""
    return foreign_tensors("inception_v3", "slim") | {
        "InceptionV3/AuxLogits/Conv2d_2b_1x1/biases": np.zeros(1001, np.float32),
        "global_step": np.int64(3_000_000),
    }


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, inception: dict[str, np.ndarray]) -> Write:
    def writes(captioner: Mapping[str, np.ndarray]) -> Path:
        return write_slim(tmp_path_factory.mktemp("slim") / "model.ckpt-3000000", {**inception, **captioner})

    return writes


def word_counts(folder: Path, words: tuple[str, ...] = WORDS, *, python_3: bool = False) -> Path:
    """As build_mscoco_data.py writes them: no line end after the last line."""
    path = folder / "word_counts.txt"
    shown = [repr(word.encode()) for word in words] if python_3 else words
    path.write_text("\n".join(f"{word} {900 - number}" for number, word in enumerate(shown)), encoding="utf-8")
    return path


def small(*, outputs: int = OUTPUTS, **options: Any) -> dict[str, np.ndarray]:
    return captioner_tensors(**({"outputs": outputs, "words": outputs, "embedding": 24, "units": 16} | options))


def importing(catalog: Catalog, source: Path, vocabulary: Path | None, **options: Any) -> ImportResult:
    return import_checkpoint(catalog, kind="slim", source=source, name="im2txt", vocabulary=vocabulary, **options)


def converted(tensors: Mapping[str, np.ndarray], vocabulary: Path) -> CaptionerLayer:
    """The captioner alone, without a backbone or a catalogue: what an import puts into a head."""
    checkpoint = ForeignCheckpoint(files=(), tensors=tensors, frameworks=("slim",))
    names = find_captioner(tensors, "m", vocabulary=vocabulary)
    assert names is not None
    words = read_word_counts(vocabulary)
    found = read_captioner(checkpoint, names, words=words, where=str(vocabulary), feature_dim=FEATURES)
    found.report.require_complete("m")
    assert found.head is not None
    layer = CAPTIONER.build(
        arguments=CaptionerArguments.model_validate(found.head.arguments),
        feature_dim=FEATURES,
        assets=Assets(files={VOCABULARY_FILE: found.vocabulary}),
        seed=0,
    )
    restore(named_variables(layer), found.tensors).require_complete("head")
    return layer


def unsaid(model: Im2txt) -> tuple[int, int]:
    """im2txt's numbers of the words that our captions never hold: the start token and the unknown word."""
    return model.start_id, len(model.words)


@dataclass(frozen=True)
class Comparison:
    """`apart`: the greatest difference of a log-probability; `other`: images whose best caption is another one."""

    apart: float
    other: int
    ended: int
    texts: int


def compare(layer: CaptionerLayer, model: Im2txt, *, beams: tuple[int, ...] = (1, 3)) -> Comparison:
    """Probabilities of all captions, and the best of each image by greedy and by beam search.

    Our search lets a caption that ended keep its place in the beam; im2txt's own goes on with as many others. So theirs
    finds a likelier one at times, never the other way round.
    """
    feature_ND = np.random.default_rng(1).exponential(0.4, (8, FEATURES)).astype(np.float32)
    numbers = {word: number for number, word in enumerate(model.words)}
    spare = range(len(model.words) + 1, len(model.tensors["seq_embedding/map"]))
    numbers |= {f"<unused-{number}>": number for number in spare}
    apart, other, ended, alike = 0.0, 0, 0, 0
    texts: set[str] = set()
    for beam in beams:
        for feature_D, captions in zip(feature_ND, layer.captions(feature_ND, beam_size=beam), strict=True):
            said = [[numbers[word] for word in caption.text.split()] for caption in captions]
            for words, caption in zip(said, captions, strict=True):
                theirs = model.log_prob(feature_D, words, finished=caption.finished)
                apart = max(apart, abs(caption.log_prob - theirs))
            texts.add(captions[0].text)
            if captions[0].finished:
                found = model.search(feature_D, beam=beam, longest=LONGEST, never=unsaid(model), shrinking=True)
                own = model.search(feature_D, beam=beam, longest=LONGEST, never=unsaid(model))
                other += not found or said[0] != found[0][1]
                alike += bool(own) and said[0] == own[0][1]
                ended += 1
    print(f"{ended} ended, {alike} as im2txt's own search, {len(texts)} captions, log_prob apart by {apart:.1e}")
    return Comparison(apart=apart, other=other, ended=ended, texts=len(texts))


def require_alike(layer: CaptionerLayer, model: Im2txt) -> None:
    found = compare(layer, model)
    assert found.apart < 1e-4
    assert found.other == 0
    assert found.ended > 4
    assert found.texts > 5


# Captions.


@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
def test_captions_are_im2txts_whatever_the_lstm_is_called(tmp_path: Path, spelling: str) -> None:
    tensors = small(spelling=spelling)
    require_alike(converted(tensors, word_counts(tmp_path)), Im2txt(tensors, WORDS))


def test_an_image_embedding_with_a_bias_keeps_it(tmp_path: Path) -> None:
    tensors = small() | {"image_embedding/biases": np.linspace(-2, 2, 24, dtype=np.float32)}
    require_alike(converted(tensors, word_counts(tmp_path)), Im2txt(tensors, WORDS))


def test_outputs_that_no_word_has_keep_their_share(tmp_path: Path) -> None:
    tensors = small(outputs=40, words=OUTPUTS)
    require_alike(converted(tensors, word_counts(tmp_path)), Im2txt(tensors, WORDS))


def test_a_scope_around_the_captioner_is_seen_through(tmp_path: Path) -> None:
    tensors = small()
    words = word_counts(tmp_path)
    inside = converted({f"show_and_tell/{name}": value for name, value in tensors.items()}, words)
    for name, variable in named_variables(converted(tensors, words)).items():
        np.testing.assert_array_equal(np.asarray(named_variables(inside)[name]), np.asarray(variable))


@pytest.mark.parametrize("fault", ["gates as stored", "no forget bias", "halves swapped", "words off by one"])
def test_a_wrong_conversion_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """What `compare` is worth."""
    right_lstm, right_order = zoo.im2txt._lstm, zoo.im2txt._order

    def lstm(tensors: Mapping[str, np.ndarray], names: CaptionerNames, embedding: int) -> dict[str, np.ndarray]:
        found = right_lstm(tensors, names, embedding)
        if fault == "no forget bias":
            found["lstm/bias"][16:32] -= 1
        elif fault == "gates as stored":
            for name, value in found.items():
                i, f, c, o = np.split(value, 4, axis=-1)
                found[name] = np.concatenate([i, c, f, o], axis=-1)
        elif fault == "halves swapped":
            both = np.concatenate([found["lstm/recurrent_kernel"], found["lstm/kernel"]])
            found["lstm/kernel"], found["lstm/recurrent_kernel"] = both[:embedding], both[embedding:]
        return found

    def order(words: WordCounts, spare: int) -> np.ndarray:
        right = right_order(words, spare)
        return np.concatenate([right[:3], np.roll(right[3:], 1)]) if fault == "words off by one" else right

    monkeypatch.setattr(zoo.im2txt, "_lstm", lstm)
    monkeypatch.setattr(zoo.im2txt, "_order", order)
    tensors = small()
    wrong = compare(converted(tensors, word_counts(tmp_path)), Im2txt(tensors, WORDS), beams=(1,))
    assert wrong.apart > 0.1


# The whole import.


@pytest.fixture(scope="module")
def captioner() -> dict[str, np.ndarray]:
    return small(outputs=40, words=OUTPUTS, spelling="1.0")


@pytest.fixture(scope="module")
def written(write: Write, captioner: dict[str, np.ndarray]) -> Path:
    """With what im2txt's training leaves beside it: a slot of the optimizer for the captioner too."""
    slots = {f"OptimizeLoss/{name}/Momentum": value for name, value in captioner.items()}
    return write({**captioner, **slots})


@pytest.fixture(scope="module")
def imported(catalog: Catalog, written: Path) -> ImportResult:
    word_counts(written.parent)
    return importing(catalog, written, written.parent / "word_counts.txt")


def test_a_photo_is_captioned_as_im2txt_would(
    catalog: Catalog, imported: ImportResult, captioner: dict[str, np.ndarray]
) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(2).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).resize((400, 300)).save(buffer, "PNG")
    predictor = Predictor.load(catalog, "im2txt", head="captioner")
    said = predictor.caption([buffer.getvalue()])[0]

    feature_D = predictor.embed([buffer.getvalue()])[0]
    model = Im2txt(captioner, WORDS)
    found = model.search(feature_D, beam=3, longest=LONGEST, never=unsaid(model), shrinking=True)
    assert [caption.text.split() for caption in said] == [[model.word(n) for n in words] for _, words in found]
    assert [caption.log_prob for caption in said] == pytest.approx([total for total, _ in found], abs=1e-3)


def test_the_command_takes_the_words_and_says_how_to_caption(
    written: Path, imported: ImportResult, capfd: pytest.CaptureFixture[str]
) -> None:
    words = written.parent / "word_counts.txt"
    with pytest.raises(SystemExit) as caught:
        run_cli(app, ["import", "slim", str(written), "show", "--vocabulary", str(words)])
    out, err = capfd.readouterr()
    assert caught.value.code == 0
    assert "show@1" in out
    assert "41 words" in out
    assert "not stored, set anew: head/image_embedding/bias" in err
    assert "im2txt's <S>, </S> and <UNK>" in err
    assert "next: finetune caption show@1 PHOTO" in err


def test_the_manifest_says_what_im2txt_is(catalog: Catalog, imported: ImportResult) -> None:
    manifest = imported.manifest
    assert {part.name: part.num_tensors for part in manifest.components} == {"backbone": 376, "head": 8}
    assert manifest.head is not None
    assert manifest.head.kind == "captioner"
    assert manifest.head.arguments == {
        "embedding": 24,
        "units": 16,
        "normalise_features": "none",
        "feature_dropout": 0.0,
        "embedding_dropout": 0.3,
        "output_dropout": 0.3,
        "word_dropout": 0.0,
        "label_smoothing": 0.0,
        "word_bag": 0.0,
        "min_count": 887,
        "max_words": 20,
        "beam_size": 3,
        "length_penalty": 0.0,
    }
    assert (manifest.classes, manifest.class_offset) == (None, 0)
    spec = manifest.input_spec
    assert (spec.height, spec.fit, spec.crop_fraction, spec.antialias) == (299, "squash", 299 / 346, False)
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert manifest.lineage.tensors["head/image_embedding/bias"] == "fresh"
    assert manifest.lineage.tensors["head/lstm/recurrent_kernel"] == "renamed"

    assert manifest.vocabulary is not None
    assert (manifest.vocabulary.size, manifest.vocabulary.tokenizer) == (41, TOKENIZER)
    data = catalog.open_asset(catalog.get("im2txt"), "vocabulary.json").read_bytes()
    vocabulary = Vocabulary.from_bytes(data)
    assert vocabulary.to_bytes() == data
    plain = [word for word in WORDS if word not in ("<S>", "</S>")]
    assert vocabulary.words == (*plain, *(f"<unused-{number}>" for number in range(OUTPUTS, 40)))
    assert vocabulary.counts[:3] == (900, 898, 896)


def test_the_report_says_what_was_renamed_turned_and_left(imported: ImportResult, written: Path) -> None:
    report = imported.report
    assert report.complete
    assert len(report.restored) == 376 + 7
    assert report.fresh == ("head/image_embedding/bias",)
    assert {stored: ours for stored, ours in report.renamed.items() if not stored.startswith("Inc")} == {
        "image_embedding/weights": "head/image_embedding/kernel",
        "seq_embedding/map": "head/word_embedding/embeddings",
        "lstm/basic_lstm_cell/weights[:24]": "head/lstm/kernel",
        "lstm/basic_lstm_cell/weights[24:]": "head/lstm/recurrent_kernel",
        "lstm/basic_lstm_cell/biases": "head/lstm/bias",
        "logits/weights": "head/output/kernel",
        "logits/biases": "head/output/bias",
    }
    assert set(report.transposed) == {name for name in report.renamed.values() if name.startswith("head/")} - {
        "head/image_embedding/kernel"
    }
    assert sum("optimizer" in why for why in report.unused.values()) == 6
    said = "\n".join(imported.notes)
    assert "im2txt's <S>, </S> and <UNK> (3, 1, 14) became 1, 2, 3" in said
    assert f"{written.parent / 'word_counts.txt'} lists 14 words, the captioner has 40 outputs: the last 25" in said


def test_words_written_by_python_3_are_the_same(
    catalog: Catalog, imported: ImportResult, written: Path, tmp_path: Path
) -> None:
    again = importing(catalog, written, word_counts(tmp_path, python_3=True), dry_run=True)
    assert again.manifest == imported.manifest


def test_the_backbone_alone_is_what_a_plain_file_gives(
    catalog: Catalog, written: Path, inception: dict[str, np.ndarray], imported: ImportResult
) -> None:
    alone = importing(
        catalog, written, None, dry_run=True, exclude=["image_embedding", "seq_embedding", "lstm", "logits"]
    )
    assert alone.manifest.head is None
    assert alone.manifest.components == imported.manifest.components[:1]
    assert alone.manifest.assets == ()
    assert alone.manifest.input_spec.crop_fraction == 0.875  # as TF-Slim evaluates


def test_faults_of_backbone_and_captioner_are_told_together(
    catalog: Catalog, write: Write, captioner: dict[str, np.ndarray], tmp_path: Path
) -> None:
    wrong = {
        "image_embedding/weights": np.zeros((1024, 24), np.float32),
        "InceptionV3/Conv2d_1a_3x3/weights": np.zeros((3, 3, 1, 32), np.float32),
    }
    with pytest.raises(IncompleteRestore, match="2 of another shape") as caught:
        importing(catalog, write(captioner | wrong), word_counts(tmp_path))
    assert (
        "head/image_embedding/kernel (stored as image_embedding/weights) stored (1024, 24), wanted (2048, 24)"
        in str(caught.value.message)
    )


def test_class_names_are_for_classifiers(catalog: Catalog, written: Path, tmp_path: Path) -> None:
    classes = tmp_path / "labels.txt"
    classes.write_text("cat\ndog\n")
    with pytest.raises(InvalidClassNames, match="names 2 classes, but the checkpoint has no classifier"):
        importing(catalog, written, word_counts(tmp_path), classes=classes)


def test_a_classifier_beside_the_captioner_is_left_out(
    catalog: Catalog, write: Write, captioner: dict[str, np.ndarray], imported: ImportResult, tmp_path: Path
) -> None:
    scope = "InceptionV3/Logits/Conv2d_1c_1x1"
    logits = {f"{scope}/weights": np.zeros((1, 1, 2048, 1001)), f"{scope}/biases": np.zeros(1001)}
    more = {name: value.astype(np.float32) for name, value in logits.items()}
    result = importing(catalog, write(captioner | more), word_counts(tmp_path), dry_run=True)
    assert result.manifest.components == imported.manifest.components
    assert "the captioner is the head" in result.report.unused[f"{scope}/weights"]


# One without the other.


def test_a_captioner_without_its_words_says_which_file_to_name(
    catalog: Catalog, written: Path, imported: ImportResult
) -> None:
    with pytest.raises(MissingWordCounts, match="words are in a file of their own") as caught:
        importing(catalog, written, None)
    hint = str(caught.value.hint)
    assert f"there is {written.parent / 'word_counts.txt'}" in hint
    assert "--exclude image_embedding --exclude seq_embedding --exclude lstm --exclude logits" in hint
    with pytest.raises(MissingWordCounts, match="no vocabulary file"):
        importing(catalog, written, written.parent / "words.txt")


def test_words_for_a_plain_inception_are_refused_and_it_does_not_caption(
    catalog: Catalog, write: Write, tmp_path: Path
) -> None:
    plain = write({})
    with pytest.raises(NoCaptioner, match="has a backbone only, no captioner head"):
        importing(catalog, plain, word_counts(tmp_path))
    import_checkpoint(catalog, kind="slim", source=plain, name="plain")
    with pytest.raises(WrongHead, match="plain@1 has a backbone only, no captioner head"):
        Predictor.load(catalog, "plain", head="captioner")


@pytest.mark.parametrize(
    ("gone", "more", "said"),
    [
        ("lstm/basic_lstm_cell/kernel", {}, "has no lstm/basic_lstm_cell/kernel or lstm/basic_lstm_cell/weights"),
        ("logits/biases", {}, "has no logits/biases"),
        ("seq_embedding/map", {}, "has no seq_embedding/map"),
        (
            None,
            {"lstm/basic_lstm_cell/weights": np.zeros(1)},
            "has both lstm/basic_lstm_cell/kernel and lstm/basic_lstm_cell/weights",
        ),
    ],
)
def test_half_a_captioner_is_refused_by_name(gone: str | None, more: dict[str, np.ndarray], said: str) -> None:
    tensors = {name: value for name, value in (small() | more).items() if name != gone}
    with pytest.raises(IncompleteCaptioner, match=said) as caught:
        find_captioner(tensors, "m", vocabulary=Path("word_counts.txt"))
    assert "--exclude lstm" in str(caught.value.hint)


# The file of words.


def test_too_many_words_and_too_few_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(InvalidWordCounts, match=r"lists 14 words \(with <UNK> 15\), too many: .* has 14 outputs"):
        converted(small(outputs=14), word_counts(tmp_path))
    with pytest.raises(InvalidWordCounts, match=r"lists 14 words .*too few: .* has 40 outputs.* from number 15 on"):
        converted(small(outputs=40), word_counts(tmp_path))
    lists_it = (*WORDS, "<UNK>")
    assert len(converted(small(outputs=15), word_counts(tmp_path, lists_it)).vocabulary) == 16


def test_an_unknown_word_that_is_listed_has_its_own_number(tmp_path: Path) -> None:
    words = ("<UNK>", *WORDS)
    known = read_word_counts(word_counts(tmp_path, words))
    assert (known.numbers["<UNK>"], known.lines, len(known.words)) == (0, 15, 15)
    assert check_outputs(known, np.ones((15, 4), np.float32), "f") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a 5\n</S> 4", "has 2 words, but not <S>"),
        ("a 5\nb 4", "not <S> and </S>"),
        ("a 5\n\n<S> 4\n</S> 3", "line 2: '' is not a word and its count"),
        ("a 5\n<S> 4\n</S> many", "line 3: '</S> many' is not a word and its count"),
        ("a 5\n<S> 4\n</S> 3\na 2", "'a' is listed twice, in lines 1 and 4"),
        ("b'a' 5\nb'<S>' 4\nb'</S>' 3\ndog 2", "line 4: 'dog' is not written as b"),
        ("<unk> 5\n<S> 4\n</S> 3", "lists <unk>, which stand for something else here"),
        ("", "line 1: '' is not a word"),
        ("\xff 5", "not UTF-8 text"),
    ],
)
def test_a_file_that_lists_no_words_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "word_counts.txt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidWordCounts, match=said):
        read_word_counts(path)


def test_words_may_hold_anything_but_blanks(tmp_path: Path) -> None:
    words = ("<S>", "</S>", "n't", "'s", "``", "b'", "\u2028x", "café", "犬", "12")
    for python_3 in (False, True):
        assert read_word_counts(word_counts(tmp_path, words, python_3=python_3)).words == (*words, "<UNK>")
