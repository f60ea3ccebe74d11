import io
import os
import resource
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.data.transforms import decode

CHELSEA = photographs.photograph("chelsea")[:75, :100]


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(CHELSEA).convert(mode)


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)


def see_through() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(Image.fromarray(CHELSEA).convert("L"))
    return image


OPENCV = """
import cv2
def state():
    return cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
cv2.setNumThreads(3)
before = state()
import nest_dist.data.pipeline
from nest_dist.data.transforms import decode
assert state() == before
decode.pixels(decode.encode(decode.np.zeros((1, 1, 3), "uint8"), "png"))
assert state() == (1, cv2.utils.logging.LOG_LEVEL_SILENT)
"""


@pytest.mark.medium
def test_the_first_picture_ends_the_threads_and_the_log_of_opencv_and_an_import_does_not():
    subprocess.run([sys.executable, "-c", OPENCV], check=True)


def test_a_jpeg_decodes_to_what_pillow_sees():
    encoded = photographs.jpeg()
    pillow = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    # Both use libjpeg-turbo; versions differ in the last bit of the inverse cosine transform.
    assert np.abs(decode.pixels(encoded).astype(int) - pillow).max() <= 3


def test_a_png_survives_encoding_and_decoding_unchanged():
    np.testing.assert_array_equal(decode.pixels(decode.encode(CHELSEA, "png")), CHELSEA)


def test_arrays_pass_unchanged():
    assert decode.pixels(CHELSEA) is CHELSEA


@pytest.mark.parametrize(
    ("encoded", "description"),
    [
        (saved(picture(), format="JPEG"), "rgb jpeg"),
        (saved(picture(), format="JPEG", progressive=True), "rgb jpeg"),
        (saved(picture("L"), format="JPEG"), "grey jpeg"),
        (saved(picture("CMYK"), format="JPEG"), "cmyk jpeg"),
        (saved(picture(), format="PNG"), "rgb png"),
        (saved(picture("RGBA"), format="PNG"), "alpha png"),
        (saved(picture("L"), format="PNG"), "grey png"),
        (saved(picture("P"), format="PNG"), "palette png"),
        (saved(deep(), format="PNG"), "grey 16-bit png"),
        (saved(picture(), format="WEBP"), "rgb webp"),
        (saved(picture(), format="WEBP", lossless=True), "rgb webp"),
        (saved(see_through(), format="WEBP"), "alpha webp"),
        (saved(see_through(), format="WEBP", lossless=True), "alpha webp"),
        (saved(picture(), format="BMP"), "bmp"),
        (saved(picture(), format="TIFF"), "tiff"),
        (saved(deep(), format="TIFF"), "16-bit tiff"),
    ],
)
def test_every_kind_of_picture_becomes_rgb_and_is_described(encoded, description):
    assert str(decode.describe(encoded)) == description
    decoded = decode.pixels(encoded)
    assert decoded.shape == CHELSEA.shape
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "unknown, cut short or altered"),
        (photographs.jpeg()[:200], "jpeg, cut short or altered"),
        (decode.encode(CHELSEA, "png")[:60], "rgb png, cut short or altered"),
    ],
)
def test_bytes_that_are_no_complete_picture_are_undecodable(encoded, reason):
    with pytest.raises(decode.Undecodable, match=reason):
        decode.pixels(encoded)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_jpeg_cut_short_is_undecodable_rather_than_grey_below(share):
    encoded = photographs.jpeg("coffee", 300, 400)
    with pytest.raises(decode.Undecodable, match="cut short"):
        decode.pixels(encoded[: int(share * len(encoded))])


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 95}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 4}],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_that_was_cut_and_closed_is_corrupt(options, channels, capfd):
    image = photographs.photograph("chelsea")[:120, :160, :channels].squeeze()
    whole = saved(Image.fromarray(image), format="jpeg", **options)
    for behind in (b"", b"\0" * 9, whole):  # some cameras write more behind the end
        decoded = cv2.imdecode(np.frombuffer(whole, np.uint8), decode.COLOUR)
        np.testing.assert_array_equal(decode.pixels(whole + behind), decoded)
    assert capfd.readouterr().err == ""
    scan = whole.rindex(b"\xff\xda") + 14
    for cut in np.linspace(scan, len(whole) - 40, 25).astype(int):
        with pytest.raises(decode.Undecodable, match="jpeg, cut short or altered"):
            decode.pixels(whole[:cut] + b"\xff\xd9")


def test_a_progressive_jpeg_is_decoded_with_its_end():
    progressive, usual = (saved(picture(), format="jpeg", progressive=on) for on in (True, False))
    np.testing.assert_array_equal(decode.pixels(progressive), decode.pixels(usual))


def huge(kind):
    """A picture whose header says 20,000 x 20,000."""
    side = 20_000
    if kind == "png":
        content = bytearray(saved(picture("L"), format=kind))
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        return bytes(content)
    content = bytearray(saved(picture(), format=kind))
    if kind == "gif":
        content[6:10] = struct.pack("<HH", side, side)
    elif kind == "bmp":
        content[18:26] = struct.pack("<ii", side, side)
    else:
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(content)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "jpeg"])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        decode.Undecodable, match="more than 100000000 pixels, see OPENCV_IO_MAX_IMAGE_PIXELS"
    ):
        decode.pixels(huge(kind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_the_limit_of_pixels_is_that_of_the_environment():
    code = (
        "import numpy as np; from nest_dist.data.transforms import decode; "
        "decode.pixels(decode.encode(np.zeros((30, 40, 3), np.uint8), 'png'))"
    )
    for limit, status in (("1200", 0), ("1199", 1)):
        environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": limit}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert status == 0 or "it has more than 1199 pixels" in done.stderr
