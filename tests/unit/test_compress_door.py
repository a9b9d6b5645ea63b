"""Unlabelled text of `rayner compress`: what becomes of its records is told once, noted, and in the report."""

from types import SimpleNamespace

import pytest

from pipelines import compression_inputs
from pipelines.compress import CompressConfig, _collect_facts, _find_idle
from pipelines.compression.config import DistillationConfig
from pipelines.compression_inputs import read_unlabelled, tell_unlabelled
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import SplitInfo
from pipelines.ner.bundle import load_bundle
from pipelines.run_record import RunRecord
from tests.conftest import make_bundle


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A file with two texts and a row that holds none, read in this process."""

    def read_texts(patterns, reader, max_bad_fraction):
        ledger = Ledger()
        for path in patterns["train"]:
            for item in read_records(path, reader):
                ledger.add(item)
        ledger.check(max_bad_fraction)
        return None, SimpleNamespace(ledger=ledger)

    monkeypatch.setattr(compression_inputs, "read_texts", read_texts)
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "Ada wrote notes."}\n{"txt": "lost"}\n{"text": "Grace wrote a compiler."}\n')
    return str(path)


def make_config(texts, **corpus):
    return CompressConfig(corpus=CorpusConfig(**corpus), distillation=DistillationConfig(unlabelled=[texts]))


def test_rejected_records_are_told_noted_and_counted(texts, tmp_path, tiny_encoder, capsys):
    config, folder = make_config(texts, max_bad_fraction=0.5), tmp_path / "unlabelled"
    record = RunRecord("compress", config)
    ledger = read_unlabelled([texts], config.corpus, folder, record)
    assert not folder.exists(), "what follows may still refuse the run"
    tell_unlabelled(ledger, folder)
    told = capsys.readouterr().out
    assert "2 kept" in told
    assert "1 rejected (no_text 1)" in told
    info = SimpleNamespace(splits={"dev": SplitInfo(), "train": SplitInfo()})
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "bundle"))
    assert "1 rejected (no_text 1)" in _collect_facts(config, info, bundle, 30, ledger)["unlabelled text"]
    assert "unlabelled text" not in _collect_facts(config, info, bundle, 30, None)

    (tmp_path / "texts.jsonl").unlink()  # a resumed run reads what was noted
    again = read_unlabelled([texts], config.corpus, folder, record)
    assert again == ledger
    tell_unlabelled(again, folder)
    assert not capsys.readouterr().out


def test_share_of_rejected_records_is_that_of_the_corpus(texts, tmp_path):
    config = make_config(texts)
    with pytest.raises(CorpusError, match="1 of 3 records cannot be used"):
        read_unlabelled(
            config.distillation.unlabelled, config.corpus, tmp_path / "unlabelled", RunRecord("compress", config)
        )
    assert read_unlabelled([], CorpusConfig(), tmp_path, RunRecord("compress", config)) is None


def test_settings_that_read_unlabelled_text_are_not_said_to_be_idle(texts, tiny_encoder, tmp_path):
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "bundle"))
    given = {"shards": "shards", "max_bad_fraction": 0.5, "reader": FormatOptions(text_column="body"), "scheme": "BIO"}
    config = make_config(texts, **given)
    assert [idle.split("`")[1] for idle in _find_idle(config, bundle)] == ["corpus.scheme"]
    without = CompressConfig(corpus=config.corpus)
    assert {"`corpus.reader`", "`corpus.max_bad_fraction`"} <= {one.split()[0] for one in _find_idle(without, bundle)}
