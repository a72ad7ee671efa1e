"""What a file may say: the one home, on the side of the data, of the rules for what comes out of files.

Commands (`pipe:`) and addresses are taken from the command line and the user's own YAML alone. A name in a file is
the name of another file below the folder that the user gave, never a command, an address or a way out of that folder.
A few bytes that ask for much memory are refused before anything is allocated. `docs/SECURITY.md` is the promise.
"""

import json
import re
from pathlib import Path
from typing import Any

MAX_PIXELS = 178_956_970  # PIL's own limit of an image; torchvision has none
MAX_FRAME_PIXELS = 2**26  # twice 8K
MAX_MASKS = 2**32  # pixels of all masks of one image, a byte each
MAX_MEMBER = 2**28  # bytes of one file in a shard
MAX_JSON = 2**30  # bytes of annotations; COCO's are half of it
MAX_SHARD = 10**6  # samples
# By content. PIL's others are left out: of EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Of FFmpeg: containers that hold the video themselves, by their demuxers' names; no playlists (hls, dash, concat, ...).
LOCAL_VIDEO = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpeg,mpegts,asf,mpegvideo,h264,hevc,"
    "ogg,m4v,gif,apng,nut,mxf,wtv,rm",
}
_SAFE_WORD = re.compile(r"[A-Za-z0-9_@%+=,.][A-Za-z0-9_@%+=,.-]*")  # of any shell, and of any address


def is_address(value: str) -> bool:
    """Whether a root is a command or an address, in place of a folder."""
    return "://" in value or value.startswith("pipe:")


def check_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raises a ValueError for a picture that is too large to be decoded."""
    if width * height > limit:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {limit:,}")


def inside(name: Any, where: str, address: bool = False) -> str:
    """A name that a file gives to another file, if it stays below the folder that the user named.

    Args:
        name: Such as `train-00000.tar` or `train2017/000000000009.jpg`.
        where: What the file is called, for the error.
        address: Whether it becomes part of an address or of a shell's command; it then has only characters that mean
            nothing there.

    Raises:
        ValueError: If it is absolute, goes up by `..`, is an address or a command, or has control characters.
    """
    text = name if isinstance(name, str) else ""
    parts = text.split("/")
    bad = not text or not text.isprintable() or text[0] in "/\\~" or ".." in parts or is_address(text)
    if address:
        bad = bad or not all(_SAFE_WORD.fullmatch(part) for part in parts)
    if bad or re.match(r"[A-Za-z]:", text) or ".." in text.split("\\"):
        kind = "letters, digits and @%+=,._- between slashes" if address else "a path below the folder, without .."
        raise ValueError(
            f"{where} names the file {name!r}: expected {kind}; a file says neither commands nor addresses"
        )
    return text


def parse_json(content: bytes | str, where: str, limit: int = MAX_JSON) -> Any:
    """JSON out of a file.

    Raises:
        ValueError: If it is none, too long, or nested too deeply; one line.
    """
    if len(content) > limit:
        raise ValueError(f"{where} has more than {limit:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def check_may_write(data: Any, option: str) -> None:
    """Call it before a DataModule makes files in the folder that an option of it names.

    Args:
        data: The DataModule; `chosen_by_file` has the options that a checkpoint chose, not the user.
        option: Such as `root`.

    Raises:
        ValueError: If a checkpoint named the folder.
    """
    if option in getattr(data, "chosen_by_file", ()):
        folder = str(Path(getattr(data, option)))
        raise ValueError(
            f"data.{option} {folder!r} has no data yet, and it comes from the checkpoint: nothing is written where a "
            f"file says; give --data.{option} {folder} yourself to have them made there"
        )
