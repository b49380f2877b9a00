"""Variants of inputs that once failed: other fields, formats, functions, characters and readers."""

from __future__ import annotations

import base64
import io
import json
import random
import resource
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import EncoderError, FilterError, PictureError, RdmpipeError, SourceError
from pipeline.filters import filter_mask
from pipeline.images import decode
from pipeline.scheduling import load_job, render
from pipeline.scheduling.secrets import hidden_forms, scrub
from pipeline.sources import SourceOptions
from pipeline.sources.archive import open_archive
from pipeline.sources.web.addresses import is_public
from tests.attempts import tried
from tests.encoders import CONFIG, save_weights
from tests.test_hostile_tars import END, good, padded, pax, record

pytestmark = pytest.mark.process  # filters that their form does not bound run in a process of their own

TINY = json.loads(CONFIG.read_text())


# ---- encoders: values that the tables allow and that do not go together


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_weights(folder, name="open_clip_model.safetensors")
    return folder


EDGES: list[tuple[str, str, object]] = [
    ("vision_cfg", "head_width", 4096), ("vision_cfg", "width", 7), ("vision_cfg", "patch_size", 1024), ("vision_cfg",
    "layers", 0),
    ("vision_cfg", "pool_type", "none_such"), ("vision_cfg", "block_type", "none_such"), ("vision_cfg", "pos_embed_type",
    "x"),
    ("vision_cfg", "timm_model_name", "no_such_model"), ("vision_cfg", "image_size", [1, 4096]), ("vision_cfg",
    "mlp_ratio", 0.0),
    ("text_cfg", "heads", 5), ("text_cfg", "layers", 0), ("text_cfg", "vocab_size", 1), ("text_cfg", "context_length", 3),
    ("text_cfg", "pool_type", "x"), ("text_cfg", "proj_type", "x"), ("text_cfg", "pad_id", 4_000_000), ("text_cfg",
    "width", 1),
    ("text_cfg", "act_kwargs", {"approximate": "x"}), ("text_cfg", "norm_kwargs", {"eps": 1.0, "bias": False}),
    ("", "embed_dim", 1), ("", "init_logit_scale", -100.0), ("", "quick_gelu", True), ("", "custom_text", True),
]  # fmt: skip


@pytest.mark.long  # 24 models are built
def test_configs_whose_values_do_not_go_together_are_errors(weights: Path) -> None:
    from pipeline.encoders import load_encoder

    for part, key, value in EDGES:
        model = json.loads(json.dumps(TINY))
        (model[part] if part else model)[key] = value
        (weights / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        try:
            found = load_encoder(f"local:{weights}", "cpu").encode_texts(["a"])
        except EncoderError as error:
            assert len(str(error)) < 3000, (part, key)
        else:
            assert np.isfinite(found).all(), (part, key)
    tried(len(EDGES))


# ---- filters: other functions that grow, wait or look elsewhere

GROWING = [
    "length(repeat(caption, 100000000)) > 0", "length(lpad(caption, 1000000000, 'x')) > 0",
    "length(rpad('a', 2000000000, 'b')) > 0",
    "length(replace(replace(replace(caption, 'a', caption), 'a', caption), 'a', caption)) > 0",
    "length(regexp_replace(caption, '.', caption, 'g')) > 0", "length(translate(caption, caption, caption)) > 0",
    "len(string_split(caption, '')) > 5", "list_sum(range(1000000000)) > 0", "len(generate_series(1, 1000000000)) > 0",
    "len(list_transform(range(100000000), x -> x)) > 0", "length(format('{:1000000000}', caption)) > 0",
    "length(printf('%1000000000d', width)) > 0", "length(bar(width, 0, 1, 100000000)) > 0", "length(hex(caption)) > 5",
    "2 ** 100000 > width", "factorial(100000) > width", "9223372036854775807 + width > 0", "CAST('9' AS DECIMAL(38,0)) > 1",
    "levenshtein(caption, caption) = 0", "jaccard(caption, caption) = 1", "caption SIMILAR TO '(a|b|c)*(a|b|c)*z'",
    "regexp_matches(caption, '(a{1,1000}){1,1000}')", "regexp_extract(caption, '(' || caption || ')') = ''",
    "date_trunc('day', range(now(), now() + INTERVAL 100000 YEAR, INTERVAL 1 SECOND)[1]) IS NULL",
]  # fmt: skip

ELSEWHERE = [
    "getenv('HOME') = 'x'", "current_setting('threads') = '1'", "caption IN (SELECT 'a')", "EXISTS (FROM range(9))",
    "read_text('/etc/passwd') IS NULL", "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "nextval('s') > 0",
    "pg_sleep(9) IS NULL",
    "txid_current() > 0", "current_database() = 'x'", "query('SELECT 1') IS NULL", "COLUMNS('.*') = 1", "rowid = 1",
    "random() < 0.5",
    "caption COLLATE nocase = 'a'", "unnest([1, 2]) = 1", "row_number() OVER () = 1", "sum(width) > 1",
    "TRY_CAST(caption AS JSON) IS NULL",
    "caption::ENUM('a') = 'a'", "struct_pack(a := 1).a = 1", "$1 = 1", "? = 1", "@width = 1", "caption = E'\\x00'",
    "GROUPING(width) = 1",
    "in_search_path('a', 'b')", "pragma_version() = ''", "write_log('x') IS NULL", "enum_range(NULL::INTEGER) IS NULL",
]  # fmt: skip


def test_filters_that_grow_end_with_an_error_or_an_answer() -> None:
    rows = pa.table({"caption": ["a" * 2000] * 512, "width": pa.array(range(512), pa.int64())})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for expression in GROWING:
        try:
            assert filter_mask(expression, rows, timeout_s=2.0).shape == (512,)
        except FilterError as error:
            assert len(str(error)) < 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # kilobytes
    tried(len(GROWING))


def test_a_filter_whose_type_numpy_lacks_leaves_the_next_one_its_connection() -> None:
    rows = pa.table({"caption": ["a"], "width": pa.array([1], pa.int64())})
    for expression in (
        "1" * 60,
        "width + " + "9" * 60,
        "INTERVAL 1 DAY",
        "TIME '10:00:00'",
        "'a'::BLOB",
        "[1, 2]",
        "{'a': 1}",
    ):
        with pytest.raises(FilterError):
            filter_mask(expression, rows)
        assert filter_mask("width = 1", rows).tolist() == [True]
    tried(7)


def test_filters_that_look_elsewhere_are_refused() -> None:
    rows = pa.table({"caption": ["a"], "width": pa.array([1], pa.int64())})
    for expression in ELSEWHERE:
        with pytest.raises(FilterError):
            print(expression, filter_mask(expression, rows))
    tried(len(ELSEWHERE))


# ---- archives: what follows a header, and what follows an archive

TAILS = {
    "a header and no member": (pax(record(b"path", b"x.png")) + END, []),
    "a global header and no member": (pax(record(b"comment", b"x"), b"g") + END, []),
    "a long name and no member": (pax(b"x.png\0", b"L") + END, []),
    "an empty archive and another": (END + good(b"b.png") + END, ["b.png"]),
    "a header alone and another archive": (pax(record(b"path", b"x")) + END + good(b"b.png") + END, ["b.png"]),
    "many archives": ((good(b"a.png") + END) * 50, ["a.png"]),
    "zeros for a megabyte": (good(b"a.png") + END + bytes(1 << 20), ["a.png"]),
    "text behind the end": (good(b"a.png") + END + padded(b"hello"), ["a.png"]),
    "the same name twice": (good(b"a.png") + good(b"a.png") + END, ["a.png"]),
    "names of two cases": (good(b"a.png") + good(b"A.PNG") + END, ["a.png", "A.PNG"]),
    "a name with a line": (good(b"a\nb.png") + END, None),
    "a name of dots": (good(b"./././a.png") + good(b"...") + END, None),
    "a name with a drive": (good(b"c:\\a.png") + good(b"\\\\host\\a.png") + END, None),
    "a name that is a folder's": (good(b"a") + good(b"a/b.png") + END, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_what_follows_a_header_or_an_archive_is_read_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    data, names = TAILS[name]
    (tmp_path / "a.tar").write_bytes(data)
    try:
        found = open_archive(path=str(tmp_path / "a.tar"), options=SourceOptions())
        listed = found.members()["name"].to_pylist()
        assert len(list(found.read(found.members().to_pylist()))) == len(listed)
    except SourceError as error:
        assert "a.tar" in str(error)
    else:
        assert names is None or listed == names
        assert not any(text.startswith(("/", "../")) for text in listed)


# ---- pictures: formats beside the usual ones


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


HEAD = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
BODY = (b"IDAT", zlib.compress(bytes(8 * 25)))


def ico(count: int) -> bytes:
    return struct.pack("<HHH", 0, 1, count) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 9_999_999, 22) * count


PICTURES = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n%%EndComments\n(x) run\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PDF": b"%PDF-1.4\n" + b"1 0 obj<<>>endobj\n" * 50, "huge PPM": b"P6 99999 99999 255\n" + bytes(99),
    "huge PGM": b"P5 60000 60000 65535\n",
    "PFM": b"Pf\n30000 30000\n-1.0\n" + bytes(99),
    "GIF screen": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 60_000, -60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "RLE BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII",
    99, 0, 0, 54, 40, 30_000, 30_000, 1, 8, 1, 0, 0, 0, 0, 0) + b"\0\x02" * 99,
    "TGA": struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65_535, 65_535, 32, 0) + b"\xff" * 99,
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 56, 300_000, 300_000, 16, 3) + bytes(64),
    "DDS": b"DDS " + struct.pack("<IIII",
    124, 0x1007, 65_535, 65_535) + bytes(110), "ICO": ico(1), "ICO of many": ico(20_000),
    "WebP": b"RIFF" + struct.pack("<I", 999) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xff\x3f\xfe" * 2,
    "JP2": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + bytes(50),
    "FITS": b"SIMPLE  =                    T" + b" " * 9999,
    "colour profile": chunked(HEAD, (b"iCCP", b"x\0\0" + zlib.compress(bytes(60 << 20), 1)), BODY, (b"IEND", b"")),
    "text": chunked(HEAD, (b"zTXt", b"x\0\0" + zlib.compress(b"a" * (80 << 20), 1)), BODY, (b"IEND", b"")),
    "texts": chunked(HEAD, *[(b"tEXt", b"k%d\0" % i + b"x" * 9999) for i in range(3000)], BODY, (b"IEND", b"")),
    "frames": chunked(HEAD, (b"acTL", struct.pack(">II", 2**31 - 1, 0)), BODY, (b"IEND", b"")),
    "no pixels": chunked((b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), BODY, (b"IEND", b"")),
    "no palette": chunked((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0)), BODY, (b"IEND", b"")),
    "orientation": b"\xff\xd8\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\xff\xff\0\0\0\0\0\0\xff\xd9",
    "links of a TIFF": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "tags of a TIFF": b"II*\0\x08\0\0\0\xff\xff" + b"\0\x01\x04\0\xff\xff\xff\xff" * 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_another_format_is_one_or_a_picture_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a picture started a program")

    monkeypatch.setattr("subprocess.Popen", run)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert decode(PICTURES[name]).image.mode == "RGB"
    except PictureError as error:
        assert error.reason and len(str(error)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10


# ---- secrets: inside longer texts


def test_a_secret_inside_other_base64_and_in_hex_is_found() -> None:
    chance = random.Random(4)
    for _ in range(60):
        value = "".join(chance.choices("abcXYZ019+/=é\"'<>", k=chance.randrange(6, 24)))
        hidden = hidden_forms({"S": value})
        for before, behind in (("user:", ""), ("u:", "\n"), ("", " tail"), ("abc", "de"), ("x", "")):
            whole = f"{before}{value}{behind}".encode()
            for form in (base64.b64encode(whole), base64.urlsafe_b64encode(whole), whole.hex().encode()):
                shown = scrub(f"Authorization: Basic {form.decode()} end", hidden)
                assert "[S]" in shown
        assert value not in scrub(json.dumps({"a": value.encode().hex().upper(), "b": value}), hidden)
    tried(60 * 15)


# ---- schedules: characters that cron, systemd and YAML read


@pytest.mark.parametrize(
    "title", ["100 %", "%h %n", "$HOME ${x}", "a: b\n", "- x", "{{ x }}", "`id`", "$(id)", "a'b\"c", "#", "!!python/x"]
)
def test_a_title_or_path_of_a_job_stays_a_text_in_every_schedule(title: str, tmp_path: Path) -> None:
    import yaml

    folder = tmp_path / title.strip().replace("/", "_")
    folder.mkdir()
    path = folder / "job.toml"
    quoted = json.dumps(title)
    path.write_text(
        f'command = "list"\ntitle = {quoted}\narguments = [{json.dumps(title.strip())}]\n'
        f'[environment]\nhome = "{tmp_path}/home"\n[schedule]\ncron = "0 2 * * *"\n'
    )
    for target in ("crontab", "systemd", "kubernetes"):
        try:
            text = render(load_job(str(path)), target)
        except RdmpipeError:
            continue
        if target == "kubernetes":
            assert all(isinstance(part, dict | None) for part in yaml.safe_load_all(text))
        if target == "crontab":
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            assert len([line for line in lines if line.startswith("0 2")]) == 1
            assert all("%" not in line.replace("\\%", "") for line in lines)
        if target == "systemd":
            assert not [
                line for line in text.splitlines() if line.startswith("Exec") and "${x}" in line.replace("$$", "")
            ]


# ---- addresses: other ranges and spellings


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
        "172.31.9.9",
        "192.0.0.8", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b:1::1", "100::1",
        "2001::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1",
        "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "fc00::1",
        "fd00::1", "fe80::1",
        "fec0::1", "ff02::1", "::ffff:0:127.0.0.1", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_public_network_is_refused(address: str) -> None:
    assert not is_public(address)


# ---- runs and preparations that are damaged


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"a": 1}', "null", "[" * 50_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin1")],
)
def test_damaged_records_of_a_run_are_made_again_or_errors(text: str, tmp_path: Path) -> None:
    from pipeline.database import RetrievalDatabase
    from pipeline.generation.run import _read_plan
    from pipeline.generation.stage import read_log
    from pipeline.storage import Storage
    from pipeline.training.streaming import open_prepared

    storage = Storage(str(tmp_path))
    storage.write_text("shards/a.log", text)
    assert read_log(storage, "shards/a.log") == {} and _read_plan(text) in ([], [[]])
    database = RetrievalDatabase("mine", str(tmp_path))
    database.storage.write_text("prepared/abc/prepared.json", text)
    with pytest.raises(RdmpipeError):
        open_prepared("mine/abc", 0.1, str(tmp_path))


def test_an_archive_of_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../x"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("inner.tar")
        info.size = len(inner.getvalue())
        archive.addfile(info, io.BytesIO(inner.getvalue()))
    found = open_archive(path=str(tmp_path / "a.tar"), options=SourceOptions())
    assert found.members()["name"].to_pylist() == ["inner.tar"] and not (tmp_path / "x").exists()
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS > 0
