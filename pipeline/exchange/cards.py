"""Cards (README.md) of published databases and models: YAML between two lines `---`, as the Hub reads it, then text for people.

A database's card states licence, source, encoder, recall and counts; a model's states licence, encoder, sizes and how to
use it. YAML is written as JSON values, which it includes. Reads and writes nothing itself; `front_matter` reads a card's text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from pipeline.database import Version
from pipeline.exchange.licences import NOT_STATED, RowsOfLicence, hub_licence

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip


def card(head: Mapping[str, object], body: str) -> str:
    """A card of YAML fields and Markdown."""
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    return "\n".join(["---", *lines, "---", "", body.strip(), ""])


def body_of(text: str) -> str:
    """A card's text without its YAML."""
    if not text.startswith("---\n"):
        return text
    _, mark, rest = text[4:].partition("\n---\n")
    return rest if mark else text


def front_matter(text: str) -> Mapping[str, object]:
    """The YAML fields of a card; empty if there are none or they cannot be read."""
    if not text.startswith("---\n"):
        return {}
    import yaml

    try:
        found = yaml.safe_load(text[4:].partition("\n---\n")[0])
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def licence_fields(stated: Sequence[str]) -> dict[str, object]:
    """The YAML fields of the licences that rows or a model state."""
    names = sorted({hub_licence(text) for text in stated}) or ["unknown"]
    fields: dict[str, object] = {"license": names[0] if len(names) == 1 else names}
    if "other" in names:
        others = [text for text in stated if hub_licence(text) == "other"]
        fields["license_name"] = others[0][:96] if len(others) == 1 else "see the column licence"
    return fields


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for most, name in _SIZES if rows < most), "n>100M")


def database_head(version: Version, rows: int, licences: Iterable[str], data_files: str) -> dict[str, object]:
    """The YAML fields of a database's card."""
    return {
        **licence_fields(list(licences)),
        "pretty_name": str(version.manifest.get("title") or version.database),
        "size_categories": [size_category(rows)],
        "tags": ["rdmpipe", "image-retrieval", "embeddings"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def database_facts(version: Version, licences: Mapping[str, int]) -> list[str]:
    """The source, licences, encoder and index of a database, as lines of a list on its card."""
    told = version.manifest
    counted = "; ".join(f"{name}: {count:,}" for name, count in sorted(licences.items()))
    return [
        f"- Source: {json.dumps(told.get('source') or {}, ensure_ascii=False, default=str)}",
        f"- Licence of the collection: {told.get('licence') or NOT_STATED}. {told.get('terms') or ''}".rstrip(),
        f"- Licences of the rows: {counted}",
        f"- Opting out: {told.get('opt_out') or NOT_STATED}",
        f"- Encoder: `{version.encoder.name}`, {version.encoder.dim} numbers, weights `{version.encoder.weights[:12]}`"
        + ("" if version.encoder.trained else " (untrained: similarity means nothing)"),
        f"- Index: {version.index.key}; recall: {json.dumps(version.index.recall, default=str)}",
    ]


_PICTURES = {
    "keep": "the original pictures",
    "thumbnail": "thumbnails of at most 256 pixels",
    "drop": "no pictures: addresses, metadata and vectors",
}


def database_card(version: Version, repo: str, licences: Sequence[RowsOfLicence]) -> str:
    """The card of a database in its own files, which `rdmpipe pull` reads."""
    counts = version.counts
    head = database_head(
        version, counts["ok"], [one.licence for one in licences], f"embeddings/{version.encoder.id}/*.parquet"
    )
    head["rdmpipe"] = {
        "database": version.database,
        "version": version.id,
        "encoder": version.encoder.name,
        "counts": {name: counts[name] for name in ("input", "ok", "filtered", "failed")},
        "recall": dict(version.index.recall),
    }
    standing = [one for one in licences if not one.allows]
    lines = [
        f"# {head['pretty_name']}",
        "",
        f"The rdmpipe database `{version.database}`, version `{version.id}`: {counts['input']:,} rows in = "
        f"{counts['ok']:,} ok + "
        f"{counts['filtered']:,} filtered + {counts['failed']:,} failed. It holds "
        f"{_PICTURES.get(version.images, version.images)}.",
        "",
        f"    rdmpipe pull {repo}",
        f'    rdmpipe search {version.database} "a harbour at dawn"',
        "",
        *database_facts(version, {one.licence: one.rows for one in licences}),
        "",
        "`vector` holds unit vectors: the inner product of two is their cosine. `rdmpipe.json` lists every file by checksum.",
    ]
    if standing:
        rows = sum(one.rows for one in standing)
        lines += [
            "",
            f"**{rows:,} rows state no licence that allows redistribution** (see above): whoever pushed this repository "
            "answered for them.",
        ]
    return card(head, "\n".join(lines))


def model_card(name: str, repo: str, licence: str, facts: Mapping[str, object], text: str) -> str:
    """The card of a model: the text of its own README if it has one, else the known facts."""
    head: dict[str, object] = {
        **licence_fields([licence]),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["rdmpipe", "retrieval-augmented-diffusion"],
        "rdmpipe": {"model": name, **facts},
    }
    usage = [
        f"    rdmpipe pull {repo}",
        f'    rdmpipe generate "a red boat" --model {name} --db mine',
        "",
        f"- Licence: {licence or NOT_STATED}",
        *(f"- {fact}: {value}" for fact, value in facts.items()),
    ]
    body = text.strip() or f"# {name}\n\nA retrieval-augmented diffusion model in diffusers' layout."
    title, _, rest = body.partition("\n")
    return card(head, "\n".join([title, "", *usage, "", rest.strip()]))
