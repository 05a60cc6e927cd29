"""Pictures: what comes out of a file, what goes into one, and what never does."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from PIL.ExifTags import IFD, Base

import facestyle
from facestyle import images
from facestyle.errors import FacestyleError, InputError, UsageError
from facestyle.images import (
    READABLE_EXTENSIONS,
    SUPPORTED_EXTENSIONS,
    Picture,
    from_model,
    read_picture,
    read_recipe,
    to_model,
    write_picture,
)
from facestyle.marks import is_marked

EXTENSIONS = {
    "JPEG": ".jpg",
    "MPO": ".mpo",
    "PNG": ".png",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
    "TGA": ".tga",
    "ICO": ".ico",
}
HTML = b"\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

# How the file stores an upright picture, by EXIF orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def corners(width: int = 48, height: int = 40) -> np.ndarray:
    """Red, green, blue and white quarters: every turn and mirror image of it differs."""
    pixels_HWC = np.zeros((height, width, 3), np.uint8)
    pixels_HWC[: height // 2, : width // 2] = (255, 0, 0)
    pixels_HWC[: height // 2, width // 2 :] = (0, 255, 0)
    pixels_HWC[height // 2 :, : width // 2] = (0, 0, 255)
    pixels_HWC[height // 2 :, width // 2 :] = (255, 255, 255)
    return pixels_HWC


def noise(width: int = 48, height: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def encode(format: str, image: Image.Image | np.ndarray, **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(data: bytes) -> Picture:
    return read_picture(io.BytesIO(data))


def written(picture: Picture, extension: str, **options: Any) -> bytes:
    file = io.BytesIO()
    write_picture(file, picture, format=extension, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b"")


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    return exif


def icc_profile(device_class: bytes, space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """A minimal ICC 2.1 profile."""
    d50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    tags["wtpt"] = b"XYZ \0\0\0\0" + d50
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name.encode() + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"", 0x02100000, device_class, space, connection
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50 + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def grey_profile() -> bytes:
    """Grey in linear light."""
    linear = b"curv" + struct.pack(">IIH", 0, 1, 0x100)
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", kTRC=linear)


def cmyk_profile() -> bytes:
    """A press whose inks are all one middle grey, and only all four together are black."""
    ramp = bytes(range(256))
    # L a b; from no ink to all of them.
    grid = bytes([255, 128, 128]) + bytes([128, 128, 128]) * 14 + bytes([0, 128, 128])
    matrix = struct.pack(">9i", *(0x10000 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + struct.pack(">IBBBx", 0, 4, 3, 2) + matrix + ramp * 4 + grid + ramp * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", A2B0=table)


# ---------------------------------------------------------------------------- malformed files


def malformed_files() -> Iterator[tuple[str, bytes, tuple[int, int] | type[InputError] | None]]:
    """File name, content, and the outcome: (height, width), an error, or None for either."""
    still = Image.fromarray(corners())
    for format, extension in EXTENSIONS.items():
        options: dict[str, Any] = {}
        if format == "MPO":
            options = {"save_all": True, "append_images": [still.rotate(90)]}
        if format == "ICO":
            options = {"sizes": [(48, 40)]}
        whole = encode(format, still, **options)
        size = (40, 48)
        yield f"whole{extension}", whole, size
        yield f"empty{extension}", b"", InputError
        yield f"20-bytes{extension}", whole[:20], InputError
        # Half an MPO is its first picture.
        half = None if format == "MPO" else InputError
        yield f"half{extension}", whole[: len(whole) // 2], half
        yield f"99-percent{extension}", whole[: len(whole) * 99 // 100], None
        yield f"web-page{extension}", HTML, InputError
        yield f"{format}-within{'.png' if format != 'PNG' else '.jpg'}", whole, size
        for seed in range(60):
            chance = random.Random(seed)
            flipped = bytearray(whole)
            for _ in range(chance.choice((1, 3, 20))):
                position = chance.randrange(min(len(whole), chance.choice((64, 400, 10**9))))
                flipped[position] ^= 1 << chance.randrange(8)
            yield f"flipped-{seed}{extension}", bytes(flipped), None

        yield f"1x1{extension}", encode(format, corners(2, 2)[:1, :1]), (1, 1)
        if format != "ICO":  # holds 256 pixels at most
            yield f"tall{extension}", encode(format, corners(2, 10_000)[:, :1]), (10_000, 1)
        if format in ("JPEG", "TIFF"):
            yield f"cmyk{extension}", encode(format, still.convert("CMYK")), size
        if format in ("PNG", "TIFF", "PPM", "JPEG2000"):
            deep = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 30
            yield f"16-bit{extension}", encode(format, deep), size
        if format in ("PNG", "GIF", "WEBP", "AVIF", "TIFF"):
            frames = encode(format, still, save_all=True, append_images=[still.rotate(180)])
            yield f"animated{extension}", frames, size
        if format in ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"):
            for orientation in range(1, 9):
                data = encode(format, still, exif=oriented(orientation), **options)
                turned = size if orientation < 5 else size[::-1]
                yield f"exif-{orientation}{extension}", data, turned


def test_a_stream_that_takes_a_part_at_a_time_gets_all() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:1000])

    slow, whole = Slow(), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for stream in (slow, whole):
        images.write_picture(stream, images.Picture(pixels_HWC=pixels), format="png")
    assert slow.getvalue() == whole.getvalue()
    assert len(whole.getvalue()) > 5000


def test_every_malformed_file_is_a_picture_or_one_line(tmp_path: Path) -> None:
    files = list(malformed_files())
    wrong = []
    for name, data, expected in files:
        path = tmp_path / name
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            picture = read_picture(path)
            outcome: Any = picture.pixels_HWC.shape[:2]
            assert picture.pixels_HWC.dtype == np.uint8
            assert picture.pixels_HWC.shape[2] == 3
            assert picture.alpha_HW is None or picture.alpha_HW.shape == outcome
        except InputError as error:
            one_line = len(str(error).splitlines()) == 1
            outcome = InputError if one_line and str(error).startswith(str(path)) else error
        if (expected is not None and outcome != expected) or time.perf_counter() - start > 2:
            wrong.append((name, expected, outcome, time.perf_counter() - start))
    assert not wrong
    assert len(files) >= 500


@pytest.mark.parametrize("size", [13_000, 20_000])
@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
def test_picture_bombs_are_refused_from_the_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(size, size, 8, 2, bytes(100_000)))
    program = (
        "import sys, time\n"
        "from facestyle.errors import InputError\n"
        "from facestyle.images import read_picture\n"
        "start = time.perf_counter()\n"
        "try:\n"
        "    read_picture(sys.argv[1])\n"
        "except InputError as error:\n"
        "    print(error)\n"
        "print(time.perf_counter() - start)\n"
        # Not getrusage: its peak includes the parent's memory from before exec.
        "with open('/proc/self/status') as status:\n"
        "    print(next(line for line in status if line.startswith('VmHWM')))\n"
    )
    package = str(Path(facestyle.__file__).parent.parent)
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True
    )
    message, seconds, peak = result.stdout.split("\n")[:3]
    assert f"{size * size // 10**6} megapixels" in message
    assert "at most 100" in message
    assert float(seconds) < 1
    assert int(peak.split()[1]) < 150 * 1024  # kB
    assert not result.stderr


def test_an_icon_cannot_smuggle_in_a_bomb() -> None:
    bomb = png(13_000, 13_000, 8, 2, bytes(100))
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(bomb), 22)
    with pytest.raises(InputError, match="169 megapixels"):
        read(b"\0\0\1\0\1\0" + entry + bomb)


def test_a_file_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(InputError, match="larger than"):
        read(bytes(1001))
    if Path("/dev/zero").exists():
        with pytest.raises(InputError, match="larger than"):
            read_picture("/dev/zero")


def test_what_pillow_only_warns_of_is_ours_to_judge() -> None:
    with pytest.raises(InputError, match="cut off"):  # 94 megapixels: Pillow warns, we read
        read(png(9_700, 9_700, 8, 2, bytes(100)))
    exif = bytearray(exif_with_everything())
    position = exif.index(struct.pack(">HH", Base.Make, 2))
    exif[position + 4 : position + 8] = struct.pack(">I", 60_000)  # a maker's name beyond the end
    picture = read(encode("JPEG", corners(), exif=bytes(exif)))
    assert picture.pixels_HWC.shape == (48, 40, 3)  # the orientation is readable still
    assert picture.exif is not None
    assert b"Camera" not in picture.exif


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (HTML, "web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video"),
        (b"\x1aE\xdf\xa3" + bytes(40), "video"),
        (b"PK\x03\x04" + bytes(40), "archive"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_what_is_not_a_picture_is_named_with_a_remedy(data: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=kind) as caught:
        read(data)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_a_path_without_a_picture_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(InputError) as caught:
        read_picture(tmp_path / "two\nlines.png")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match=r"^stdin is empty"):
        read_picture(io.BytesIO(), name="stdin")


# ------------------------------------------------------------------------- what a file holds


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_every_orientation_comes_out_upright(format: str, orientation: int) -> None:
    upright = Image.fromarray(corners())
    stored = upright.transpose(STORED[orientation]) if orientation > 1 else upright
    picture = read(encode(format, stored, exif=oriented(orientation)))
    centres = picture.pixels_HWC[10::20, 12::24].astype(int)
    expected = corners()[10::20, 12::24].astype(int)
    assert np.abs(centres - expected).max() < 12  # lossy formats round
    again = Image.open(io.BytesIO(written(picture, ".jpg")))
    assert again.getexif().get(Base.Orientation, 1) == 1


def test_alpha_is_turned_with_the_pixels() -> None:
    rgba_HWC = np.dstack((corners(), corners()[..., 0]))
    stored = Image.fromarray(rgba_HWC).transpose(Image.Transpose.ROTATE_90)
    picture = read(encode("PNG", stored, exif=oriented(6)))
    assert np.array_equal(picture.pixels_HWC, corners())
    assert equal(picture.alpha_HW, corners()[..., 0])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled_not_clipped(format: str) -> None:
    deep_HW = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read(encode(format, deep_HW))
    expected = np.rint(deep_HW / 257).astype(np.uint8)
    assert np.array_equal(picture.pixels_HWC, np.dstack([expected] * 3))


def test_16_bit_colour_is_scaled_and_noted() -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16)
    deep_HWC = np.stack([ramp, ramp[::-1], ramp // 2], axis=-1).reshape(64, 64, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep_HWC)
    picture = read(png(64, 64, 16, 2, rows))
    assert np.abs(picture.pixels_HWC - deep_HWC / 257).max() <= 1
    assert picture.note == "16 bits reduced to 8"


@pytest.mark.parametrize("white", [1, 255])
def test_float_tiff_spans_black_to_white(white: int) -> None:
    values_HW = np.linspace(0, white, 256, dtype=np.float32).reshape(16, 16)
    picture = read(encode("TIFF", values_HW))
    assert np.array_equal(picture.pixels_HWC[..., 0].ravel(), np.arange(256))
    assert picture.note == f"white taken to be {white}"


def test_transparency_of_every_kind_becomes_alpha() -> None:
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    picture = read(encode("PNG", palette, transparency=bytes([255, 40])))
    assert picture.alpha_HW is not None
    assert picture.alpha_HW[0].tolist() == [255, 40, 255, 255]
    assert picture.pixels_HWC[0, :2].tolist() == [[255, 0, 0], [0, 0, 255]]

    picture = read(encode("PNG", Image.new("LA", (3, 2), (90, 17))))
    assert picture.alpha_HW is not None
    assert picture.alpha_HW.max() == picture.alpha_HW.min() == 17
    assert picture.pixels_HWC[0, 0].tolist() == [90, 90, 90]

    assert read(encode("PNG", corners())).alpha_HW is None


def test_animations_give_their_first_frame_and_say_so() -> None:
    first = Image.fromarray(corners())
    others = [first.rotate(180), first.rotate(90)]
    for format, note in [
        ("GIF", "first of 3 frames"),
        ("PNG", "first of 3 frames"),
        ("WEBP", "first of 3 frames"),
        ("AVIF", "first of 3 frames"),
        ("TIFF", "first of several frames"),
    ]:
        picture = read(encode(format, first, save_all=True, append_images=others))
        assert picture.note == note
        assert np.abs(picture.pixels_HWC[5, 5].astype(int) - (255, 0, 0)).max() < 12
    assert read(encode("MPO", first, save_all=True, append_images=others)).note is None


def test_grey_with_a_profile_becomes_srgb() -> None:
    grey = Image.new("L", (8, 8), 55)  # 0.2157 of the light of white is sRGB's 128
    picture = read(encode("PNG", grey, icc_profile=grey_profile()))
    assert np.abs(picture.pixels_HWC.astype(int) - 128).max() <= 1
    assert picture.icc is None
    assert picture.note == "GRAY converted to sRGB through its profile"


def test_cmyk_goes_through_its_profile_where_there_is_one() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    picture = read(encode("TIFF", cyan))
    assert picture.pixels_HWC[0, 0].tolist() == [0, 255, 255]
    assert picture.note == "CMYK converted to sRGB without a profile"

    picture = read(encode("TIFF", cyan, icc_profile=cmyk_profile()))
    assert np.ptp(picture.pixels_HWC[0, 0].astype(int)) <= 2  # this press has grey ink only
    assert 110 < picture.pixels_HWC[0, 0, 0] < 130  # L* = 50
    assert picture.icc is None


def test_a_broken_profile_or_exif_does_not_cost_the_picture() -> None:
    picture = read(encode("JPEG", corners(), icc_profile=b"junk" * 50))
    assert picture.note == "unreadable colour profile dropped"
    assert picture.icc is None
    picture = read(encode("JPEG", corners(), icc_profile=grey_profile()))
    assert picture.note == "colour profile dropped: made for GRAY, not for RGB"
    picture = read(encode("JPEG", corners(), exif=b"Exif\0\0" + b"junk" * 50))
    assert picture.note == "unreadable EXIF dropped"
    assert picture.exif is None
    long = Image.Exif()
    long[Base.ImageDescription] = "x" * 70_000  # more than a JPEG could take
    assert read(encode("PNG", corners(), exif=long)).note == "unreadable EXIF dropped"


def test_pixels_of_a_picture_cannot_be_changed_by_mistake() -> None:
    for orientation in (1, 6):
        picture = read(encode("PNG", corners(), exif=oriented(orientation)))
        with pytest.raises(ValueError, match="read-only"):
            picture.pixels_HWC[0, 0] = 0


def test_a_crop_keeps_no_alpha_of_another_size() -> None:
    picture = Picture(pixels_HWC=corners(), alpha_HW=corners()[..., 0], icc=SRGB)
    assert picture.with_pixels(noise()).alpha_HW is picture.alpha_HW
    crop = picture.with_pixels(noise(8, 8))
    assert crop.alpha_HW is None
    assert crop.icc == SRGB


# ------------------------------------------------------------------------------------ ranges


def test_model_range_and_layout() -> None:
    crops_NHWC = np.zeros((1, 2, 3, 3), np.uint8)
    crops_NHWC[0, 1, 2] = (255, 0, 51)
    images_NCHW = to_model(crops_NHWC)
    assert images_NCHW.shape == (1, 3, 2, 3)
    assert images_NCHW.dtype == np.float32
    assert images_NCHW[0, :, 1, 2] == pytest.approx([1, -1, -0.6])


def test_model_round_trip_is_exact_rounded_and_clipped() -> None:
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(from_model(to_model(every_value)), every_value)
    level = np.float32(2 / 255)
    images_NCHW = np.array([-9, -1 + 0.4 * level, -1 + 0.6 * level, 9], np.float32)
    outcome = from_model(np.broadcast_to(images_NCHW, (1, 3, 1, 4)))
    assert outcome[0, 0, :, 0].tolist() == [0, 0, 1, 255]


def test_nan_from_a_model_is_an_error_not_a_black_face() -> None:
    with pytest.raises(FacestyleError, match="NaN"):
        from_model(np.full((1, 3, 2, 2), np.nan, np.float32))


# ----------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("extension", SUPPORTED_EXTENSIONS)
def test_equal_input_gives_equal_bytes(extension: str) -> None:
    picture = Picture(pixels_HWC=noise(), alpha_HW=noise()[..., 0], icc=SRGB)
    assert written(picture, extension, recipe={"seed": 1, "model": "a"}) == written(
        picture, extension, recipe={"model": "a", "seed": 1}
    )


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_lossless_formats_are_bit_equal(tmp_path: Path, extension: str) -> None:
    picture = Picture(pixels_HWC=noise(), alpha_HW=noise()[..., 0], icc=SRGB)
    path = tmp_path / f"out{extension}"
    assert write_picture(path, picture) is None
    again = read_picture(path)
    assert np.array_equal(again.pixels_HWC, picture.pixels_HWC)
    assert equal(again.alpha_HW, picture.alpha_HW)
    assert again.note is None


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".avif"])
def test_lossy_formats_stay_close_at_saturated_edges(extension: str) -> None:
    again = read(written(Picture(pixels_HWC=corners()), extension))
    error = np.abs(again.pixels_HWC.astype(int) - corners())
    # WebP halves its chroma: only there do the edges between saturated colours move.
    assert error.mean() < (6 if extension == ".webp" else 1.5)


@pytest.mark.parametrize("extension", SUPPORTED_EXTENSIONS)
def test_profile_and_alpha_come_back_or_the_loss_is_told(extension: str) -> None:
    alpha_HW = corners()[..., 1]
    picture = Picture(pixels_HWC=corners(), alpha_HW=alpha_HW, icc=SRGB)
    file = io.BytesIO()
    note = write_picture(file, picture, format=extension)
    again = read(file.getvalue())
    if extension == ".bmp":
        assert note == "BMP cannot hold alpha (laid over white), the colour profile, the mark"
        assert again.icc is None
    else:
        assert again.icc == SRGB
    if extension in (".jpg", ".jpeg", ".bmp"):
        assert note is not None
        assert "alpha" in note
        assert again.alpha_HW is None
        assert again.pixels_HWC[5, 5].min() > 250  # transparent red over white
        assert again.pixels_HWC[5, 40].tolist() == pytest.approx([0, 255, 0], abs=3)
    else:
        assert again.alpha_HW is not None
        blue = again.pixels_HWC[22, 5].astype(int)  # colour under full transparency is kept
        assert np.abs(blue - (0, 0, 255)).max() < 40
        # AVIF compresses alpha too.
        assert np.abs(again.alpha_HW.astype(int) - alpha_HW).max() <= (
            8 if ".avif" in extension else 0
        )


def exif_with_everything() -> bytes:
    """Maker, orientation, time, maker's note, GPS, and a thumbnail in a second directory."""
    exif = oriented(6)
    exif[Base.Make] = "Camera"
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2026:01:02 03:04:05",
        Base.ExifImageWidth: 48,
        Base.MakerNote: b"MAKER-NOTE" * 4,
    }
    exif[IFD.GPSInfo] = {1: "N", 2: (48.0, 51.0, 29.6)}
    block = exif.tobytes()[6:]
    count = struct.unpack_from(">H", block, 8)[0]
    thumbnail = b"THUMBNAIL-OF-THE-OLD-FACE"
    directory = len(block)
    entries = struct.pack(">HHII", Base.JpegIFOffset, 4, 1, directory + 30)
    entries += struct.pack(">HHII", Base.JpegIFByteCount, 4, 1, len(thumbnail))
    link = 8 + 2 + 12 * count
    block = block[:link] + struct.pack(">I", directory) + block[link + 4 :]
    return b"Exif\0\0" + block + struct.pack(">H", 2) + entries + bytes(4) + thumbnail


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_gps_thumbnail_and_makers_note_do_not_survive(extension: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:GPSLatitude/></x:xmpmeta>'
    source = encode("JPEG", noise(), exif=exif_with_everything(), xmp=xmp)
    assert Image.open(io.BytesIO(source)).getexif().get_ifd(IFD.IFD1)
    picture = read(source)
    assert picture.note is None
    for keep_metadata in (False, True):
        data = written(picture, extension, keep_metadata=keep_metadata)
        exif = Image.open(io.BytesIO(data)).getexif()
        assert exif[Base.Make] == "Camera"
        assert exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] == "2026:01:02 03:04:05"
        assert exif.get(Base.Orientation, 1) == 1
        assert bool(exif.get_ifd(IFD.GPSInfo)) is keep_metadata
        assert not exif.get_ifd(IFD.IFD1)
        for secret in (b"MAKER-NOTE", b"OLD-FACE", b"GPSLatitude"):
            assert secret in source
            assert secret not in data


def test_the_structure_of_a_tiff_is_not_taken_for_exif() -> None:
    picture = read(encode("TIFF", noise(), exif=oriented(3)))
    exif = Image.open(io.BytesIO(written(picture, ".jpg"))).getexif()
    assert Base.StripOffsets not in exif
    assert Base.ImageWidth not in exif


# -------------------------------------------------------------------------- mark and recipe

RECIPE = {
    "version": '1.2 "<beta>"',
    "domain": "ülk & 女 ]]> </facestyle:Recipe>",
    "control": "\0\n\x1b",
    "seed": 7,
    "code": [0.25, -1e-9, None, True],
}


def xmp_packet(data: bytes) -> bytes:
    packet = Image.open(io.BytesIO(data)).info["xmp"]
    assert isinstance(packet, bytes)
    return packet


@pytest.mark.parametrize("extension", [e for e in SUPPORTED_EXTENSIONS if e != ".bmp"])
def test_the_mark_is_well_formed_and_the_recipe_returns(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out{extension}"
    write_picture(path, Picture(pixels_HWC=corners()), recipe=RECIPE)
    assert read_recipe(path) == RECIPE
    tree = ElementTree.fromstring(xmp_packet(path.read_bytes()))
    kind = tree.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind is not None
    assert kind.text == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )
    tool = tree.find(".//{http://ns.adobe.com/xap/1.0/}CreatorTool")
    assert tool is not None
    assert tool.text == f"facestyle {RECIPE['version']}"


@pytest.mark.parametrize("extension", [e for e in SUPPORTED_EXTENSIONS if e != ".bmp"])
def test_a_marked_file_is_known_from_others(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out{extension}"
    write_picture(path, Picture(pixels_HWC=corners()), recipe=RECIPE)
    assert is_marked(path)
    write_picture(path, Picture(pixels_HWC=corners()), recipe=RECIPE, mark=False)
    assert not is_marked(path)
    assert not is_marked(tmp_path / "missing")


@pytest.mark.parametrize("extension", SUPPORTED_EXTENSIONS)
def test_without_the_mark_nothing_of_it_is_left(extension: str) -> None:
    data = written(Picture(pixels_HWC=corners()), extension, recipe=RECIPE, mark=False)
    for word in (b"xmp", b"facestyle", b"Recipe", b"DigitalSourceType"):
        assert word not in data
    assert read_recipe(io.BytesIO(data)) is None


def test_a_recipe_of_another_program_or_a_damaged_one() -> None:
    def with_xmp(packet: str) -> io.BytesIO:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", packet)
        return io.BytesIO(encode("PNG", corners(), pnginfo=chunks))

    assert read_recipe(with_xmp("<a/>")) is None
    ours = "<a xmlns:f='urn:facestyle:xmp:1.0/'><f:Recipe>{}</f:Recipe></a>"
    assert read_recipe(with_xmp(ours.format('{"seed": 1}'))) == {"seed": 1}
    as_attribute = "<a xmlns:f='urn:facestyle:xmp:1.0/' f:Recipe='{\"seed\": 2}'/>"
    assert read_recipe(with_xmp(as_attribute)) == {"seed": 2}
    for damaged in ("{", "[1]", "[" * 100_000, "</b>"):
        with pytest.raises(InputError, match="damaged"):
            read_recipe(with_xmp(ours.format(damaged)))
    entities = "<!DOCTYPE a [<!ENTITY e 'e'>]>" + ours.format("&e;")
    assert read_recipe(with_xmp(entities)) is None


# -------------------------------------------------------------------------------- atomicity


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(FacestyleError, match="disk full") as caught:
        write_picture(path, Picture(pixels_HWC=corners()))
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(temporary: Path, path: Path) -> None:
        assert temporary.parent == path.parent  # another file system could not replace at once
        assert temporary.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(tmp_path / "out.png", Picture(pixels_HWC=corners()))
    assert not list(tmp_path.iterdir())


def test_an_output_obeys_the_umask_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    (tmp_path / "plain").touch()
    write_picture(path, Picture(pixels_HWC=corners()))
    assert np.array_equal(read_picture(path).pixels_HWC, corners())
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Picture(pixels_HWC=corners())
    with pytest.raises(FacestyleError, match=r"no such folder; mkdir -p .*/missing"):
        write_picture(tmp_path / "missing" / "out.png", picture)
    (tmp_path / "file").touch()
    with pytest.raises(FacestyleError, match="no such folder"):
        write_picture(tmp_path / "file" / "out.png", picture)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FacestyleError, match="not a regular file"):
        write_picture(tmp_path / "folder.png", picture)
    with pytest.raises(FacestyleError, match="20000x1 pixels as WEBP"):
        write_picture(tmp_path / "out.webp", picture.with_pixels(noise(20_000, 1)))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FacestyleError, match="Permission denied"):
        write_picture(tmp_path / "out.png", picture)


def test_the_format_is_asked_for_by_extension_or_by_name(tmp_path: Path) -> None:
    picture = Picture(pixels_HWC=corners())
    for path, format in [("out.xyz", None), ("out", None), ("out.png", "gif")]:
        with pytest.raises(UsageError, match="names no picture format") as caught:
            write_picture(tmp_path / path, picture, format=format)
        assert caught.value.hint is not None
        assert ".png .jpg" in caught.value.hint
    with pytest.raises(UsageError, match="the output stream names no"):
        write_picture(io.BytesIO(), picture)
    write_picture(tmp_path / "out.PNG", picture, format="JPEG")
    assert (tmp_path / "out.PNG").read_bytes().startswith(b"\xff\xd8\xff")
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_behind_a_stream_is_named_and_a_broken_pipe_is_not() -> None:
    class Stream(io.BytesIO):
        def __init__(self, number: int) -> None:
            self.number = number

        def write(self, _: object) -> int:
            raise OSError(self.number, os.strerror(self.number))

    picture = Picture(pixels_HWC=corners())
    with pytest.raises(FacestyleError, match="disk full: the output stream"):
        write_picture(Stream(errno.ENOSPC), picture, format="png")
    with pytest.raises(BrokenPipeError):
        write_picture(Stream(errno.EPIPE), picture, format="png")


def test_what_is_written_can_be_found_again() -> None:
    assert set(SUPPORTED_EXTENSIONS) | set(EXTENSIONS.values()) <= READABLE_EXTENSIONS
