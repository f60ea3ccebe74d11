"""From the bytes of a picture to its pixels, and to the description in its header."""

import dataclasses
import functools
import os
import typing
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.data import batch
from nest_dist.data.transforms import depth, jpeg, orientation, tiff

COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# A JPEG at a part of its sides, as the cosine transform gives it: antialiased, and faster.
REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: 0,
}
CHANNELS = {1: "grey", 3: "RGB", 4: "RGB and alpha"}

# Top, left, height and width in pixels.
Rectangle = orientation.Rectangle

LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
JPEG_QUALITY = 95


class Undecodable(batch.Corrupt):
    """The bytes are no complete picture; the text says why."""


@settings.frozen
class Decoding:
    """How a transform reads the pictures that it is given.

    Attributes:
        exif_orientation: whether a picture is turned upright as its camera has stored; the
            published weights were trained on pictures as they lie.
        value_range: the values of a picture of more than 8 bits that become 0 and 255; values
            outside are clipped. None is 0 to 65535 for 16 bits and 0 to 1 for floats, and refuses
            pictures that use less than half of it.
        channels: 1 for grey, 3 for RGB, 4 for RGB and alpha, or those of a TIFF of as many channels
            or pages. None is RGB for encoded pictures, and leaves arrays as they are.
    """

    exif_orientation: bool = dataclasses.field(default=False, kw_only=True)
    value_range: depth.Range | None = dataclasses.field(default=None, kw_only=True)
    channels: typing.Annotated[int, Within(1, 2**16)] | None = dataclasses.field(
        default=None, kw_only=True
    )

    def __post_init__(self) -> None:
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise failures.BadInput(
                f"{type(self).__name__}.value_range is {self.value_range}; give (black, white), "
                "the first below the second."
            )

    def decoded_channels(self, image: batch.ImageSpec) -> int:
        """Channels of what is read of such pictures."""
        return image.channels if self.channels is None else self.channels

    def orientation_of(self, image: batch.Stored) -> orientation.Orientation:
        if not self.exif_orientation or isinstance(image, np.ndarray):
            return orientation.UPRIGHT
        return orientation.of(image)


AS_STORED = Decoding()
# To find out whether a picture can be decoded, whatever its values.
ANY_VALUES = Decoding(value_range=(0, 1))


def of(transforms: Iterable[object]) -> Decoding:
    """The decoding of the transform that decodes."""
    return next((each for each in transforms if isinstance(each, Decoding)), AS_STORED)


def pixels(image: batch.Stored, how: Decoding = AS_STORED) -> np.ndarray:
    """A uint8 image [H, W, C]: arrays as they are, encoded pictures as RGB, unless `how` differs.

    Of more pixels than OPENCV_IO_MAX_IMAGE_PIXELS nothing is decoded. A JPEG is cut short also if
    an end was put behind the cut, unless it is progressive.

    Raises:
        Undecodable: if the bytes are cut short, altered, too many or no picture; or if `how` does
            not suffice to read it.
    """
    turn = how.orientation_of(image)
    decoded = _whole(image, how)
    return decoded if turn == orientation.UPRIGHT else turn.upright(decoded)


def cut(
    image: batch.Stored,
    choose: Callable[[int, int], Rectangle],
    how: Decoding = AS_STORED,
    at_least: tuple[int, int] | None = None,
) -> np.ndarray:
    """A uint8 image [height, width, C]; of a JPEG little beside the rectangle is decoded.

    Args:
        choose: a rectangle of a picture of [H, W], turned as `how` says.
        at_least: height and width to which the rectangle is made smaller. A JPEG may then be
            decoded at a half, quarter or eighth of its sides, while they stay as large; the edges
            of the rectangle move by up to half a pixel of the result.
    """
    turn, coded = how.orientation_of(image), jpeg.opened(image)
    if coded and coded.can_be_cut:
        sides = turn.sides(*coded.sides)
        top, left, height, width = turn.stored(choose(*sides), *sides)
        encoded, first_row, first_column = coded.around(top, left, top + height, left + width)
        encoded = coded.without_end() if encoded is coded.encoded else encoded
        scale = 1 if at_least is None else _scale((height, width), turn.sides(*at_least))
        decoded = _with_channels(_decoded(encoded, COLOUR | REDUCED[scale]), how.channels)
        H, W, _ = decoded.shape
        height, width = round(height / scale), round(width / scale)
        top = min(round((top - first_row) / scale), H - height)
        left = min(round((left - first_column) / scale), W - width)
    else:
        decoded = _whole(image, how)
        sides = turn.sides(*decoded.shape[:2])
        top, left, height, width = turn.stored(choose(*sides), *sides)
    found = decoded[top : top + height, left : left + width]
    return found if turn == orientation.UPRIGHT else turn.upright(found)


def _scale(sides: tuple[int, int], at_least: tuple[int, int]) -> int:
    """The largest of `REDUCED` that leaves sides of at least this length."""
    ratio = min(side // least for side, least in zip(sides, at_least, strict=True))
    return next(scale for scale in REDUCED if scale <= max(1, ratio))


def _whole(image: batch.Stored, how: Decoding) -> np.ndarray:
    """All of a picture, as it lies."""
    if isinstance(image, np.ndarray):
        return _with_channels(image, how.channels)
    if not len(image):
        raise Undecodable("it is empty")
    if coded := jpeg.opened(image):
        return _with_channels(_decoded(coded.without_end(), COLOUR), how.channels)
    header = describe(image)
    if how.channels not in (None, *CHANNELS):
        decoded = _pages(image)
    elif header.bits == 8 and how.channels != 4:
        decoded = _decoded(image, COLOUR)
    else:
        decoded = _as_rgb(_decoded(image, cv2.IMREAD_UNCHANGED))
    try:
        decoded = depth.as_bytes(decoded, how.value_range)
    except depth.OutsideRange as reason:
        raise Undecodable(f"{header} with {reason}") from None
    return _with_channels(decoded, how.channels or batch.ENCODED.channels)


def _decoded(encoded: batch.Encoded, flags: int) -> np.ndarray:
    image = _with_opencv(lambda data: cv2.imdecode(data, flags), encoded)
    if image is None:
        raise Undecodable(f"{describe(encoded)}, cut short or altered")
    return image


def _pages(encoded: batch.Encoded) -> np.ndarray:
    """The channels of all pages, [H, W, channels]."""
    done, found = _with_opencv(lambda data: cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED), encoded)
    if not done or len({page.shape[:2] for page in found}) != 1:
        raise Undecodable(f"{describe(encoded)}, cut short or altered, or of pages of many sizes")
    return np.dstack([page[..., None] if page.ndim == 2 else _as_rgb(page) for page in found])


def _with_opencv(
    function: Callable[[np.ndarray], typing.Any], encoded: batch.Encoded
) -> typing.Any:
    _configure_opencv()
    try:
        return function(np.frombuffer(encoded, np.uint8))
    except cv2.error as error:
        if LIMIT.removeprefix("OPEN") in error.err:
            raise Undecodable(f"it has more than {os.environ[LIMIT]} pixels, see {LIMIT}") from None
        raise Undecodable(f"the decoder refused it: {error.err}") from None


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Channels in the order of RGB; grey, of OpenCV's shape [H, W], gets all three."""
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    order = {3: (2, 1, 0), 4: (2, 1, 0, 3)}.get(image.shape[2])
    return image if order is None else image[..., order]


def _with_channels(image: np.ndarray, wanted: int | None) -> np.ndarray:
    """The image with these channels; alpha is dropped, or opaque where there was none."""
    H, W, C = image.shape
    if wanted in (None, C):
        return image
    if C not in CHANNELS or wanted not in CHANNELS:
        raise Undecodable(
            f"it has {C} channels, {wanted} are wanted; bind channels of the transform that decodes"
        )
    if C == 1:
        image = np.repeat(image, 3, axis=2)
    image = np.ascontiguousarray(image[..., :3])
    if wanted == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return image if wanted == 3 else np.dstack([image, np.full((H, W, 1), 255, np.uint8)])


def encode(image: np.ndarray, kind: str) -> bytes:
    """The bytes of an image [H, W, C], RGB or grey: kind "jpeg", or "png" without loss."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else []
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(f".{'jpg' if kind == 'jpeg' else 'png'}", image, options)
    assert done
    return encoded.tobytes()


@dataclasses.dataclass(frozen=True)
class Description:
    """What the header of a picture announces."""

    kind: str  # "jpeg", "png", "webp", "gif", "bmp", "tiff" or "unknown"
    colour: str = ""  # "rgb", "grey", "cmyk", "alpha", "palette", or "" for the other formats
    bits: int = 8  # of each channel; 0 where it is not known
    channels: int = 0  # of a TIFF, or its pages if they are grey; 0 for the other formats

    @property
    def is_many_channels(self) -> bool:
        """Whether it holds neither grey nor colours, so that its channels are to be bound."""
        return self.channels not in (0, *CHANNELS)

    def __str__(self) -> str:
        bits = "" if self.bits in (0, 8) else f"{self.bits}-bit"
        channels = f"{self.channels}-channel" if self.is_many_channels else ""
        words = [self.colour, channels, bits, self.kind]
        return " ".join(word for word in words if word)


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    *((mark, "tiff") for mark in tiff.MARKS),
)
_PNG_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "alpha", 6: "alpha"}
_WEBP_ALPHA = 0x10  # in the flags of the extended format, and of the lossless one
_JPEG_COLOURS = {1: "grey", 3: "rgb", 4: "cmyk"}


def describe(encoded: batch.Encoded) -> Description:
    """Format, colours and depth, read from the header alone."""
    head = bytes(encoded[:32])
    kind = "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else "unknown"
    kind = next((name for start, name in _SIGNATURES if head.startswith(start)), kind)
    if kind == "png" and len(head) >= 26:
        return Description(kind, _PNG_COLOURS.get(head[25], ""), head[24])
    if kind == "jpeg":
        frame = next((at for marker, at in jpeg.segments(encoded) if marker in jpeg.FRAMES), None)
        if frame is None:
            return Description(kind)
        return Description(kind, _JPEG_COLOURS.get(encoded[frame + 9], ""), encoded[frame + 4])
    if kind == "webp" and len(head) >= 25:
        flags = {b"VP8X": head[20], b"VP8L": head[24]}.get(head[12:16], 0)
        return Description(kind, "alpha" if flags & _WEBP_ALPHA else "rgb")
    if kind == "tiff":
        found = tiff.entries(encoded, (tiff.BITS_PER_SAMPLE, tiff.SAMPLES_PER_PIXEL))
        (samples,) = found.get(tiff.SAMPLES_PER_PIXEL, (1,))[:1]
        bits = max(8, *found.get(tiff.BITS_PER_SAMPLE, (1,)))
        channels = tiff.pages(encoded) if samples == 1 else samples
        return Description(kind, bits=bits, channels=channels)
    return Description(kind, bits=0 if kind == "unknown" else 8)


@functools.cache
def _configure_opencv() -> None:
    """Once in a process, before its first picture."""
    # Threads belong to the pipeline; OpenCV's own would fight over the same cores.
    cv2.setNumThreads(0)
    # We report corrupt pictures ourselves, with their key.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
