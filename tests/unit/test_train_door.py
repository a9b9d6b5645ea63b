"""What doors that train refuse before they start a cluster or read a corpus."""

import pytest

from pipelines import scale, train
from tests.conftest import SAMPLE


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
