"""`vlmtrain generate`: answers to a picture and a prompt, or to a file of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmtrain.inference import Request, load_answering_model
from vlmtrain.settings import GenerateConfig

__all__ = ["answer_all", "make_request", "read_requests"]


def answer_all(name: str, config: GenerateConfig) -> Iterator[str | dict[str, Any]]:
    """Answers what the config asks.

    Args:
        name: MODEL_OR_RUN.
        config: A prompt with pictures, or a file of requests.

    Yields:
        The answer's text, or for a file each line with its `answer` added.

    Raises:
        ToolkitError: The model, a picture or a line does not do.
    """
    if config.batch is not None:
        lines, requests = zip(*read_requests(config.batch, system=config.system), strict=True) or ((), ())
    else:
        lines, requests = (), (make_request(config.prompt or "", config.image, system=config.system),)
    model = load_answering_model(name, backend=config.backend, load_in=config.load_in)
    answers = model.answer(
        requests,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        temperature=config.temperature,
        seed=config.seed,
    )
    if not lines:
        yield from answers
    for line, answer in zip(lines, answers, strict=bool(lines)):
        yield line | {"answer": answer}


def make_request(prompt: str, images: Sequence[Path], *, system: str | None = None) -> Request:
    """One request: the pictures first, then the prompt.

    Args:
        prompt: The user's text.
        images: Picture files.
        system: Text of a system turn in front.

    Raises:
        ConfigError: A file is missing or not a picture.
    """
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": prompt})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return Request(messages=messages, images=[_open_picture(path) for path in images])


def read_requests(path: Path, *, system: str | None = None) -> Iterator[tuple[dict[str, Any], Request]]:
    """Requests from a JSON-lines file: `{"prompt": …, "image": FILE}` or `"images": [FILE, …]`, relative to the file.

    Yields:
        The line as it stands, and the request made of it.

    Raises:
        ConfigError: The file or a picture is missing.
        DataError: A line is no such request.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            prompt = line["prompt"]
            images = line.get("images") or [line[key] for key in ("image",) if key in line]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{path}, line {number}: not of the form {{"prompt": …, "image": …}}: {text[:80]!r}'
            ) from error
        yield line, make_request(prompt, [path.parent / image for image in images], system=line.get("system", system))


def _open_picture(path: Path) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            # What a viewer shows: turned by the camera's note, transparent parts white, as in the shards.
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                over = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
            return upright.convert("RGB")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such picture") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable picture: {error}") from error
