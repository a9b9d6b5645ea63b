"""What tells that the input of a job has changed."""

import os

import pytest

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import check_unchanged, identify_corpus, identify_input
from pipelines.corpus.records import CorpusError


def test_file_that_changed_after_it_was_read_is_told_also_where_its_size_is_the_same(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_text("Ada in Oslo\n")
        os.utime(path, ns=(0, 0))
    before = identify_input([str(path) for path in paths])
    check_unchanged(before)
    paths[1].write_text("Bob in Rome\n")
    with pytest.raises(CorpusError, match="1 of 2 files were changed while the job ran") as caught:
        check_unchanged(before)
    assert caught.value.where == str(paths[1])
    paths[1].unlink()
    with pytest.raises(CorpusError, match="of unknown size now"):
        check_unchanged(before)


def test_text_beside_annotations_belongs_to_what_is_identified(tmp_path):
    annotations, text = tmp_path / "a.ann", tmp_path / "a.txt"
    annotations.write_text("")
    text.write_text("Ada in Oslo\n")
    before, corpus = identify_input([str(annotations)]), CorpusConfig(train=(str(tmp_path),))
    first = identify_corpus(corpus)
    text.write_text("Ada lives in Oslo\n")
    assert identify_corpus(corpus) != first
    with pytest.raises(CorpusError, match="1 of 1 files were changed"):
        check_unchanged(before)
