"""A look at every image before step 1, so that a bad one is found now and not in the middle of an epoch.

Takes an ExampleSource. Gives BadRecords. Next: `finetune.training.prepare` counts them against `data.max_bad_share`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from finetune.data.ahead import in_order, reading_threads
from finetune.data.image_header import UnreadableImage, check_image
from finetune.data.preprocess import load_pixels
from finetune.data.source import BadRecord, ExampleSource
from zoo.input_spec import InputSpec


def scan(
    source: ExampleSource, indices: Sequence[int], max_pixels: int, *, decode_for: InputSpec | None = None
) -> list[BadRecord]:
    """The images among `indices` whose header shows them to be unusable, in that order.

    Found here: gone, empty, not an image, over `max_pixels`. Not found: data that break off or are damaged further
    on; only decoding shows those, and `finetune.data.features` lists them in the same form. With `decode_for` they are
    decoded here.
    """

    def check(index: int) -> BadRecord | None:
        try:
            data = source.read(index)
            if decode_for is None:
                check_image(data, max_pixels)
            else:
                load_pixels(data, decode_for, max_pixels=max_pixels)
        except UnreadableImage as error:
            return BadRecord(id=source.examples[index].id, reason=error.message)
        return None

    threads = max(4 * (os.cpu_count() or 1), reading_threads(source.location))
    found = in_order(check, indices, threads=threads, ahead=4 * threads, name="scan")
    return [record for record in found if record is not None]
