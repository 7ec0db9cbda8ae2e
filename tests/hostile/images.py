"""Pictures that are none, or not only that: cut, changed, exploding, of odd sizes and kinds, disguised.

Options: ``codec`` of an upload's payload (default: what the bytes begin with); ``late`` = the header is good, so that
only decoding the pixels shows the damage: the cloud then takes the sample and its worker leaves it out.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from cema.wire.image import MAX_IMAGE_BYTES
from hostile.case import MIB, TAKEN, Case

DECODER = "picture"
BAD, LARGE = "image_invalid", "too_large"
_RAMP = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
_CARD = Image.fromarray(np.stack([_RAMP, _RAMP[::-1], _RAMP * 3], -1))
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def saved(kind: str, picture: Image.Image = _CARD, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def good(kind: str) -> bytes:
    options: dict[str, dict[str, Any]] = {"progressive": {"progressive": True}, "lossless": {"lossless": True}}
    name = {"progressive": "jpeg", "lossless": "webp"}.get(kind, kind)
    return saved(name, **options.get(kind, {}))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG by hand. extra: chunks before the pixels. rows: filtered scan lines, a few zeros if not given."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000) if rows is None else rows))
    return PNG_MAGIC + chunk(b"IHDR", header) + b"".join(extra) + pixels + chunk(b"IEND", b"")


@cache
def deflated(megabytes: int) -> bytes:
    """Zeros in a thousandth of their size."""
    return zlib.compress(bytes(megabytes * MIB), 9)


def blank_png(width: int, height: int, *extra: bytes) -> bytes:
    return png(width, height, *extra, rows=bytes((1 + 3 * width) * height))


def with_jpeg_size(width: int, height: int) -> bytes:
    data = bytearray(good("jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def with_segments(marker: int, content: bytes, count: int) -> bytes:
    """A JPEG with ``count`` more segments behind its first marker."""
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return good("jpeg")[:2] + segment * count + good("jpeg")[2:]


def flipped(kind: str, at: int | bytes, bits: int = 0xFF) -> bytes:
    """A good picture with one byte changed, at a place or right behind some bytes."""
    data = bytearray(good(kind))
    data[at if isinstance(at, int) else data.index(at) + len(at)] ^= bits
    return bytes(data)


def cut(kind: str, share: float) -> bytes:
    return good(kind)[: int(len(good(kind)) * share)]


def frames(kind: str, **options: Any) -> bytes:
    return saved(kind, save_all=True, append_images=[_CARD.rotate(90), _CARD.rotate(180)], **options)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.py", "raise SystemExit")
    return buffer.getvalue()


def _case(
    name: str, defect: str, code: str, build: Callable[[], bytes], memory: int | None = None, **options: Any
) -> Case:
    more = {} if memory is None else {"memory_bytes": memory}
    return Case(name, DECODER, defect, code, build, options, **more)


_KINDS = {"jpeg": "jpeg", "progressive": "jpeg", "png": "png", "webp": "webp", "lossless": "webp"}
_LATE = ("jpeg", "progressive", "png")
"""Kinds whose header says nothing about the end of the file."""

CUT = [
    _case(f"{kind} cut to {share}", f"{kind} cut to {share}", BAD, partial(cut, kind, share),
          codec=codec, late=share == 0.75 and kind in _LATE)
    for kind, codec in _KINDS.items() for share in (0.01, 0.05, 0.75)
]  # fmt: skip

FLIPPED = [
    _case("png header checksum", "png checksum of the header", BAD, lambda: flipped("png", 29)),
    _case("png pixels checksum", "png checksum of the pixels", BAD, lambda: flipped("png", b"IDAT\x78"), late=True),
    _case("png chunk length", "png length of a chunk", TAKEN, lambda: flipped("png", 33)),
    _case("png colour type", "png colour type", BAD, lambda: png(4, 4, colour=5)),
    _case("png bit depth", "png bit depth", BAD, lambda: png(4, 4, depth=7)),
    _case("png too few rows", "png pixels missing", BAD, lambda: png(64, 64, rows=bytes(50)), late=True),
    _case("png no pixels", "png without pixels", BAD,
          lambda: good("png")[:33] + chunk(b"IEND", b""), late=True),
    _case("png palette missing", "png without its palette", TAKEN, lambda: png(4, 4, colour=3, rows=bytes(20))),
    _case("jpeg start of image", "jpeg start marker", BAD, lambda: flipped("jpeg", 0), codec="jpeg"),
    _case("jpeg components", "jpeg number of components", BAD,
          lambda: flipped("jpeg", b"\xff\xc0\x00\x11\x08\x00\x30\x00\x40")),
    _case("jpeg precision", "jpeg sample precision", BAD, lambda: flipped("jpeg", b"\xff\xc0\x00\x11")),
    _case("jpeg segment length 0", "jpeg length of a segment", BAD,
          lambda: good("jpeg")[:2] + b"\xff\xe1\x00\x00" + good("jpeg")[2:20], codec="jpeg"),
    _case("jpeg only start", "jpeg without a frame", BAD, lambda: b"\xff\xd8\xff\xd9", codec="jpeg"),
    _case("webp riff length", "webp length of the container", BAD, lambda: flipped("webp", 6)),
    _case("webp frame tag", "webp frame tag", BAD, lambda: flipped("webp", b"VP8 "), codec="webp"),
    _case("webp start code", "webp start code", BAD, lambda: flipped("webp", 23), codec="webp"),
    _case("webp lossless signature", "webp lossless signature", BAD, lambda: flipped("lossless", 20), codec="webp"),
]  # fmt: skip

BOMBS = [
    _case("png one row too many", "png beyond the pixel limit", LARGE, lambda: blank_png(5000, 5001)),
    _case("png 65535 square", "png claims 4 gigapixels", LARGE, lambda: png(65535, 65535)),
    _case("png 2^31 square", "png claims 2^62 pixels", LARGE, lambda: png(2**31 - 1, 2**31 - 1)),
    _case("jpeg 65500 square", "jpeg claims 4 gigapixels", LARGE, lambda: with_jpeg_size(65500, 65500)),
    _case("webp 16383 square", "webp claims 268 megapixels", LARGE,
          lambda: saved("webp")[:26] + struct.pack("<HH", 16383, 16383) + saved("webp")[30:], codec="webp"),
    _case("png text bomb", "png text that inflates to 64 MB", BAD,
          lambda: blank_png(4, 4, chunk(b"zTXt", b"k\0\0" + deflated(64)))),
    _case("png international text bomb", "png itxt that inflates to 64 MB", BAD,
          lambda: blank_png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + deflated(64)))),
    _case("png profile bomb", "png profile that inflates to 64 MB", BAD,
          lambda: blank_png(4, 4, chunk(b"iCCP", b"k\0\0" + deflated(64)))),
    _case("png many texts", "png with 150 texts of 1 MB", BAD, memory=112 * MIB,
          build=lambda: blank_png(4, 4, *[chunk(b"zTXt", b"k%d\0\0" % i + deflated(1)) for i in range(150)])),
    _case("png at the limit", "png of exactly the pixel limit", TAKEN, lambda: blank_png(5000, 5000), memory=400 * MIB),
    _case("too many bytes", "more bytes than a picture may have", LARGE, lambda: good("jpeg") + bytes(MAX_IMAGE_BYTES)),
]  # fmt: skip

SIZES = [
    _case("png 0 x 0", "png of no size", BAD, lambda: png(0, 0)),
    _case("png 0 wide", "png of no width", BAD, lambda: png(0, 9)),
    _case("png 0 high", "png of no height", BAD, lambda: png(9, 0)),
    _case("jpeg 0 high", "jpeg of no height", BAD, lambda: with_jpeg_size(64, 0)),
    _case("jpeg 0 wide", "jpeg of no width", BAD, lambda: with_jpeg_size(0, 48)),
    _case("png 1 x 65535", "png of one row", TAKEN, lambda: blank_png(65535, 1)),
    _case("png 65535 x 1", "png of one column", TAKEN, lambda: blank_png(1, 65535)),
    _case("png 1 x 1", "png of one pixel", TAKEN, lambda: blank_png(1, 1)),
    _case("jpeg 1 x 65500", "jpeg wider than its pixels", TAKEN, lambda: with_jpeg_size(65500, 1)),
]  # fmt: skip

KINDS = [
    _case("jpeg cmyk", "jpeg in cmyk", TAKEN, lambda: saved("jpeg", _CARD.convert("CMYK"))),
    _case("jpeg grey", "jpeg in grey", TAKEN, lambda: saved("jpeg", _CARD.convert("L"))),
    _case("png 16 bit grey", "png with 16 bits of grey", TAKEN,
          lambda: saved("png", Image.fromarray(_RAMP.astype(np.uint16) * 256))),
    _case("png 16 bit colour", "png with 16 bits of colour", TAKEN, lambda: png(4, 4, depth=16, rows=bytes(100))),
    _case("png 1 bit", "png with 1 bit", TAKEN, lambda: saved("png", _CARD.convert("1"))),
    _case("png palette", "png with a palette", TAKEN, lambda: saved("png", _CARD.convert("P"))),
    _case("png alpha", "png with transparency", TAKEN, lambda: saved("png", _CARD.convert("RGBA"))),
    _case("webp alpha", "webp with transparency", TAKEN, lambda: saved("webp", _CARD.convert("RGBA"))),
    _case("png animated", "animated png", BAD, lambda: frames("png")),
    _case("webp animated", "animated webp", BAD, lambda: frames("webp")),
    _case("jpeg of several pictures", "several pictures in a jpeg", BAD, lambda: frames("mpo")),
]  # fmt: skip

DISGUISED = [
    *(
        _case(f"{kind} as a picture", f"a {kind} file", BAD, partial(saved, kind), codec="jpeg")
        for kind in ("gif", "bmp", "tiff", "ico", "ppm", "tga", "pcx", "jpeg2000", "pdf", "eps", "sgi", "dds")
    ),
    _case("svg", "an svg file", BAD, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", codec="png"),
    _case("html", "an html file", BAD, lambda: b"<!DOCTYPE html><script>alert(1)</script>", codec="webp"),
    _case("zip", "a zip file", BAD, zipped, codec="png"),
    _case("elf", "a program", BAD, lambda: b"\x7fELF" + bytes(500), codec="jpeg"),
    _case("wav", "riff that is no webp", BAD, lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), codec="webp"),
    _case("empty", "no bytes", BAD, lambda: b"", codec="jpeg"),
    _case("text", "text", BAD, lambda: b"not a picture", codec="png"),
    _case("zeros", "zeros", BAD, lambda: bytes(MIB), codec="webp"),
    _case("random", "random bytes", BAD, lambda: np.random.default_rng(0).bytes(5000), codec="jpeg"),
    _case("png magic only", "only a png signature", BAD, lambda: PNG_MAGIC),
    _case("png magic before jpeg", "a jpeg behind a png signature", BAD, lambda: PNG_MAGIC + good("jpeg")),
    _case("pdf before jpeg", "a jpeg inside of a pdf", BAD, lambda: b"%PDF-1.4\n" + good("jpeg"), codec="jpeg"),
    _case("jpeg and zip", "a zip file behind a jpeg", TAKEN, lambda: good("jpeg") + zipped()),
    _case("png and zip", "a zip file behind a png", TAKEN, lambda: good("png") + zipped()),
    _case("jpeg with script", "a script in a comment of a jpeg", TAKEN, lambda: with_segments(0xFE, b"<script>/*", 1)),
]  # fmt: skip

METADATA = [
    _case("jpeg exif of 64 KB", "exif that is garbage", TAKEN,
          lambda: with_segments(0xE1, b"Exif\0\0" + b"\xff" * 65000, 1)),
    _case("jpeg 100 exif", "a hundred exif blocks", TAKEN,
          lambda: with_segments(0xE1, b"Exif\0\0II*\0" + bytes(60000), 100)),
    _case("jpeg exif cycle", "exif that refers to itself", TAKEN,
          lambda: with_segments(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0", 1)),
    _case("jpeg 100 profiles", "a profile of 6 MB in a jpeg", TAKEN,
          lambda: with_segments(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(60000), 100)),
    _case("jpeg 20000 comments", "20000 comments in a jpeg", TAKEN, lambda: with_segments(0xFE, b"x", 20000)),
    _case("jpeg picture index garbage", "an index of pictures that is garbage", TAKEN,
          lambda: with_segments(0xE2, b"MPF\0" + b"\xff" * 90, 1)),
    _case("png text of 900 KB", "a long text in a png", TAKEN,
          lambda: blank_png(4, 4, chunk(b"tEXt", b"k\0" + b"x" * 900_000))),
    _case("png profile garbage", "a profile that is garbage", TAKEN,
          lambda: blank_png(4, 4, chunk(b"iCCP", b"k\0\0garbage"))),
    _case("png exif garbage", "exif in a png that is garbage", TAKEN,
          lambda: blank_png(4, 4, chunk(b"eXIf", b"\xff" * 9000))),
    _case("png 20000 chunks", "20000 unknown chunks", TAKEN, lambda: blank_png(4, 4, chunk(b"zzZz", b"x") * 20000)),
    _case("png critical chunk", "an unknown critical chunk", TAKEN, lambda: blank_png(4, 4, chunk(b"ZZZZ", b"x"))),
]  # fmt: skip

CASES = [*CUT, *FLIPPED, *BOMBS, *SIZES, *KINDS, *DISGUISED, *METADATA]
