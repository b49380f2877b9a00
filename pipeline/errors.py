"""The exceptions of rdmpipe. Every message states what was expected, what was found, and what to do.

RdmpipeError                  every error that rdmpipe raises on purpose; the CLI prints its text and exits with `exit_code`
|- ConfigError                a TOML file, flag or environment variable that cannot be used
|  |- ManifestError           a manifest: unknown name, unknown key, bad view
|  '- PromptError             a prompt list with bad rows
|- SourceError                a source that cannot be read: unreachable, wrong checksum, missing column
|- PictureError               a picture file that cannot be decoded; `reason` is the slug in a row's error column
|- EncoderError               weights that cannot be reached, or an encoder that does not match the database
|- ModelError                 an RDM that cannot be loaded, or that does not fit the database or the request
|- DatabaseError              a database that is missing, or that does not fit the request
|  |- DamagedError            a file of a home whose content is not what was written
|  |- BusyError               another process is writing the database
|  '- ConflictError           another process published first
|- FilterError                a WHERE expression that is wrong, too large, or not allowed
|- IndexBuildError            an index that cannot be built
|  '- RecallError             an index whose recall is too low
|- BudgetError                too little memory or disk, found before work starts
|- DiskFullError              the disk became full during work
|- JobError                   a cluster job that cannot be submitted, found or followed
'- StageFailed                shards that still failed after their retries (defined in pipeline/execution/stage.py)

FilterError is a ConfigError: its exit code is 2.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class RdmpipeError(Exception):
    exit_code = 1


class ConfigError(RdmpipeError):
    exit_code = 2


class ManifestError(ConfigError):
    pass


class PromptError(ConfigError):
    pass


class SourceError(RdmpipeError):
    pass


class NoRepositoryError(SourceError):
    """A repository of the Hub that does not exist, or that the token may not see."""


class PictureError(RdmpipeError):
    """A picture that cannot be decoded. Its text is `reason: detail`, as in a failed row's error column."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        return PictureError, (self.reason, str(self).removeprefix(f"{self.reason}: "))


class EncoderError(RdmpipeError):
    pass


class ModelError(RdmpipeError):
    pass


class DatabaseError(RdmpipeError):
    pass


class DamagedError(DatabaseError):
    pass


class BusyError(DatabaseError):
    exit_code = 75  # EX_TEMPFAIL: the same command can succeed later


class ConflictError(DatabaseError):
    exit_code = 75


class FilterError(ConfigError):
    pass


class IndexBuildError(RdmpipeError):
    pass


class RecallError(IndexBuildError):
    pass


class BudgetError(RdmpipeError):
    pass


class DiskFullError(RdmpipeError):
    pass


class JobError(RdmpipeError):
    pass


def error_class(name: str) -> type[RdmpipeError]:
    """The error class of this module with that name, else RdmpipeError. It restores the class of a worker's error."""
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, RdmpipeError) else RdmpipeError


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `word`, or an empty string.

    Among equally close names, the one with the longest common beginning wins.
    """

    def likeness(name: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, word, name).ratio()
        return round(ratio, 2), len(os.path.commonprefix([word, name]))  # noqa: RUF071 (character by character is meant)

    match = max(difflib.get_close_matches(word, list(known), n=5, cutoff=0.5), key=likeness, default="")
    return f" (did you mean {match!r}?)" if match else ""
