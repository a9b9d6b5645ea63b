"""File systems behind URIs (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`), as pyarrow opens them."""

import re
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs

from pipelines.corpus.records import CorpusError

READ_PATIENCE_S = 60
STORE_ERRORS = (OSError, pa.ArrowException)

_SAFE = "/-._~!$&'()*+,;=:@%"
_PASSWORD = re.compile(r"(//[^/@]*):[^/@]*@")
_GOOGLE = ("gs", "gcs")
_CLIENTS = {
    "s3": "the bucket, the network, `?region=…` or `?endpoint_override=host:port`, and the credentials "
    "(`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or a role)",
    "gs": "the bucket, the network and the credentials (`GOOGLE_APPLICATION_CREDENTIALS`; `gs://anonymous@bucket`)",
    "abfs": "the container, the account, the network and the credentials (`az login` or `AZURE_*`)",
    "hdfs": "the address, and that `JAVA_HOME`, `HADOOP_HOME` and `CLASSPATH` name a Hadoop client",
    "file": "that the path names a readable file",
}
_SAME_CLIENT = {"gcs": "gs", "abfss": "abfs", "viewfs": "hdfs"}


def open_store(uri: str, patience_s: int = READ_PATIENCE_S) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a URI and the path within it. Raises CorpusError for a URI that is none.

    `patience_s` bounds how long Google's client repeats a request, which would be a quarter of an hour; those of the
    others give up after a few attempts.
    """
    if _PASSWORD.search(uri):
        raise CorpusError(
            "the path holds a password",
            where=_PASSWORD.sub(r"\1:…@", uri),
            rule="paths are written into every result, so credentials do not belong there",
            remedy="give them as the storage's own tools take them, for instance `AWS_ACCESS_KEY_ID`",
        )
    scheme, authority, path, query = split_uri(uri)
    if not authority and not path:
        raise _refuse_uri(uri, "it names neither a bucket nor a path")
    if scheme in _GOOGLE and "retry_limit_seconds" not in query:
        query = "&".join(filter(None, [query, f"retry_limit_seconds={patience_s}"]))
    try:
        store, name = pyarrow.fs.FileSystem.from_uri(join_uri(scheme, authority, quote(path, safe=_SAFE), query))
    except pa.ArrowInvalid as error:
        raise _refuse_uri(uri, _first_line(error)) from error
    except STORE_ERRORS as error:
        raise explain_store(error, uri) from error
    return store, name


def split_uri(uri: str) -> tuple[str, str, str, str]:
    """(scheme, authority, path, query) of a URI, the path with its first slash; `#` has no meaning of its own."""
    rest, _, query = uri.partition("?")
    scheme, _, rest = rest.partition("://")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path, query


def join_uri(scheme: str, authority: str, path: str, query: str) -> str:
    """The inverse of `split_uri`."""
    return f"{scheme}://{authority}{path}" + (f"?{query}" if query else "")


def explain_store(error: Exception, uri: str, place: str = "") -> CorpusError:
    """What a file system's client says, as a CorpusError; `place` is the URI with a line where there is one."""
    if isinstance(error, FileNotFoundError):
        what, remedy = "there is no such file", "check the URI"
    else:
        scheme = split_uri(uri)[0]
        client = _CLIENTS.get(_SAME_CLIENT.get(scheme, scheme), "the URI, the network and the credentials")
        what, remedy = "the file cannot be read from its storage", f"check {client}"
    return CorpusError(what, where=place or uri, value=_first_line(error), remedy=remedy)


def _refuse_uri(uri: str, value: str) -> CorpusError:
    return CorpusError(
        "the URI is not understood",
        where=uri,
        rule="`s3://`, `gs://`, `abfs://`, `hdfs://` or `file:///`, with `%3F` for a question mark and `%25` for %",
        value=value,
        remedy="mend the URI; for storage of another kind mount it, or copy the files",
    )


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
