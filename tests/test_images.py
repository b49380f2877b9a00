"""Picture files of unusual kinds become upright RGB on white; files that are not pictures fail with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageDraw

from pipeline.errors import PictureError
from pipeline.images import decode, decoded_pixels, perceptual_hash, thumbnail

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """Red, with a green top left and a blue bottom right quarter."""
    image = Image.new("RGB", (width, height), RED)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), fill=GREEN)
    draw.rectangle((width // 2, height // 2, width, height), fill=BLUE)
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the top left, top right, bottom left and bottom right."""
    w, h = image.size
    return [image.getpixel(at) for at in ((4, 4), (w - 5, 4), (4, h - 5), (w - 5, h - 5))]


def near(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int = 12) -> bool:
    return bool((np.abs(np.array(found) - np.array(expected)) <= tolerance).all())


UPRIGHT = [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "PPM"])
def test_ordinary_formats_keep_their_colours(kind: str) -> None:
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    picture = decode(saved(scene(), kind, **options))
    assert picture.image.mode == "RGB"
    assert (picture.width, picture.height) == (60, 40)
    assert near(corners(picture.image), UPRIGHT, 20 if kind == "GIF" else 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_every_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that makes what the camera stored
    stored = scene(600, 400)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode(saved(stored, kind, exif=exif.tobytes(), **options))
    assert (picture.width, picture.height) == (600, 400)
    assert picture.image.size == (600, 400)
    assert near(corners(picture.image), UPRIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_leaves_the_picture_as_it_is() -> None:
    plain = saved(scene(), "JPEG", quality=95)
    broken = plain[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + plain[2:]
    assert near(corners(decode(broken).image), UPRIGHT)


def test_cmyk_jpegs_become_rgb_in_both_polarities() -> None:
    picture = decode(saved(scene().convert("CMYK"), "JPEG", quality=95))
    assert near(corners(picture.image), UPRIGHT, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "PA"])
def test_transparency_becomes_white(mode: str) -> None:
    if mode in ("RGBA", "PA"):
        image = scene().convert("RGBA")
        image.paste((0, 0, 0, 0), (30, 0, 60, 20))
        data = saved(image) if mode == "RGBA" else saved(image.quantize(16))
    elif mode == "LA":
        image = Image.new("LA", (60, 40), (0, 255))
        image.paste((0, 0), (30, 0, 60, 20))
        data = saved(image)
    elif mode == "P":
        image = Image.new("P", (60, 40), 0)
        image.putpalette([10, 250, 10, 1, 2, 3])
        image.paste(1, (30, 0, 60, 20))
        data = saved(image, "GIF", transparency=1)
    else:
        image = scene()
        image.paste((1, 2, 3), (30, 0, 60, 20))
        data = saved(image, transparency=(1, 2, 3))
    found = corners(decode(data).image)
    assert found[1] == (255, 255, 255)
    assert found[0] != (255, 255, 255)


def test_half_transparent_black_is_grey() -> None:
    assert decode(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))).image.getpixel((4, 4)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greys_keep_their_brightness(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    found = np.asarray(decode(saved(Image.fromarray(values), kind)).image)[..., 0]
    assert np.abs(found.astype(int) - np.rint(values / 257.0)).max() <= 1


def test_float_and_one_bit_pictures_are_read() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.asarray(decode(saved(Image.fromarray(ramp), "TIFF")).image).max() == 255
    bits = Image.new("1", (16, 16), 1)
    bits.putpixel((0, 0), 0)
    assert decode(saved(bits)).image.getpixel((0, 0)) == (0, 0, 0)
    assert decode(saved(bits)).image.getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert near([decode(data).image.getpixel((9, 9))], [RED])


def huge_png(width: int, height: int) -> bytes:
    """A small file whose header describes a large picture."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + width * 3) * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_that_is_not_a_picture_fails_with_a_reason() -> None:
    jpeg = saved(scene(400, 300), "JPEG", quality=90)
    png = saved(scene(400, 300))
    damaged = bytearray(png)
    damaged[60:70] = b"\xff" * 10
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(id) system\n%%EOF\n"
    expected = {
        "empty": [b""],
        "not_an_image": [b"<!DOCTYPE html><html>404</html>", b"\0" * 100, svg, eps, b"GIF", b"PK\3\4" + b"x" * 60],
        "truncated": [jpeg[: len(jpeg) // 2], png[: len(png) // 2], saved(scene(), "BMP")[:500], jpeg[:40], png[:20]],
        "corrupt": [saved(scene(), "TIFF")[:50], bytes(damaged)],
        "too_large": [huge_png(30_000, 30_000), huge_png(12_000, 14_000)],
    }
    found = {}
    for reason, files in expected.items():
        for i, data in enumerate(files):
            with pytest.raises(PictureError) as error:
                decode(data, max_pixels=150_000_000)
            found[f"{reason} {i}"] = error.value.reason
            assert str(error.value).startswith(f"{error.value.reason}: ")
    assert found == {f"{reason} {i}": reason for reason, files in expected.items() for i in range(len(files))}


@pytest.mark.parametrize(
    ("side", "expected"), [(0, (2000, 1200)), (512, (1000, 600)), (300, (500, 300)), (100, (250, 150))]
)
def test_jpeg_reduction_keeps_at_least_the_pixels_asked_for(side: int, expected: tuple[int, int]) -> None:
    data = saved(scene(2000, 1200), "JPEG")
    picture = decode(data, side)
    assert picture.image.size == expected
    assert (picture.width, picture.height) == (2000, 1200)
    assert picture.reduced == (expected != (2000, 1200))
    assert decoded_pixels(data, side) == expected[0] * expected[1]


def test_perceptual_hash_is_the_dct_of_a_small_grey_picture(shared: Path) -> None:
    for path in sorted((shared / "data" / "paintings").glob("*.jpg"))[:10]:
        with Image.open(path) as image:
            small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
        grey = 0.299 * small[..., 0] + 0.587 * small[..., 1] + 0.114 * small[..., 2]
        low = scipy.fft.dctn(grey, type=2)[:8, :8]
        bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
        found = int(perceptual_hash(decode(path.read_bytes()).pixels), 16)
        assert (
            found ^ int(bits, 2)
        ).bit_count() <= 2  # values beside the median, whose 8-bit pixels were rounded otherwise


def test_perceptual_hash_tells_copies_from_other_pictures(shared: Path) -> None:
    paths = sorted((shared / "data" / "paintings").glob("*.jpg"))
    hashes = [int(perceptual_hash(decode(path.read_bytes(), 512).pixels), 16) for path in paths]
    for path, original in zip(paths[:8], hashes[:8], strict=True):
        image = decode(path.read_bytes()).image
        for copy in (saved(image, "JPEG", quality=30), saved(image.resize((image.width // 2, image.height // 2)))):
            assert (int(perceptual_hash(decode(copy).pixels), 16) ^ original).bit_count() <= 6
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 10


def test_thumbnails_are_small_reproducible_jpegs_and_never_enlarged() -> None:
    first = thumbnail(np.array(scene(1000, 500)))
    assert first == thumbnail(np.array(scene(1000, 500)))
    with Image.open(io.BytesIO(first)) as small:
        assert (small.format, small.size) == ("JPEG", (256, 128))
        assert near(corners(small), UPRIGHT, 20)
    with Image.open(io.BytesIO(thumbnail(np.array(scene(60, 40))))) as small:
        assert small.size == (60, 40)
    with Image.open(io.BytesIO(thumbnail(np.array(scene(9000, 4))))) as small:
        assert small.size == (256, 1)
