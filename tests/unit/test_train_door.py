"""What doors that train refuse before they start a cluster or read a corpus, and what they report."""

import pytest

from pipelines import scale, train
from pipelines.train import _describe_sharing
from tests.conftest import SAMPLE

USAGE = {"num_workers": 2, "strategy": "fsdp", "state_mib": {"weights": 1.5}, "sent_mib": {"all-gather": 3.0}}


@pytest.mark.parametrize("door", [train, scale])
def test_an_option_that_the_encoder_cannot_have_is_refused_before_anything_starts(
    door, tiny_encoder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(door, "connect", lambda *_: pytest.fail("a cluster is started"))
    folder = tmp_path / "out"
    flags = ["--corpus.train", str(SAMPLE / "en-train.jsonl"), "--model.encoder", tiny_encoder]
    assert door.main([*flags, "--training.freezing.layers", "9", "--output_dir", str(folder)]) == 2
    assert "more layers to freeze than the encoder has" in capsys.readouterr().err
    assert not folder.exists()


def test_how_workers_share_is_told_also_on_gpus_where_no_straggler_is_seen():
    told = _describe_sharing(USAGE | {"straggling": None})
    assert told == {
        "strategy": "fsdp",
        "a worker holds": "weights 1.5 MiB",
        "a worker sends in a step": "all-gather 3.0 MiB",
    }
    assert _describe_sharing(USAGE | {"straggling": 1.5}) == told | {"slowest worker": "1.50 times the median one"}
    assert _describe_sharing(USAGE | {"num_workers": 1, "straggling": None}) == {}
