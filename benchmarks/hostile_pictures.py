"""Hostile images and videos for `hostile.py`."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from hostile_files import attempt, case, good


def image(name: str, content: Callable[[], bytes], ending: str = "jpg") -> None:
    """An image, as a file and as bytes of a shard."""

    @case(f"image {name}")
    def make() -> Callable[[], str]:
        from datamodules.images.decode import decode_bytes, decode_rgb

        Path(f"evil.{ending}").write_bytes(content())
        answers = [attempt(lambda: decode_rgb(f"evil.{ending}")), attempt(lambda: decode_bytes(content(), "evil"))]
        return lambda: max((answer() for answer in answers), key=len)


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(2**20)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + chunk(b"IEND", b"")


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    data = next((good() / "tree").rglob("*.JPEG")).read_bytes()
    at = data.index(b"\xff\xc0")
    return data[:2] + before + data[2 : at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _pil(kind: str, width: int, height: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"
image("jpeg of 4 * 10^9 pixels", lambda: jpeg(65500, 65500))
image("jpeg behind rubbish", lambda: jpeg(65500, 65500, b"rubbish"))
image("jpeg behind fill bytes", lambda: jpeg(65500, 65500, b"\xff" * 9 + b"\xd0"))
image("png of 10^9 pixels", lambda: png(40000, 25000), "png")
image("png of 2^62 pixels", lambda: png(2**31 - 1, 2**31 - 1), "png")
image("gif of 4 * 10^9 pixels", lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c;", "gif")
image("bmp of 10^9 pixels", lambda: _pil("BMP", 8, 8)[:18] + struct.pack("<ii", 40000, 25000) + bytes(99), "bmp")
image("ppm of 10^18 pixels", lambda: b"P6 1000000000 1000000000 255 x", "ppm")
image("tiff of 2 * 10^8 pixels", lambda: _pil("TIFF", 14000, 14000), "tiff")
image("eps for Ghostscript", lambda: _EPS)
image("eps of a png", lambda: _EPS, "png")
image("pdf", lambda: b"%PDF-1.4\n1 0 obj<</S/JavaScript/JS(app.alert(1))>>", "png")
image("svg", lambda: b'<svg xmlns:x="http://www.w3.org/1999/xlink"><image x:href="file:///etc/passwd"/></svg>', "png")


def video(name: str, text: str | bytes, ending: str = "mp4") -> None:
    """A playlist under the name of a video."""

    @case(f"video {name}")
    def make() -> Callable[[], str]:
        from video_files import write

        from datamodules.video.decode import open_video

        write(Path("inner.mp4"), 4)
        Path(f"evil.{ending}").write_bytes(text if isinstance(text, bytes) else text.encode())

        def work() -> None:
            with open_video(f"evil.{ending}") as opened:
                raise AssertionError(f"a playlist of {len(opened)} frames was read")

        return attempt(work)


_M3U = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
video("playlist of a file", _M3U.format("inner.mp4"))
video("playlist of an address", _M3U.format("http://127.0.0.1:9/x.ts"))
video("playlist by its name", _M3U.format("inner.mp4"), "m3u8")
video("concatenation", "ffconcat version 1.0\nfile inner.mp4\n")
video("concatenation by its name", "ffconcat version 1.0\nfile inner.mp4\n", "ffconcat")
video("session", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n")
video(
    "dash",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
)
