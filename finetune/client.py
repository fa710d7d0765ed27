"""ZooClient: the zoo through a server. Every `--server` command is built on it.

Takes an address. Gives the same values as the local path, and the same error tree. Next: `server.serve` at the other
end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from finetune.client_json import event_json, job_json, roles_json
from finetune.decoding_wire import decoding_message
from finetune.models.decoding_options import DecodingRequest
from finetune.text.caption import Caption
from finetune.token_file import read_token, token_path
from finetune.wire import (
    CHANNEL_OPTIONS,
    MAX_MESSAGE_BYTES,
    error_from,
    from_struct,
    message_limits,
    to_struct,
)
from protos.modelzoo.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    finetune_pb2,
    finetune_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from zoo.errors import InvalidArgument, Unauthenticated, Unavailable, ZooError

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")
_SHORT = 30.0  # seconds for calls that only read or write a little


class ServerUnreachable(Unavailable):
    """Nothing answers at the address, or it stopped answering."""


class RequestTooLarge(InvalidArgument):
    """The images of one call are larger than a message may be."""


class InvalidServer(InvalidArgument):
    """Not HOST:PORT."""


@dataclass(frozen=True, kw_only=True)
class CaptionAnswer:
    """`captions[i]`: those of image i, best first. `milliseconds`: wall time in the model's process;
    `server_milliseconds`: in the server, loading the model included."""

    captions: list[list[Caption]]
    milliseconds: float
    server_milliseconds: float
    reference: str


@dataclass(frozen=True, kw_only=True)
class ClassifyAnswer:
    """`labels[i]`: (label, probability) of image i, best first; `unsure[i]`: its best is below the version's abstain
    threshold."""

    labels: list[list[tuple[str, float]]]
    unsure: list[bool]
    milliseconds: float
    server_milliseconds: float
    reference: str


@dataclass(frozen=True, kw_only=True)
class EmbedAnswer:
    """`embeddings[i]`: the feature vector of image i."""

    embeddings: list[list[float]]
    milliseconds: float
    server_milliseconds: float
    reference: str


@dataclass(frozen=True, kw_only=True)
class CatalogProblem:
    """What could not be read: a model, a version, or (without a name) a key that belongs to no model."""

    name: str
    version: int | None
    message: str


@dataclass(frozen=True, kw_only=True)
class ModelsPage:
    """`models` as `zoo.describe.describe` has them; `problems` are those of the whole catalogue."""

    models: list[dict[str, Any]]
    next_page_token: str  # empty on the last page
    problems: tuple[CatalogProblem, ...]


class ZooClient:
    """A connection to a server. Safe to share between threads; use as a context manager, or `close` it.

    Args:
        address: HOST:PORT.
        token: what the server wants; None: MODELZOO_TOKEN, else the token file of a server on this machine.
        max_message_bytes: the server's limit, when it isn't the default.
    Every method raises the error tree: what the server refused has the code and reason that it has locally;
    ServerUnreachable when nothing answers.
    """

    def __init__(self, address: str, token: str | None = None, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.address = address
        self._limit = max_message_bytes
        token = token or os.environ.get("MODELZOO_TOKEN") or _local_token(address)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        # The larger limit is for answers; what is sent is checked in `_checked`, with a better message.
        self._channel = grpc.insecure_channel(address, options=(*CHANNEL_OPTIONS, *message_limits(2**31 - 1)))
        self._catalog = catalog_pb2_grpc.CatalogStub(self._channel)
        self._finetune = finetune_pb2_grpc.FineTuneStub(self._channel)
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)

    def __enter__(self) -> ZooClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # -- Catalog

    def list_models(self, *, filter: str = "", order_by: str = "", all_versions: bool = False) -> list[dict[str, Any]]:
        """The newest version of each model that isn't archived, or what matches, as `zoo.describe.describe` has it.

        Args: as `list_page`, which also says what could not be read.
        """
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self.list_page(filter=filter, order_by=order_by, all_versions=all_versions, page_token=token)
            found += page.models
            token = page.next_page_token
            if not token:
                return found

    def list_page(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        all_versions: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> ModelsPage:
        """One page of models.

        Args:
            filter: e.g. `architecture = inception_v3 AND metrics.test.accuracy > 0.7`; see `zoo.search.grammar`.
            order_by: `created desc, name`.
            all_versions: every version, archived ones included.
            page_size: 0 means 100; at most 1,000.
            page_token: `next_page_token` of the page before, of the same query.
        """
        request = catalog_pb2.ListModelsRequest(
            filter=filter, order_by=order_by, all_versions=all_versions, page_size=page_size, page_token=page_token
        )
        page = self._call(self._catalog.ListModels, request)
        return ModelsPage(
            models=[from_struct(model.description) for model in page.models],
            next_page_token=page.next_page_token,
            problems=tuple(
                CatalogProblem(name=one.name, version=one.version or None, message=one.message) for one in page.problems
            ),
        )

    def get_version(self, reference: str) -> dict[str, Any]:
        """One version, as `zoo.describe.describe` has it."""
        answer = self._call(self._catalog.GetVersion, catalog_pb2.GetVersionRequest(reference=reference))
        return from_struct(answer.description)

    # -- FineTune

    def create_job(
        self,
        *,
        name: str = "",
        backbone: str = "",
        head: str = "",
        data: str = "",
        recipe: str | None = None,
        start_from: str | None = None,
        settings: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> dict[str, Any]:
        """Queues a job, or gives the unfinished or finished one of the same spec (`Job.to_json`).

        Args:
            data: `scenes:…`, or `kind:NAME` below one of the server's data roots.
            settings: dotted key → value as YAML text, as in `--set`.
            spec: what a spec file holds; everything else comes before it.
        """
        message = finetune_pb2.FineTuneSpec(
            name=name,
            backbone=backbone,
            head=head,
            data=data,
            recipe=recipe or "",
            start_from=start_from or "",
            settings=dict(settings or {}),
            spec=to_struct(spec or {}),
        )
        request = finetune_pb2.CreateFineTuneJobRequest(spec=message, again=again)
        return job_json(self._call(self._finetune.CreateFineTuneJob, request))

    def get_job(self, job_id: str) -> dict[str, Any]:
        """`Job.to_json`, and `roles`: what has become of each process."""
        answer = self._call(self._finetune.GetFineTuneJob, finetune_pb2.GetFineTuneJobRequest(id=job_id))
        return job_json(answer) | {"roles": roles_json(answer)}

    def list_jobs(self, *, name: str | None = None) -> Iterator[dict[str, Any]]:
        """Newest first; pages are fetched as they are read."""
        token = ""
        while True:
            request = finetune_pb2.ListFineTuneJobsRequest(page_token=token, name=name or "")
            page = self._call(self._finetune.ListFineTuneJobs, request)
            yield from map(job_json, page.jobs)
            token = page.next_page_token
            if not token:
                return

    def watch_job(self, job_id: str, *, after_cursor: int = 0) -> Iterator[dict[str, Any]]:
        """Events (`JobEvent.to_json`) until the job has ended; the last one has the ended job under `job_ended`.

        After ServerUnreachable, call again with the last cursor seen: nothing is missed, nothing comes twice.
        """
        request = finetune_pb2.WatchFineTuneJobRequest(id=job_id, after_cursor=after_cursor)
        call = self._finetune.WatchFineTuneJob(request, metadata=self._metadata)
        try:
            for response in call:
                yield event_json(response.event)
        except grpc.RpcError as error:
            raise self._meaning(error) from None
        finally:
            call.cancel()

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        return job_json(self._call(self._finetune.CancelFineTuneJob, finetune_pb2.CancelFineTuneJobRequest(id=job_id)))

    def evaluate(
        self,
        reference: str,
        *,
        data: str = "",
        split: str = "test",
        settings: Mapping[str, str] | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """What `finetune evaluate` prints: reference, split, num_examples, metrics, bad_records.

        Args:
            data: as in `create_job`; empty: what the version was trained on.
            settings: `data.KEY` → value as YAML text.
            timeout: seconds; None waits, for the features of a split may have to be computed.
        """
        request = finetune_pb2.EvaluateVersionRequest(
            reference=reference, data=data, split=split, settings=dict(settings or {}), seed=seed
        )
        answer = self._call(self._finetune.EvaluateVersion, request, timeout=timeout)
        return {
            "reference": answer.reference,
            "split": answer.split,
            "num_examples": answer.num_examples,
            "metrics": from_struct(answer.metrics),
            "bad_records": [{"id": one.id, "reason": one.reason} for one in answer.bad_records],
        }

    # -- Inference

    def caption(
        self,
        reference: str,
        images: Sequence[bytes],
        *,
        beam_size: int | None = None,
        max_words: int | None = None,
        decoding: DecodingRequest | None = None,
        timeout: float | None = None,
    ) -> CaptionAnswer:
        """Captions of 1 to 64 encoded images. `timeout` in seconds; None waits, a first call loads the model.

        `decoding`: how they are found; `beam_size` and `max_words` are the same as its own.
        """
        self._check_size(images)
        decoding = decoding or DecodingRequest()
        request = inference_pb2.CaptionRequest(
            reference=reference,
            images=images,
            beam_size=beam_size or decoding.beam_size or 0,
            max_words=max_words or decoding.max_words or 0,
            decoding=decoding_message(decoding),
        )
        answer = self._call(self._inference.Caption, request, timeout=timeout)
        return CaptionAnswer(
            captions=[
                [Caption(text=c.text, log_prob=c.log_prob, finished=c.finished) for c in result.captions]
                for result in answer.results
            ],
            **_timing(answer),
        )

    def classify(
        self, reference: str, images: Sequence[bytes], *, top: int = 0, timeout: float | None = None
    ) -> ClassifyAnswer:
        """`top`: at most so many labels an image; 0: 5, of a multi-label version all that reach their thresholds."""
        self._check_size(images)
        request = inference_pb2.ClassifyRequest(reference=reference, images=images, top=top)
        answer = self._call(self._inference.Classify, request, timeout=timeout)
        labels = [[(label.label, label.score) for label in result.labels] for result in answer.results]
        return ClassifyAnswer(labels=labels, unsure=[result.unsure for result in answer.results], **_timing(answer))

    def embed(self, reference: str, images: Sequence[bytes], *, timeout: float | None = None) -> EmbedAnswer:
        self._check_size(images)
        request = inference_pb2.EmbedRequest(reference=reference, images=images)
        answer = self._call(self._inference.Embed, request, timeout=timeout)
        return EmbedAnswer(embeddings=[list(result.values) for result in answer.results], **_timing(answer))

    # -- the machinery

    def _call(self, method: Callable[..., Any], request: Any, *, timeout: float | None = _SHORT) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._meaning(error) from None

    def _meaning(self, error: Any) -> ZooError:
        meant = error_from(error.code().name, error.details() or "", error.trailing_metadata() or ())
        if isinstance(meant, Unavailable) and meant.reason == Unavailable.__name__:  # gRPC's own, not the server's
            return ServerUnreachable(
                f"no server answers at {self.address}: {meant.message}",
                hint="is it running? zoo serve --address " + self.address,
                address=self.address,
            )
        if isinstance(meant, Unauthenticated) and not meant.hint:
            meant.hint = "--token or MODELZOO_TOKEN"
        return meant

    def _check_size(self, images: Sequence[bytes]) -> None:
        size = sum(map(len, images))
        if size > self._limit - 2**16:  # the rest of the message
            raise RequestTooLarge(
                f"the {len(images)} images of the call have {size:,} bytes, a message may have {self._limit:,}",
                hint="send fewer images a call, or smaller ones",
            )


def _local_token(address: str) -> str | None:
    """The token that a server on this machine wrote for itself. Raises InvalidServer, UnsafeTokenFile."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()):
        raise InvalidServer(f"server {address!r} is not HOST:PORT, e.g. 127.0.0.1:8470")
    here = host in _LOOPBACK or host == socket.gethostname()
    return read_token(token_path(int(port))) if here else None


def _timing(answer: Any) -> dict[str, Any]:
    return {
        "milliseconds": answer.milliseconds,
        "server_milliseconds": answer.server_milliseconds,
        "reference": answer.reference,
    }
