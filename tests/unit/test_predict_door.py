"""What `rayner predict` keeps of its input, from its flags to the columns of a chunk."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pytest

from pipelines.corpus.census import Census, count_file
from pipelines.corpus.chunks import pack_chunk, read_items, unpack_chunk
from pipelines.corpus.labeller import _find_kept
from pipelines.predict import PredictConfig, _build_reader, _find_problems


def keep(folder, rows, **given):
    """Column → its values, of a file of these rows."""
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PredictConfig(model="m", input=[str(path)], **given)
    reader = _build_reader(config)
    census = Census([count_file(str(path), reader, 1000)], list(reader.extra_columns))
    census.check(0.0)
    reader = replace(reader, extra_columns=census.list_columns())
    table = unpack_chunk(pa.py_buffer(pack_chunk(list(read_items(str(path), reader)), reader.extra_columns)))
    return {name: _find_kept(table, name).to_pylist() for name in config.keep}


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        ([{"text": "Ada", "source": "web"}, {"text": "Bob"}], {}, {"text": ["Ada", "Bob"], "source": ["web", None]}),
        ([{"text": "Ada"}, {"words": ["Bob", "."]}], {}, {"text": ["Ada", "Bob ."], "source": ["{}:1", "{}:2"]}),
        ([{"body": "Ada", "text": "A"}], {"text_column": "body"}, {"text": ["A"], "source": ["{}:1"]}),
        ([{"body": "Ada"}], {"text_column": "body"}, {"text": ["Ada"], "source": ["{}:1"]}),
    ],
)
def test_column_of_the_input_is_kept_rather_than_what_is_known_of_the_document(tmp_path, rows, given, expected):
    found = keep(tmp_path, rows, keep=["text", "source"], **given)
    place = str(tmp_path / "a.jsonl")
    assert found == {name: [one and one.replace("{}", place) for one in values] for name, values in expected.items()}


@pytest.mark.parametrize("size", [0.0, -1.0, math.inf, math.nan])
def test_size_of_files_that_is_none_is_refused_before_anything_is_labelled(size):
    [problem] = _find_problems(PredictConfig(model="m", input=["a.jsonl"], output_file_mib=size))
    assert problem.where == "`output_file_mib`"
