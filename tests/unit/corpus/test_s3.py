"""Amazon's own client against a bucket on this machine."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.formats.files import find_files, read_records
from pipelines.corpus.records import CorpusError

pytestmark = pytest.mark.timeout(400)
TEXTS = [f"document {number} " + "wort " * 10 for number in range(3_000)]


class Bucket(BaseHTTPRequestHandler):
    """GET and HEAD of objects with ranges, and ListObjectsV2, for any credentials; `forbidden/` is."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if key.startswith("forbidden") or query.get("prefix", "").startswith("forbidden"):
            self.send(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif bucket != "corpora":
            self.send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif not key:
            self.send(200, self.list(query.get("prefix", ""), query.get("delimiter", "")))
        elif key not in self.objects:
            self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send_object(self.objects[key])

    do_HEAD = do_GET

    def send_object(self, content):
        start, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not start:
            self.send(200, content)
            return
        end = min(int(end or len(content)), len(content) - 1)
        told = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        self.send(206, content[int(start) : end + 1], told)

    def list(self, prefix, delimiter):
        keys = [key for key in sorted(self.objects) if key.startswith(prefix)]
        folders = {prefix + key[len(prefix) :].split("/")[0] + "/" for key in keys if "/" in key[len(prefix) :]}
        if delimiter:
            keys = [key for key in keys if "/" not in key[len(prefix) :]]
        held = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in keys
        )
        held += "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders if delimiter
        )
        return f"<ListBucketResult><KeyCount>{len(keys)}</KeyCount>{held}</ListBucketResult>".encode()

    def send(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/xml", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


def compress(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.fixture(scope="module")
def query(tmp_path_factory):
    """The query of URIs that reach the bucket `corpora`, filled."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    parquet = tmp_path_factory.mktemp("s3") / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), parquet, row_group_size=1_000)
    Bucket.objects = {
        "part-1/x1.jsonl.zst": compress(rows),
        "part-1/x2.jsonl.gz": gzip.compress(rows),
        "part-2/x 3.jsonl": rows,
        "part-2/_SUCCESS": b"",
        "part-2/readme.txt": b"x",
        "tables/a.parquet": parquet.read_bytes(),
        "damaged/a.jsonl.zst": compress(rows * 5)[:-7],
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get_message(query, path):
    with pytest.raises(CorpusError) as caught:
        find_files([f"s3://{path}{query}"])
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("corpora/part-*/x*.jsonl*", ["part-1/x1.jsonl.zst", "part-1/x2.jsonl.gz", "part-2/x%203.jsonl"]),
        ("corpora/**/*.parquet", ["tables/a.parquet"]),
        ("corpora/part-2", ["part-2/x%203.jsonl"]),
        ("corpora/part-2/x 3.jsonl", ["part-2/x 3.jsonl"]),
        (
            "corpora",
            [
                "damaged/a.jsonl.zst",
                "part-1/x1.jsonl.zst",
                "part-1/x2.jsonl.gz",
                "part-2/x%203.jsonl",
                "tables/a.parquet",
            ],
        ),
    ],
)
def test_files_folders_and_patterns_are_found(query, pattern, found):
    assert find_files([f"s3://{pattern}{query}"]) == [f"s3://corpora/{name}{query}" for name in found]


@pytest.mark.parametrize(
    "name", ["part-1/x1.jsonl.zst", "part-1/x2.jsonl.gz", "part-2/x%203.jsonl", "tables/a.parquet"]
)
def test_every_record_is_read_with_its_uri(query, name):
    uri = f"s3://corpora/{name}{query}"
    records = list(read_records(uri))
    assert [record.text for record in records] == TEXTS
    assert records[-1].source == f"{uri}:{len(TEXTS)}"


def test_damage_is_told_after_the_records_before_it(query):
    records = []
    with pytest.raises(CorpusError, match="the zstd file is damaged"):
        records.extend(read_records(f"s3://corpora/damaged/a.jsonl.zst{query}"))  # keeps what came before the error
    assert len(records) > 4 * len(TEXTS)
    assert [record.text for record in records] == (TEXTS * 5)[: len(records)]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("corpora/part-1/x1.jsonl", ["there is no such file", "did you mean `x1.jsonl.zst`"]),
        ("corpora/tables/*.csv", ["the pattern matches no file", "1 entries: `a.parquet`"]),
        ("no-such-bucket/a.jsonl", ["there is no such file", "check the name of the bucket"]),
        ("corpora/forbidden/a.jsonl", ["cannot be read from its storage", "ACCESS_DENIED", "`AWS_ACCESS_KEY_ID`"]),
    ],
)
def test_what_is_not_there_or_not_ours_is_refused(query, path, told):
    message = get_message(query, path)
    for fact in [f"s3://{path}", *told]:
        assert fact in message
