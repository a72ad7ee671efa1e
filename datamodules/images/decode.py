"""One image file, or its bytes -> a uint8 tensor, upright RGB; or an error that names it."""

import io
import os
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from datamodules.loading.retry import with_retries
from datamodules.loading.untrusted import FORMATS, check_pixels
from datamodules.loading.workers import OneLineError

# Only this place chooses the decoder of JPEG and PNG. torchvision's is the faster one, but it is deprecated since
# torchvision 0.29 and will be removed. Without it PIL decodes these formats to the same pixels, but more slowly.
try:
    from torchvision.io import decode_image
except ImportError:
    decode_image = None

# torchvision applies the EXIF orientation of JPEG and PNG only; every other format goes to PIL, which applies all.
_FAST_EXTENSIONS = (".jpg", ".jpeg", ".png")


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class CorruptImageError(OneLineError):
    """An image that cannot be decoded; its text is one line that names the file and the remedy."""


def decode_rgb(path: str | os.PathLike) -> Tensor:
    """Decode one image file as PIL's `convert("RGB")` would, upright, without PIL where that is possible.

    Grayscale is repeated, CMYK and palettes are converted, an alpha channel is dropped, of an animation the first frame
    is taken, 16-bit PNGs are scaled to 8 bits, and the EXIF orientation is applied.

    Args:
        path: An image file; JPEG and PNG are decoded by torchvision where it has a decoder, everything else by PIL.

    Returns:
        uint8 tensor `(3, H, W)`.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptImageError: The file is truncated, damaged, or no image.
    """
    path = os.fspath(path)
    try:
        image = with_retries(lambda: _decode(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path!r}: it was there when the folder was listed") from None
    except _UNDECODABLE as error:
        raise _corrupt(repr(path), os.path.getsize(path), error) from error
    return _as_uint8(image)


def decode_bytes(data: bytes, name: str) -> Tensor:
    """As `decode_rgb`, from the bytes of a file.

    Args:
        data: An image file of any format.
        name: Name of the image in the error.

    Raises:
        CorruptImageError: The bytes are truncated, damaged, or no image.
    """
    try:
        image = _decode_fast(data)
        if image is None:
            image = _decode_with_pil(io.BytesIO(data))
    except _UNDECODABLE as error:
        raise _corrupt(name, len(data), error) from error
    return _as_uint8(image)


def _corrupt(name: str, size: int, error: Exception) -> CorruptImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return CorruptImageError(
        f"cannot decode the image {name} ({size} bytes): {reason}; "
        "replace or remove the file, or set data.skip_corrupt=true to leave such images out with a warning"
    )


def _as_uint8(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else F.to_dtype(image, torch.uint8, scale=True)


def _decode(path: str) -> Tensor:
    """Decodes by torchvision where that can, else by PIL; `(3, H, W)`."""
    if path.lower().endswith(_FAST_EXTENSIONS):
        with open(path, "rb") as file:
            data = file.read()
        image = _decode_fast(data)
        if image is not None:
            return image
    return _decode_with_pil(path)


def _decode_fast(data: bytes) -> Tensor | None:
    """By torchvision, `(3, H, W)`; None for what it does not know or finds damaged: PIL then has the last word."""
    if data.startswith(_PNG):
        _check_png(memoryview(data))
    elif not (data.startswith(_JPEG) and _jpeg_is_bounded(memoryview(data))):
        return None
    if decode_image is None:
        return None
    try:
        # a copy, because torch warns of bytes that it could write into
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_image(encoded, mode="RGB", apply_exif_orientation=True)
    except RuntimeError:
        return None


def _check_png(data: memoryview) -> None:
    """Raises a ValueError for a PNG whose checksums are wrong: torchvision's decoder may end the process over one."""
    at = len(_PNG)
    check_pixels(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))  # of IHDR, which comes first
    while at + 12 <= len(data):  # a chunk: length, name, content, checksum
        end = at + 8 + int.from_bytes(data[at : at + 4])
        name = bytes(data[at + 4 : at + 8])
        if end + 4 > len(data):
            break
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"the checksum of its part {name.decode('latin-1')!r} is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise ValueError("the PNG is cut short")


def _jpeg_is_bounded(data: memoryview) -> bool:
    """Whether the header states the size; it is read first because torchvision's decoder allocates before it checks.

    Raises:
        ValueError: If the size is too large.
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:  # a segment: 0xFF, kind, length, content
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header: bits, height, width
            check_pixels(int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7]))
            return True
        # 0xFF may be repeated, and some kinds have no length
        bare = kind in (0x01, 0xFF) or 0xD0 <= kind <= 0xD9
        at += (1 if kind == 0xFF else 2) if bare else 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _decode_with_pil(path: str | io.BytesIO) -> Tensor:
    """The formats torchvision does not know; `(3, H, W)` uint8."""
    with Image.open(path, formats=FORMATS) as image:
        check_pixels(*image.size)
        if image.mode.startswith(("I", "F")) and image.format != "PNG":
            # convert("RGB") would clip these to white without a word
            raise ValueError(f"{image.format} with {image.mode!r} pixels (more than 8 bits) is not supported")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # grey of 16 bits: the upper 8 of them, as torchvision has it
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
        return F.pil_to_tensor(image.convert("RGB"))
