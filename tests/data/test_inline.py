from __future__ import annotations

import io

from PIL import Image

from vlmdata.inline import InlineRows, inline_row


def encode(level: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (6, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


ROW = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None},
                {"type": "text", "text": "or"},
                {"type": "image", "text": None},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "both"}]},
    ],
    "images": [{"bytes": encode(10, "L"), "path": None}, {"bytes": encode(20, "L"), "path": None}],
}


def test_images_stand_where_their_parts_are() -> None:
    messages = inline_row(ROW)["messages"]
    first, text, second = messages[0]["content"]
    assert text == {"type": "text", "text": "or"}
    assert [part["type"] for part in (first, second)] == ["image", "image"]
    assert [part["image"].getpixel((0, 0)) for part in (first, second)] == [(10, 10, 10), (20, 20, 20)]
    assert first["image"].mode == "RGB"
    assert messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "both"}]}


def test_decoded_images_of_datasets_are_taken_as_they_are() -> None:
    image = Image.new("RGB", (3, 3))
    row = {**ROW, "images": [image, image.convert("L")]}
    content = inline_row(row)["messages"][0]["content"]
    assert content[0]["image"] is image
    assert content[2]["image"].mode == "RGB"


def test_rows_are_decoded_when_they_are_asked_for() -> None:
    class Rows:
        asked: list[int] = []  # noqa: RUF012  (one instance)

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> dict:
            self.asked.append(index)
            return ROW

    rows = InlineRows(Rows())
    assert len(rows) == 5
    assert Rows.asked == []
    assert len(rows[1:3]) == 2
    assert Rows.asked == [1, 2]
    assert rows[4]["messages"][0]["role"] == "user"
