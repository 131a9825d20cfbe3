"""Where shipped logs lie: a folder, or a bucket by URL. Puts whole objects, lists folders, opens files.

pyarrow's own file systems do it: they come with the Parquet library that is needed anyhow, find AWS credentials the
usual ways (environment, files, a pod's role, an instance's) and read ranges of a file, so that a reader of two columns
fetches two columns. s3fs would add aiobotocore and pin fsspec to one release. Knows nothing of records.

    /var/lib/graduate/log                                       a folder
    s3://bucket/prefix                                          AWS
    s3://bucket/prefix?endpoint_override=http://minio:9000      any S3 server; also region=…
    gs://bucket/prefix, abfs://…                                what else pyarrow can open
"""

import contextlib
import functools
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from router.errors import RouterError, SettingsError

_S3_OPTIONS = {"endpoint_override", "region", "scheme"}


class StoreError(RouterError):
    """The store did not take or give something; another try may help."""


class LogStore:
    """One folder or bucket prefix."""

    def __init__(self, url: str | Path) -> None:
        """
        Raises:
            SettingsError: the URL is of no known kind, or its options are unknown.
        """
        self.url = str(url)
        self._folder: Path | None = None
        if "://" not in self.url:
            self._folder = Path(self.url).absolute()
            self._fs, self._root = pafs.LocalFileSystem(), str(self._folder)
            return
        try:
            self._fs, self._root = _open(self.url)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OSError) as why:
            raise SettingsError(
                f"{self.url}: allowed: a folder, s3://BUCKET/PREFIX, or another URL that pyarrow opens: {why}"
            ) from why
        if isinstance(self._fs, pafs.LocalFileSystem):
            self._folder = Path(self._root)
        self._root = self._root.rstrip("/")

    @property
    def is_url(self) -> bool:
        """Whether it is a bucket or the like, not a folder here."""
        return self._folder is None

    def put(self, path: str, data: bytes | pa.Buffer) -> None:
        """The object is there, whole; a killed or failed put leaves what was there before.

        Raises:
            StoreError: it is not there.
        """
        with self.errors(path):
            if self._folder is not None:
                _put_file(self._folder / path, data)
                return
            # One write, then close: pyarrow completes an upload only when every part of it arrived.
            stream = self._fs.open_output_stream(f"{self._root}/{path}")
            stream.write(data)
            stream.close()

    def get(self, path: str) -> bytes | None:
        """The object's bytes, None when there is none.

        Raises:
            StoreError: the store does not say.
        """
        with self.errors(path):
            try:
                with self._fs.open_input_file(f"{self._root}/{path}") as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def open(self, path: str) -> pa.NativeFile:
        """The object for reading here and there in it.

        Raises:
            StoreError: it cannot be read.
        """
        with self.errors(path):
            return self._fs.open_input_file(f"{self._root}/{path}")

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted.

        Raises:
            StoreError: the store does not say.
        """
        found = self._list(path, recursive=False)
        return sorted(i.base_name for i in found if i.type == pafs.FileType.Directory)

    def files(self, path: str) -> list[str]:
        """Paths of all files below a folder, sorted; unfinished ones (hidden) are left out.

        Raises:
            StoreError: the store does not say.
        """
        found = self._list(path, recursive=True)
        return sorted(
            i.path[len(self._root) + 1 :]
            for i in found
            if i.type == pafs.FileType.File and not i.base_name.startswith(".")
        )

    def _list(self, path: str, *, recursive: bool) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(
            f"{self._root}/{path}", allow_not_found=True, recursive=recursive
        )
        with self.errors(path):
            return list(self._fs.get_file_info(selector))

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """The store's own errors, and a damaged file's, become ours.

        Raises:
            StoreError: with the object's name.
        """
        try:
            yield
        except (OSError, pa.ArrowInvalid) as why:
            told = getattr(why, "strerror", None) or why
            raise StoreError(f"{self.url}: {path}: {told}") from why


@functools.cache
def _known_region(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


def _open(url: str) -> tuple[pafs.FileSystem, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "s3":
        return pafs.FileSystem.from_uri(url)  # type: ignore[no-any-return]
    given = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    if unknown := set(given) - _S3_OPTIONS:
        raise ValueError(f"unknown {sorted(unknown)}; allowed: {sorted(_S3_OPTIONS)}")
    if not parts.netloc or "@" in parts.netloc:
        raise ValueError("s3://BUCKET/PREFIX; keys belong in the environment, not in a URL")
    environ = os.environ
    endpoint = (
        given.get("endpoint_override")
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
    )
    region = given.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region}
    if endpoint:
        options |= {"endpoint_override": endpoint, "region": region or "us-east-1"}
        options |= {"scheme": given["scheme"]} if "scheme" in given else {}
    elif not region:
        options["region"] = _known_region(parts.netloc)
    fs = pafs.S3FileSystem(
        **options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3)
    )
    return fs, parts.netloc + parts.path


def _put_file(path: Path, data: bytes | pa.Buffer) -> None:
    """Written beside, made durable, renamed. The hidden name is always the same, so a kill leaves one at most."""
    beside = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()  # a full disk gets its bytes back
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name survives a power cut: the local segment is deleted on its word."""
    with contextlib.suppress(OSError):  # some file systems have no fsync for folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
