"""`finetune caption | classify | embed`: a version answers for image files, here or through a server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_json,
)
from zoo.errors import InvalidArgument, NotFound, ZooError

if TYPE_CHECKING:
    from finetune.client import ZooClient
    from finetune.models.decoding_options import DecodingRequest

Ref = Annotated[str, typer.Argument(metavar="REF")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE…")]

# How captions are found: finetune.models.decoding_options.
BeamSizeOption = Annotated[
    int | None, typer.Option("--beam-size", min=1, help="captions sought; default: the head's own")
]
MaxWordsOption = Annotated[int | None, typer.Option("--max-words", help="longest caption")]
MinWordsOption = Annotated[int | None, typer.Option("--min-words", help="shortest caption")]
LengthPenaltyOption = Annotated[
    float | None, typer.Option("--length-penalty", help="rank by log_prob / length^X; 0 to 10")
]
NoRepeatNgramOption = Annotated[
    int | None, typer.Option("--no-repeat-ngram", help="never the same N words in a row twice; 0 is off")
]
CoverageOption = Annotated[
    float | None, typer.Option("--coverage", help="rank higher what looked everywhere; wants attention")
]
BeamGroupsOption = Annotated[int | None, typer.Option("--beam-groups", help="groups of beams that differ")]
DiversityOption = Annotated[float | None, typer.Option("--diversity", help="how much groups shall differ")]
SampleOption = Annotated[bool, typer.Option("--sample", help="draw words; --beam-size is how many captions")]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help="of the draws; below 1 is safer")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="draw among the likeliest K words")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="draw among the fewest words of share P")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="of the draws; default 0")]
ExplainOption = Annotated[
    Path | None,
    typer.Option("--explain", metavar="DIR", help="write there what was likely and looked at, word by word"),
]


class NoSuchImage(NotFound):
    """An image file that can't be read from disk."""


class NotThroughServer(InvalidArgument):
    """An option that works beside a store only."""


def caption(
    reference: Ref,
    images: Images,
    beam_size: BeamSizeOption = None,
    max_words: MaxWordsOption = None,
    min_words: MinWordsOption = None,
    length_penalty: LengthPenaltyOption = None,
    no_repeat_ngram: NoRepeatNgramOption = None,
    coverage: CoverageOption = None,
    beam_groups: BeamGroupsOption = None,
    diversity: DiversityOption = None,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    explain: ExplainOption = None,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Say what is on each image, by beam search or --sample."""
    from finetune.models.decoding_options import DecodingRequest

    request = DecodingRequest(
        beam_size=beam_size,
        max_words=max_words,
        min_words=min_words,
        length_penalty=length_penalty,
        no_repeat_ngram=no_repeat_ngram,
        coverage=coverage,
        beam_groups=beam_groups,
        diversity=diversity,
        sample=sample or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if address := chosen_server(server, store):
        if explain is not None:
            raise NotThroughServer("--explain looks into a model's steps, which no server tells: use --store")
        with _client(address, token) as client:
            for path, data in _read(images):
                with _naming(path):
                    answer = client.caption(reference, [data], decoding=request)
                _print_captions(path, answer.captions[0], answer.milliseconds, output)
        return
    files = list(_read(images))
    predictor = _predictor(reference, store, "captioner", request=request)
    for path, data in files:
        started = time.perf_counter()
        with _naming(path):
            captions = predictor.caption([data], request)[0]
        _print_captions(path, captions, (time.perf_counter() - started) * 1000, output)
    if explain is not None:
        from finetune.explained_files import write_explanations

        write_explanations(predictor, files, request, explain)


def classify(
    reference: Ref,
    images: Images,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="how many labels; default: 5, of a multi-label version those it is sure of"),
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Name the most probable classes of each image; of a multi-label version, those above their thresholds."""
    if address := chosen_server(server, store):
        with _client(address, token) as client:
            for path, data in _read(images):
                with _naming(path):
                    answer = client.classify(reference, [data], top=top or 0)
                _print_labels(path, answer.labels[0], answer.unsure[0], output)
        return
    files = list(_read(images))
    predictor = _predictor(reference, store, "classifier", "multilabel")
    for path, data in files:
        with _naming(path):
            found = predictor.classified([data], top=top)[0]
        _print_labels(path, [(each.label, each.score) for each in found.labels], found.unsure, output)


def embed(
    reference: Ref,
    images: Images,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Print a vector of each image: an embedding head's, of length 1, else the backbone's feature vector."""
    if address := chosen_server(server, store):
        with _client(address, token) as client:
            for path, data in _read(images):
                with _naming(path):
                    answer = client.embed(reference, [data])
                _print_embedding(path, answer.embeddings[0], output)
        return
    files = list(_read(images))
    predictor = _predictor(reference, store)
    for path, data in files:
        with _naming(path):
            embedding = predictor.embed([data])[0].tolist()
        _print_embedding(path, embedding, output)


def _read(paths: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    for path in paths:
        try:
            yield path, path.read_bytes()
        except OSError as error:
            raise NoSuchImage(f"image {path}: {error.strerror}", path=str(path)) from None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Lets an error about the one image of a call say which file it is."""
    try:
        yield
    except ZooError as error:
        if "image" not in error.details:
            raise
        error.message = f"{path}: {error.message.removeprefix('image 1: ')}"
        error.details["image"] = str(path)
        raise


def _client(address: str, token: str | None) -> ZooClient:
    from finetune.client import ZooClient

    return ZooClient(address, token=token)


def _predictor(reference: str, store: str | None, *heads: str, request: DecodingRequest | None = None) -> Any:
    from finetune.predictor import Predictor, require_head
    from finetune.tensorflow_start import start_tensorflow
    from zoo.catalog import open_catalog

    catalog = open_catalog(store)
    version = catalog.get(reference)
    if heads:
        require_head(version, *heads)  # before TensorFlow, which takes seconds to come up
    start_tensorflow()
    predictor = Predictor.load(catalog, version)
    predictor.warm_up(request)  # so that the milliseconds of the first image are those of any image
    return predictor


def _print_captions(path: Path, captions: Sequence[Any], milliseconds: float, output: Format) -> None:
    if output is Format.JSON:
        said = [{"text": c.text, "log_prob": c.log_prob, "finished": c.finished} for c in captions]
        print_json({"image": str(path), "captions": said, "milliseconds": round(milliseconds, 3)})
        return
    print(path)
    for c in captions:
        print(f"  {c.log_prob:8.3f}  {c.text}" + ("" if c.finished else " …"))


def _print_labels(path: Path, labels: Sequence[tuple[str, float]], unsure: bool, output: Format) -> None:
    if output is Format.JSON:
        said = [{"label": label, "score": score} for label, score in labels]
        print_json({"image": str(path), "labels": said, "unsure": unsure})
        return
    print(path, "(unsure: below the version's abstain threshold)" if unsure else "" if labels else "(none)")
    for label, score in labels:
        print(f"  {score:.4f}  {label}")


def _print_embedding(path: Path, embedding: Sequence[float], output: Format) -> None:
    if output is Format.JSON:
        print_json({"image": str(path), "embedding": list(embedding)})
    else:
        print(path, " ".join(f"{value:.6g}" for value in embedding))
