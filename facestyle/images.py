"""Pictures in files: the one place that knows formats, colour, ranges and metadata.

Outside a model a picture is upright uint8 RGB, HWC; inside it is float32 in [-1, 1], NCHW.
``read_picture`` leads from a file to the first, ``to_model`` and ``from_model`` between the
two, ``write_picture`` back to a file.

Colour: pixels stay in the RGB space of their own file and its ICC profile is written back, so
what nobody touched keeps its numbers. CMYK, and grey with a grey profile, become sRGB through
the profile, which is then dropped: untagged means sRGB.

Metadata: descriptive EXIF is kept. What describes the file as it was stored (orientation,
sizes) is dropped when reading, and so are the thumbnail and the maker's note (both can show
the face as it was, the second can say where), XMP and IPTC. GPS is dropped when writing,
unless asked for.

It knows no faces, models or output names, and creates no folder. It silences Pillow with
``warnings.catch_warnings``, which threads share: who reads in threads silences them around all
of it, as ``batch.side_by_side`` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import IFD, Base

from facestyle import marks
from facestyle.errors import FacestyleError, InputError, UsageError

MAX_MEGAPIXELS = 100  # 4 bytes a pixel in Pillow, 3 in numpy: some 700 MB while decoding
MAX_FILE_BYTES = 512 * 2**20  # 100 megapixels of uncompressed RGBA are 381 MiB
MAX_EXIF_BYTES = 65533  # what one JPEG segment holds; without a thumbnail some 2 kB are usual

# Pillow's names, JPEG with MPO; TGA last, because it has no magic number to go by.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "ICO", "TGA")

# Chroma at full resolution, because faces have saturated edges. AVIF's tiles and row threads
# would follow the number of cores, and its bytes with them: one thread gives other bytes than
# two, more give the same as two. Pillow puts EXIF into uncompressed TIFF only. PNG's usual level 6
# takes two and a half times as long as 3, for a file 1 to 4 % smaller.
_SAME_ON_ANY_MACHINE = {"autotiling": False, "max_threads": 4}
_JPEG = ("JPEG", {"quality": 95, "subsampling": "4:4:4"})
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 3}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": ("WEBP", {"quality": 95, "method": 4, "exact": True}),
    ".avif": ("AVIF", {"quality": 90, "subsampling": "4:4:4", **_SAME_ON_ANY_MACHINE}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}
SUPPORTED_EXTENSIONS = tuple(_ENCODERS)
_READ_ONLY = ".apng .gif .ico .j2k .jfif .jp2 .jpe .jpx .mpo .pbm .pfm .pgm .pnm .ppm .tga"
READABLE_EXTENSIONS = frozenset(_ENCODERS).union(_READ_ONLY.split())


UNREAD_EXTENSIONS = frozenset(
    [".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".psd", ".raf", ".svg"]
)
"""Pictures that other programs read; whoever has some in a folder is to know that they stay out."""


def is_picture(path: PurePath) -> bool:
    """Whether a file's name is a picture's, and no hidden one's: macOS puts ``._a.jpg`` beside."""
    return path.suffix.lower() in READABLE_EXTENSIONS and not path.name.startswith(".")


# EXIF orientation → transpose, flip rows, flip columns, in this order (EXIF 2.32, 4.6.4 A).
_UPRIGHT = {2: "c", 3: "rc", 4: "r", 5: "t", 6: "tc", 7: "trc", 8: "tr"}

# A list of what is kept: in a TIFF the same directory also holds strips, sizes, XMP and IPTC.
_KEPT_TAGS = {
    *(Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Rating),
    *(Base.Artist, Base.Copyright, Base.XResolution, Base.YResolution, Base.ResolutionUnit),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
}
_DROPPED_TAGS = {Base.MakerNote, Base.ExifImageWidth, Base.ExifImageHeight, IFD.Interop}

_TIFF_XMP = 700

# What people hand over instead of a picture: how it begins, what it is, the remedy.
_VIDEO = ("a video", "take a picture out of it first, e.g. with ffmpeg -frames:v 1")
_LOOKALIKES = (
    (rb"(\xef\xbb\xbf)?\s*<.{0,999}?(html|<body)", "a web page", "download the picture itself"),
    (rb"(\xef\xbb\xbf)?\s*<.{0,999}?svg", "an SVG drawing", "export it as PNG"),
    (rb"%PDF|%!PS", "a PDF or PostScript document", "export the page as PNG"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture", "convert it to JPEG first"),
    (rb"....ftyp(?!avi)|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|FLV\x01", *_VIDEO),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", "convert it to PNG first"),
    (rb"8BPS", "a Photoshop document", "export it as PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "unpack it first"),
)

Pixels = NDArray[np.uint8]
File = str | os.PathLike[str] | BinaryIO


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An upright picture, and what its file said about it."""

    pixels_HWC: Pixels
    """uint8 RGB in the space of ``icc``; read-only as ``read_picture`` gives it"""
    alpha_HW: Pixels | None = None
    """opacity, 255 is opaque; None where the file had none"""
    icc: bytes | None = None
    """RGB colour profile; None is sRGB"""
    exif: bytes | None = None
    """descriptive EXIF without orientation, GPS included"""
    note: str | None = None
    """what a user should know: ``first of 12 frames``, ``16 bits reduced to 8``"""

    def with_pixels(self, pixels_HWC: Pixels) -> Picture:
        """The same picture with other pixels; those of another size, a crop, lose the alpha."""
        same_size = pixels_HWC.shape[:2] == self.pixels_HWC.shape[:2]
        alpha_HW = self.alpha_HW if same_size else None
        return dataclasses.replace(self, pixels_HWC=pixels_HWC, alpha_HW=alpha_HW)


def to_model(crops_NHWC: Pixels) -> NDArray[np.float32]:
    """uint8 RGB → float32 NCHW, 0 → -1 and 255 → 1."""
    assert crops_NHWC.dtype == np.uint8, crops_NHWC.dtype
    images_NHWC = crops_NHWC.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))


def from_model(images_NCHW: NDArray[np.floating[Any]]) -> Pixels:
    """float NCHW → uint8 RGB, rounded and clipped: undoes ``to_model`` exactly."""
    if not np.isfinite(images_NCHW).all():
        found = "the model returned NaN or infinity, expected numbers near [-1, 1]"
        raise FacestyleError(found, "check its weights, or run it in float32")
    images_NHWC = images_NCHW.transpose(0, 2, 3, 1).astype(np.float32)
    rounded_NHWC: NDArray[np.float32] = np.rint((images_NHWC + 1) * np.float32(127.5))
    return np.ascontiguousarray(rounded_NHWC.clip(0, 255).astype(np.uint8))


def read_picture(source: File, *, name: str | None = None) -> Picture:
    """The picture in a file or stream, whatever its extension says; ``name`` is for errors.

    Anything but a whole picture of an accepted size raises InputError. A broken profile or
    broken EXIF in a good picture is left out, and noted.
    """
    with _opened(source, name) as image:
        return _decode(image)


def read_recipe(source: File) -> dict[str, Any] | None:
    """The recipe that ``write_picture`` stored in a picture; None if there is none."""
    with _opened(source, None) as image:
        packet = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    packet = packet if isinstance(packet, bytes) else str(packet).encode()
    return marks.recipe_in(packet, str(source))


@contextlib.contextmanager
def _opened(source: File, name: str | None) -> Iterator[Image.Image]:
    """A picture with its header read and its size accepted; any failure is an InputError."""
    name, data = _read_bytes(source, name)
    try:
        with warnings.catch_warnings():
            # Pillow warns of corrupt EXIF and of large pictures: both are ours to judge.
            warnings.simplefilter("ignore")
            if data.startswith(b"\0\0\1\0"):
                # ICO alone decodes while it is opened, before the size can be looked at.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
                    raise Image.DecompressionBombError(image.width * image.height)
                yield image
    except Exception as error:
        # Malformed bytes lead Pillow's decoders to any exception: OSError, SyntaxError,
        # ValueError, struct.error, but AssertionError and RuntimeError as well.
        raise _explain(name, data, error) from error


def _read_bytes(source: File, name: str | None) -> tuple[str, bytes]:
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the input stream"
    name = "".join(c if c.isprintable() else "?" for c in name)  # a message stays on one line
    try:
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A pipe or a device says 0, and may have no end.
                data = file.read(size if 0 < size <= MAX_FILE_BYTES else MAX_FILE_BYTES + 1)
        else:
            data = source.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist", "check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder, expected a picture") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    if not data:
        raise InputError(f"{name} is empty, expected a picture", "fetch or export it again")
    if len(data) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 2**20} MiB"
        raise InputError(f"{name} is larger than {limit}, the limit", "export it as JPEG or PNG")
    return name, data


def _explain(name: str, data: bytes, error: Exception) -> InputError:
    """What to tell about a file on which Pillow, or our limit, raised ``error``."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\d+", str(error))  # Pillow: "Image size (400000000 pixels) ..."
        found = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "too many pixels"
        expected = f"at most {MAX_MEGAPIXELS} megapixels"
        return InputError(f"{name} has {found}, expected {expected}", "make it smaller first")
    for beginning, kind, remedy in _LOOKALIKES:
        if re.match(beginning, data[:1024], re.DOTALL | re.IGNORECASE):
            return InputError(f"{name} is {kind}, not a picture that can be read", remedy)
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(_FORMATS)
        return InputError(f"{name} is not a picture, or damaged", f"expected one of {known}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name} is damaged or cut off ({reason})", "fetch or export it again")


def _decode(image: Image.Image) -> Picture:
    notes: list[str] = []
    storage = str(getattr(image, "tile", ""))  # names the raw mode, gone after loading
    image.load()
    icc = image.info.get("icc_profile") or None
    exif, orientation = _read_exif(image, notes)

    # Bring every depth to 8 bits, and take alpha apart from colour.
    colour, alpha = image, None
    if ";16" in storage:
        notes.append("16 bits reduced to 8")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        colour = _eight_bits(image, 4095 if "I;12" in storage else 65535, notes)
    elif image.has_transparency_data:
        colour = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = colour.getchannel("A")
        colour = colour.convert(colour.mode[:-1])
    elif image.mode not in ("L", "CMYK", "RGB"):  # of one that is RGB it would be a copy
        colour = image.convert("RGB")
    colour, icc = _to_rgb(colour, icc, notes)

    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo and previews
        # Counting the pages of a TIFF costs the square of their number.
        count = "several" if image.format == "TIFF" else getattr(image, "n_frames", 1)
        notes.append(f"first of {count} frames")
    return Picture(
        pixels_HWC=_upright(np.asarray(colour), orientation),
        alpha_HW=None if alpha is None else _upright(np.asarray(alpha), orientation),
        icc=icc,
        exif=exif,
        note=", ".join(notes) or None,
    )


def _eight_bits(image: Image.Image, white: float, notes: list[str]) -> Image.Image:
    """Deeper grey → 8 bits, from 0 to ``white``."""
    values_HW = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        # Nothing in the file says which value is white: take the next usual one.
        peak = float(values_HW.max())
        white = next((usual for usual in (1, 255, 65535, 2**32 - 1) if peak <= usual), peak)
        notes.append(f"white taken to be {white:g}")
    scaled_HW = values_HW * np.float32(255 / white)
    return Image.fromarray(np.rint(scaled_HW).clip(0, 255).astype(np.uint8))


def _to_rgb(
    image: Image.Image, icc: bytes | None, notes: list[str]
) -> tuple[Image.Image, bytes | None]:
    """L, RGB or CMYK → RGB, and the profile that its numbers are still in."""
    if icc is not None:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            space = profile.profile.xcolor_space.strip()
            if space == "RGB" and image.mode in ("L", "RGB"):
                return image if image.mode == "RGB" else image.convert("RGB"), icc
            if (image.mode, space) in (("L", "GRAY"), ("CMYK", "CMYK")):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
                assert converted is not None  # None would come from inPlace
                notes.append(f"{space} converted to sRGB through its profile")
                return converted, None
            notes.append(f"colour profile dropped: made for {space}, not for {image.mode}")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.append("unreadable colour profile dropped")
    if image.mode == "CMYK":
        notes.append("CMYK converted to sRGB without a profile")
    return image if image.mode == "RGB" else image.convert("RGB"), None


def _upright(stored: Pixels, orientation: int) -> Pixels:
    turn = _UPRIGHT.get(orientation, "")
    stored = stored.swapaxes(0, 1) if "t" in turn else stored
    stored = stored[:: -1 if "r" in turn else 1, :: -1 if "c" in turn else 1]
    upright = np.ascontiguousarray(stored)
    upright.setflags(write=False)
    return upright


def _read_exif(image: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
    """The EXIF worth keeping, and the orientation still to apply (Pillow has turned a TIFF)."""
    orientation = 1
    try:
        found = image.getexif()
        orientation = found.get(Base.Orientation, 1)
        if image.info.get("exif") and not len(found):
            raise ValueError("Pillow has tried to read it before, for the resolution, and failed")
        kept = Image.Exif()
        for tag in _KEPT_TAGS.intersection(found):
            kept[tag] = found[tag]
        for directory in {IFD.Exif, IFD.GPSInfo}.intersection(found):
            entries = found.get_ifd(directory)
            kept[directory] = {tag: entries[tag] for tag in entries.keys() - _DROPPED_TAGS}
        exif = kept.tobytes() if len(kept) else None
        if exif is not None and len(exif) > MAX_EXIF_BYTES:
            raise ValueError(f"{len(exif)} bytes of EXIF")
    except Exception:  # as with pixels: malformed bytes lead Pillow to any exception
        notes.append("unreadable EXIF dropped")
        return None, orientation
    return exif, orientation


def output_extension(target: str | Path, format: str | None = None) -> str:
    """One of SUPPORTED_EXTENSIONS: of ``format``, else of ``target``; others raise UsageError."""
    extension = "." + (format or Path(target).suffix).lower().lstrip(".")
    if extension not in _ENCODERS:
        found = f"{format or target} names no picture format that can be written"
        raise UsageError(found, "use one of " + " ".join(SUPPORTED_EXTENSIONS))
    return extension


def write_picture(
    destination: File,
    picture: Picture,
    *,
    format: str | None = None,
    recipe: Mapping[str, object] | None = None,
    mark: bool = True,
    keep_metadata: bool = False,
) -> str | None:
    """Write a picture whole or not at all; the value says what the format could not hold.

    ``format`` is one of SUPPORTED_EXTENSIONS, by default the extension of ``destination``.
    ``mark`` adds XMP: that a model made this, and ``recipe`` (JSON values; its ``version`` is
    that of the program) for ``read_recipe``. Equal arguments give equal bytes. A folder that
    is missing is an error, so that a mistyped path leaves nothing behind.
    """
    path = Path(destination) if isinstance(destination, str | os.PathLike) else None
    target = path or "the output stream"
    extension = output_extension(target, format)
    packet = marks.packet_of(recipe) if mark else None
    encoded, note = _encode(picture, *_ENCODERS[extension], packet, keep_metadata)
    try:
        if isinstance(destination, str | os.PathLike):
            _replace(Path(destination), encoded)
        else:
            rest = memoryview(encoded)
            while rest:  # an unbuffered stream may take a part
                rest = rest[destination.write(rest) or 0 :]
    except BrokenPipeError:
        raise  # the reader has gone: the caller ends quietly
    except OSError as error:
        found, hint = f"cannot write {target}: {error.strerror}", "name another output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found, hint = f"disk full: {target} was not written", "free some space"
        elif path and not path.parent.is_dir():
            found, hint = f"cannot write {path}: no such folder", f"mkdir -p {path.parent}"
        raise FacestyleError(found, hint) from error
    return note


def _encode(
    picture: Picture, encoder: str, options: dict[str, Any], packet: bytes | None, gps: bool
) -> tuple[bytes, str | None]:
    pixels_HWC, alpha_HW, lost = picture.pixels_HWC, picture.alpha_HW, []
    if alpha_HW is not None and encoder in ("JPEG", "BMP"):
        opacity_HW1 = alpha_HW[..., None].astype(np.uint16)
        over_white_HWC = pixels_HWC * opacity_HW1 + 255 * (255 - opacity_HW1)
        pixels_HWC, alpha_HW = ((over_white_HWC + 127) // 255).astype(np.uint8), None
        lost.append("alpha (laid over white)")
    if alpha_HW is not None:
        pixels_HWC = np.dstack((pixels_HWC, alpha_HW))

    exif = Image.Exif()
    exif.load(picture.exif or b"")
    if not gps and IFD.GPSInfo in exif:
        del exif[IFD.GPSInfo]
    options = {**options, "icc_profile": picture.icc}
    if encoder == "BMP":
        held = {"the colour profile": picture.icc, "EXIF": picture.exif, "the mark": packet}
        lost += [what for what, value in held.items() if value]
    elif packet is not None and encoder == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet)
    elif packet is not None and encoder == "TIFF":
        exif[_TIFF_XMP] = packet
    elif packet is not None:
        options["xmp"] = packet
    if len(exif):
        options["exif"] = exif

    file = io.BytesIO()
    try:
        Image.fromarray(pixels_HWC).save(file, encoder, **options)
    except (OSError, ValueError) as error:  # such as a side above WebP's 16383 pixels
        height, width = pixels_HWC.shape[:2]
        found = f"cannot write {width}x{height} pixels as {encoder}: {error}"
        raise FacestyleError(found, "write a .png instead") from error
    return file.getvalue(), f"{encoder} cannot hold {', '.join(lost)}" if lost else None


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step; after a failure nothing has changed."""
    if path.exists() and not path.is_file():  # a folder, or a device that must stay one
        raise FacestyleError(f"{path} exists and is not a regular file", "name another output")
    temporary = path.parent / f".facestyle-{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # gone already after a success
            temporary.unlink()
