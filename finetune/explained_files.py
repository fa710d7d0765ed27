"""Files that say how captions came about: a JSON an image and, of a captioner that attends, a strip of pictures.

Takes a Predictor and images. Gives `DIR/NAME.json` and `DIR/NAME.png`. Next: somebody's eyes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.attention_strip import write_strip
from finetune.models.decoding_options import DecodingRequest
from zoo.atomic_file import replaced_file, storage_error

if TYPE_CHECKING:
    from finetune.models.heads.captioner_speech import Explanation
    from finetune.predictor import Predictor


def write_explanations(
    predictor: Predictor, files: Sequence[tuple[Path, bytes]], request: DecodingRequest, folder: Path
) -> list[Path]:
    """Explains the best caption of each (path, encoded image) and writes it to `folder`, made if need be.

    Files have their image's name; a second image of the same name has `-2` behind it. Returns what was written.
    Raises what `Predictor.explain` raises; NoSpace, NoAccess.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, "make", folder) from error
    written: list[Path] = []
    seen: dict[str, int] = {}
    for path, data in files:
        seen[path.name] = seen.get(path.name, 0) + 1
        name = path.name if seen[path.name] == 1 else f"{path.name}-{seen[path.name]}"
        explanation = predictor.explain([data], request)[0]
        written.append(folder / f"{name}.json")
        with replaced_file(written[-1]) as file:
            file.write(json.dumps(explanation_json(path, explanation), ensure_ascii=False, indent=1).encode())
        if any(word.attention is not None for word in explanation.words):
            written.append(folder / f"{name}.png")
            write_strip(written[-1], data, explanation, predictor.input_spec)
    return written


def explanation_json(path: Path, explanation: Explanation) -> dict[str, Any]:
    """`words` with their likeliest alternatives and, where the captioner attends, weights [H][W]."""
    caption = explanation.caption
    return {
        "image": str(path),
        "caption": {"text": caption.text, "log_prob": caption.log_prob, "finished": caption.finished},
        "words": [
            {
                "word": word.word,
                "log_prob": word.log_prob,
                "top": [{"word": other, "probability": share} for other, share in word.alternatives],
                "attention": None if word.attention is None else word.attention.tolist(),
            }
            for word in explanation.words
        ],
    }
