"""The kinds of source and the class that reads each. Imports nothing, so that a manifest can be checked without a reader."""

from __future__ import annotations

# kind -> module:class. Imported when used, so that --help stays fast.
READERS = {
    "atelier": "pipeline.sources.atelier:AtelierSource",
    "folder": "pipeline.sources.folder:FolderSource",
    "parquet": "pipeline.sources.parquet:ParquetSource",
    "tar": "pipeline.sources.tar:TarSource",
    "urls": "pipeline.sources.urls:UrlSource",
    "webdataset": "pipeline.sources.webdataset:WebdatasetSource",
}
