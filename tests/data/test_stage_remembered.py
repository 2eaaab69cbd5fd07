"""Pictures are prepared once while they are remembered, and memory stays bounded."""

from __future__ import annotations

import io

import pytest
from PIL import Image

import vlmdata.stage.remembered
from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, prepare_pages
from vlmdata.stage.remembered import RememberedImages


def encode(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 30 + shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    calls: list[bytes] = []

    def count(data: bytes, config: ImageConfig) -> object:
        calls.append(data)
        return prepare_pages(data, config)

    monkeypatch.setattr(vlmdata.stage.remembered, "prepare_pages", count)
    return calls


def test_equal_bytes_are_decoded_once(decoded: list[bytes]) -> None:
    files = [encode(shade) for shade in (0, 40, 80)]
    images = RememberedImages(limit_bytes=1 << 20)
    outcomes = [images.prepare(data, ImageConfig()) for data in files * 3]
    assert len(decoded) == 3
    assert outcomes[:3] == outcomes[3:6] == outcomes[6:]
    assert len({content for content, _ in outcomes}) == 3
    images.prepare(files[0], ImageConfig(max_side=600))
    assert len(decoded) == 4


def test_what_was_not_asked_for_lately_is_forgotten(decoded: list[bytes]) -> None:
    files = [encode(shade) for shade in (0, 40, 80)]
    sizes = [sum(len(page.data) + len(page.thumbnail) for page in prepare_pages(data, ImageConfig())) for data in files]
    images = RememberedImages(limit_bytes=sum(sizes) + 3 * 1024 - 1)
    for i in (0, 1, 0, 2, 0, 1):
        images.prepare(files[i], ImageConfig())
    assert decoded == [files[i] for i in (0, 1, 2, 1)]


def test_pictures_that_are_stored_as_they_came_are_remembered_without_their_bytes(decoded: list[bytes]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    files = []
    for options in ({}, {"exif": exif}):
        for seed in range(20):
            buffer = io.BytesIO()
            Image.radial_gradient("L").rotate(seed * 9).resize((300, 300)).save(buffer, "JPEG", quality=98, **options)
            files.append(buffer.getvalue())
    images = RememberedImages(limit_bytes=len(files) * 6000)
    first, again = ([images.prepare(data, ImageConfig()) for data in files] for _ in range(2))
    assert sum(map(len, files)) > 2 * len(files) * 6000
    assert first == again
    assert len(decoded) == len(files)


def test_files_that_give_no_picture_are_not_tried_again(decoded: list[bytes]) -> None:
    images = RememberedImages(limit_bytes=1)
    first, again = (images.prepare(b"no image", ImageConfig())[1] for _ in range(2))
    assert isinstance(first, ImageProblem)
    assert first is again
    assert len(decoded) == 1
