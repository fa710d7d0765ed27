from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptionRequest(_message.Message):
    __slots__ = ("reference", "images", "beam_size", "max_words", "decoding")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BEAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_WORDS_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    reference: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    beam_size: int
    max_words: int
    decoding: Decoding
    def __init__(self, reference: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ..., beam_size: _Optional[int] = ..., max_words: _Optional[int] = ..., decoding: _Optional[_Union[Decoding, _Mapping]] = ...) -> None: ...

class Decoding(_message.Message):
    __slots__ = ("min_words", "length_penalty", "coverage", "no_repeat_ngram", "beam_groups", "diversity", "sample", "temperature", "top_k", "top_p", "seed")
    MIN_WORDS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    NO_REPEAT_NGRAM_FIELD_NUMBER: _ClassVar[int]
    BEAM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    min_words: int
    length_penalty: float
    coverage: float
    no_repeat_ngram: int
    beam_groups: int
    diversity: float
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int
    def __init__(self, min_words: _Optional[int] = ..., length_penalty: _Optional[float] = ..., coverage: _Optional[float] = ..., no_repeat_ngram: _Optional[int] = ..., beam_groups: _Optional[int] = ..., diversity: _Optional[float] = ..., sample: bool = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class CaptionResponse(_message.Message):
    __slots__ = ("results", "milliseconds", "server_milliseconds", "reference")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ImageCaptions]
    milliseconds: float
    server_milliseconds: float
    reference: str
    def __init__(self, results: _Optional[_Iterable[_Union[ImageCaptions, _Mapping]]] = ..., milliseconds: _Optional[float] = ..., server_milliseconds: _Optional[float] = ..., reference: _Optional[str] = ...) -> None: ...

class ImageCaptions(_message.Message):
    __slots__ = ("captions",)
    CAPTIONS_FIELD_NUMBER: _ClassVar[int]
    captions: _containers.RepeatedCompositeFieldContainer[Caption]
    def __init__(self, captions: _Optional[_Iterable[_Union[Caption, _Mapping]]] = ...) -> None: ...

class Caption(_message.Message):
    __slots__ = ("text", "log_prob", "finished")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    text: str
    log_prob: float
    finished: bool
    def __init__(self, text: _Optional[str] = ..., log_prob: _Optional[float] = ..., finished: bool = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("reference", "images", "top")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    reference: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    top: int
    def __init__(self, reference: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ..., top: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("results", "milliseconds", "server_milliseconds", "reference")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ImageLabels]
    milliseconds: float
    server_milliseconds: float
    reference: str
    def __init__(self, results: _Optional[_Iterable[_Union[ImageLabels, _Mapping]]] = ..., milliseconds: _Optional[float] = ..., server_milliseconds: _Optional[float] = ..., reference: _Optional[str] = ...) -> None: ...

class ImageLabels(_message.Message):
    __slots__ = ("labels", "unsure")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    UNSURE_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    unsure: bool
    def __init__(self, labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., unsure: bool = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("label", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("reference", "images")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    reference: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, reference: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("results", "milliseconds", "server_milliseconds", "reference")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Embedding]
    milliseconds: float
    server_milliseconds: float
    reference: str
    def __init__(self, results: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., milliseconds: _Optional[float] = ..., server_milliseconds: _Optional[float] = ..., reference: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...
