"""`vlmtrain generate`: answers to a picture and a prompt, or to a file of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmtrain.inference import Request, load_answering_model
from vlmtrain.json_files import read_lines
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
    lines: list[dict[str, Any]] = []
    requests: Sequence[Request]
    if config.batch is not None:
        lines, requests = read_requests(config.batch, system=config.system)
        if not lines:
            return
    else:
        requests = [make_request(config.prompt or "", config.image, system=config.system)]
    model = load_answering_model(name, backend=config.backend, load_in=config.load_in)
    answers = model.answer(
        requests,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        temperature=config.temperature,
        seed=config.seed,
    )
    if config.batch is None:
        yield from answers
    else:
        yield from (line | {"answer": answer} for line, answer in zip(lines, answers, strict=True))


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


def read_requests(path: Path, *, system: str | None = None) -> tuple[list[dict[str, Any]], Sequence[Request]]:
    """Requests from a JSON-lines file: `{"prompt": …, "image": FILE}` or `"images": [FILE, …]`, relative to the file.

    Every picture is decoded once here, so that a broken one is found before any answer is waited for, and again when
    its request is taken: those of a long file do not fit in memory at once.

    Returns:
        The lines as they stand, and the requests made of them.

    Raises:
        ConfigError: The file or a picture is missing.
        DataError: A line is no such request.
    """
    try:
        texts = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines: list[dict[str, Any]] = []
    makers: list[Callable[[], Request]] = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line, prompt, images = _parse_line(f"{path}, line {number}", text)
        make = functools.partial(
            make_request, prompt, [path.parent / image for image in images], system=line.get("system", system)
        )
        make()
        lines.append(line)
        makers.append(make)
    return lines, _Requests(makers)


class _Requests(Sequence[Request]):
    """Requests made when they are asked for."""

    def __init__(self, makers: Sequence[Callable[[], Request]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [make() for make in self._makers[index]]
        return self._makers[index]()


def _parse_line(place: str, text: str) -> tuple[dict[str, Any], str, list[str]]:
    try:
        line = json.loads(text)
        prompt = line["prompt"]
        images = line.get("images") or [line[key] for key in ("image",) if key in line]
    except (ValueError, KeyError, TypeError, AttributeError):
        prompt = images = None
    if not isinstance(prompt, str) or not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise DataError(f'{place}: not of the form {{"prompt": …, "image": …}}: {text[:80]!r}')
    return line, prompt, images


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
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable picture: {error}") from error
