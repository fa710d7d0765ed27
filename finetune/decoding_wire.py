"""How a DecodingRequest crosses the wire, both ways.

Takes a DecodingRequest, or a CaptionRequest. Gives the other's. Next: `server.model_process`.
"""

from __future__ import annotations

from dataclasses import asdict

from finetune.models.decoding_options import DecodingRequest
from protos.modelzoo.v1 import inference_pb2

_BESIDE = ("beam_size", "max_words")  # fields of the request itself


def decoding_message(request: DecodingRequest) -> inference_pb2.Decoding:
    """All but the beam size and the longest caption."""
    asked = {name: value for name, value in asdict(request).items() if value is not None and name not in _BESIDE}
    return inference_pb2.Decoding(**asked)


def decoding_request(message: inference_pb2.CaptionRequest) -> DecodingRequest:
    """What a call asks for; what it leaves at 0 or doesn't set is None."""
    asked = {field.name: value for field, value in message.decoding.ListFields()}
    return DecodingRequest(beam_size=message.beam_size or None, max_words=message.max_words or None, **asked)
