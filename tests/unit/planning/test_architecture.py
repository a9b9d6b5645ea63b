"""Against the networks that transformers builds."""

import pytest
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.encoders import SCRATCH_SHAPE, EncoderError
from pipelines.planning.architecture import convert_config, read_architecture
from pipelines.planning.cost import count_parameters
from pipelines.planning.errors import PlanError
from tests.unit.planning.conftest import SMALL


def test_parameters_are_those_of_the_network(config):
    network = AutoModelForTokenClassification.from_config(config)
    found = sum(parameter.numel() for parameter in network.parameters())
    assert count_parameters(convert_config(config), num_tags=5) == found


@pytest.mark.parametrize("family", ["mpnet", "longformer"])
def test_parameters_of_an_unknown_family_are_those_of_its_outline(family):
    config = AutoConfig.for_model(family, num_labels=5, **SMALL)
    architecture = convert_config(config)
    network = AutoModelForTokenClassification.from_config(config)
    assert not architecture.is_known
    assert count_parameters(architecture, num_tags=5) == sum(one.numel() for one in network.parameters())
    assert count_parameters(architecture, num_tags=7) - count_parameters(architecture, num_tags=5) == 2 * 49


def test_a_crf_adds_its_transitions():
    architecture = read_architecture("scratch")
    assert count_parameters(architecture, 5, "crf") - count_parameters(architecture, 5) == 5 * 5 + 5 + 5


def test_reads_a_folder_that_has_a_configuration_alone(tmp_path, config):
    config.save_pretrained(tmp_path)
    assert read_architecture(str(tmp_path)) == convert_config(config)


def test_scratch_is_the_encoder_that_training_makes():
    architecture = read_architecture("scratch")
    assert (architecture.hidden_size, architecture.num_layers) == (
        SCRATCH_SHAPE["hidden_size"],
        SCRATCH_SHAPE["num_hidden_layers"],
    )
    assert architecture.is_packed


def test_longest_window_leaves_out_positions_that_no_token_takes(config):
    longest = convert_config(config).max_window
    assert longest == (298 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 300)


def test_refuses_a_configuration_that_is_no_encoder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(PlanError, match="nothing can be counted"):
        read_architecture(str(tmp_path))


def test_refuses_a_configuration_of_no_known_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(EncoderError, match=str(tmp_path)):
        read_architecture(str(tmp_path))


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EncoderError):
        read_architecture(str(tmp_path / "nothing"))
