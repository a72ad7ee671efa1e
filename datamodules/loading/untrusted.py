"""What a file may say: all rules of `datamodules` for what is read from files stand here.

Commands (`pipe:`) and addresses are only taken from the command line and from the user's own YAML. A name in a file can
only name another file below the folder that the user gave: never a command, an address, or a file outside that folder.
A short file that asks for much memory is refused before anything is allocated. `docs/SECURITY.md` states the promise.
"""

import json
import re
from pathlib import Path
from typing import Any

MAX_PIXELS = 178_956_970  # of an image: PIL's own limit; torchvision has none
MAX_FRAME_PIXELS = 2**26  # of a video frame: twice 8K
MAX_MASKS = 2**32  # pixels of all masks of one image, a byte for each
MAX_MEMBER = 2**28  # bytes of one file in a shard
MAX_JSON = 2**30  # bytes of annotations: twice COCO's
MAX_SHARD = 10**6  # samples in a shard
# Image formats, told by their content. PIL's other formats are left out: for EPS it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Options for FFmpeg: only containers that hold the video themselves, by their demuxers' names. Playlists (hls, dash,
# concat, ...) would open other files.
LOCAL_VIDEO = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpeg,mpegts,asf,mpegvideo,h264,hevc,"
    "ogg,m4v,gif,apng,nut,mxf,wtv,rm",
}
_SAFE_WORD = re.compile(r"[A-Za-z0-9_@%+=,.][A-Za-z0-9_@%+=,.-]*")  # without meaning in any shell or address


def is_address(value: str) -> bool:
    """Whether a root is a command or an address instead of a folder."""
    return "://" in value or value.startswith("pipe:")


def check_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raises a ValueError for a picture that is too large to be decoded."""
    if width * height > limit:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {limit:,}")


def inside(name: Any, where: str, address: bool = False) -> str:
    """Checks the name of another file that a file contains: it must stay below the folder that the user named.

    Args:
        name: The name, such as `train-00000.tar` or `train2017/000000000009.jpg`.
        where: The file that contains the name, for the error.
        address: Whether the name becomes part of an address or of a shell command. Then it may only have characters
            that have no special meaning there.

    Returns:
        The name.

    Raises:
        ValueError: If the name is absolute, goes up by `..`, is an address or a command, or has control characters.
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
    """Parses the JSON of a file.

    Raises:
        ValueError: If it is no JSON, too long, or nested too deeply; one line.
    """
    if len(content) > limit:
        raise ValueError(f"{where} has more than {limit:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def check_may_write(data: Any, option: str) -> None:
    """Refuses to write into a folder that a checkpoint named; call it before a DataModule makes files.

    Args:
        data: The DataModule. Its `chosen_by_file` lists the options that a checkpoint chose, and not the user.
        option: The option that names the folder, such as `root`.

    Raises:
        ValueError: If a checkpoint named the folder.
    """
    if option in getattr(data, "chosen_by_file", ()):
        folder = str(Path(getattr(data, option)))
        raise ValueError(
            f"data.{option} {folder!r} has no data yet, and it comes from the checkpoint: nothing is written where a "
            f"file says; give --data.{option} {folder} yourself to have them made there"
        )
