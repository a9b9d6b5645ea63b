"""`rayner plan`: a plan that can be read and parsed, without Ray; and one clear error for each mistake."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig

from pipelines import plan

CLUSTER = "4x(8cpu,32GiB,1xL4,0.8/h)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of the usual size: its configuration alone."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    BertConfig().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def histogram(tmp_path: Path) -> str:
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps({"16": 4000, "32": 8000, "96": 1000, "400": 50}))
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the door; returns its code and what it told."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = plan.main([*map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_training_is_planned_with_parts_reasons_and_rejections(run, model, histogram, tmp_path):
    output = tmp_path / "plans" / "plan.json"
    code, out, _ = run("--model", model, "--corpus", histogram, "--cluster", CLUSTER, "--output", output)
    assert code == 0
    written = json.loads(output.read_text())
    settings = written["settings"]
    assert (settings["use_gpu"], settings["accelerator"], settings["precision"]) == (True, "L4", "bf16")
    assert settings["num_workers"] == written["placement"]["number"]
    assert 1 <= settings["cpus_per_worker"] <= 7, "a CPU of each node is left"
    assert settings["device_batch_tokens"] == 4096
    memory = written["memory_mib"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"], rel=0.01)
    assert memory["total"] < written["memory_limit_mib"]
    predicted = written["predicted"]
    assert predicted["step_s"] == pytest.approx(sum(written["step_parts_s"].values()), rel=0.01)
    assert predicted["total_s"] == pytest.approx(4 * predicted["epoch_s"], rel=0.01)
    assert predicted["cost"] == pytest.approx(predicted["total_s"] / 3600 * predicted["price_per_hour"], rel=0.01)
    assert written["reasons"]
    assert written["rejected"]
    for name in ("weights", "compute", "bottleneck", "rejected", "next:", str(output)):
        assert name in out


@pytest.mark.parametrize("task", ["tune", "predict", "serve"])
def test_other_tasks_are_planned_with_shares_of_gpus_that_fit(run, model, histogram, tmp_path, task):
    output = tmp_path / "plan.json"
    code, out, _ = run(
        "--task", task, "--model", model, "--corpus", histogram, "--cluster", CLUSTER, "--output", output
    )
    assert code == 0
    written = json.loads(output.read_text())
    bundle, per_node = written["placement"]["bundle"], written["placement"]["per_node"]
    assert all(count * bundle["CPU"] <= 7 for count in per_node.values())
    assert all(count * bundle.get("GPU", 0) <= 1 for count in per_node.values())
    assert written["summary"] in " ".join(out.split())  # lines may be broken
    if task == "tune":
        assert written["settings"]["max_concurrent_trials"] == sum(per_node.values())


def test_ten_billion_documents_are_planned(run, model, histogram):
    arguments = ("--task", "predict", "--model", model, "--corpus", histogram, "--num_documents", 10**10)
    code, out, _ = run(*arguments, "--cluster", "8x(96cpu,1152GiB,8xA100,20/h)")
    assert code == 0
    assert "10,0" in out
    assert " h in all" in out or "days in all" in out
    assert "bottleneck" in out


def test_files_are_counted_and_this_machine_is_planned_for(run, tiny_encoder):
    code, out, _ = run("--model", tiny_encoder, "--corpus", "sample:en-dev.jsonl", "--cluster", "here")
    assert code == 0
    assert "1 worker with" in out


def test_missing_tokenizer_is_told_and_characters_count(run, model):
    code, _, err = run("--model", model, "--corpus", "sample:en-dev.jsonl", "--cluster", CLUSTER)
    assert code == 0
    assert "no tokenizer" in err


@pytest.mark.parametrize(
    "flags",
    [
        ("--task", "predict", "--actors.gpus_per_actor", "0"),
        ("--task", "serve", "--inference.device", "cpu"),
        ("--task", "train", "--resources.use_gpu", "false"),
    ],
)
def test_gpus_of_unknown_kind_hinder_no_task_that_takes_none(run, model, histogram, flags):
    code, _, err = run("--model", model, "--corpus", histogram, "--cluster", "1x(8cpu,32GiB,1gpu)", *flags)
    assert (code, "unknown kind" in err) == (0, False)


def test_nodes_to_be_added_are_told(run, model, histogram):
    code, out, _ = run("--model", model, "--corpus", histogram, "--cluster", "1x(2cpu)+0..4x(8cpu,32GiB,1xL4)")
    assert code == 0
    few = run("--model", model, "--corpus", histogram, "--cluster", "1x(2cpu)", "--resources.use_gpu", "true")
    assert few[0] == 2
    code, out, _ = run(
        *("--model", model, "--corpus", histogram, "--cluster", "1x(2cpu)+0..4x(8cpu,32GiB,1xL4)"),
        *("--resources.use_gpu", "true", "--resources.num_workers", 3),
    )
    assert code == 0
    assert "needs more nodes: 3 of `node-2`" in out


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--task", "dance"), ("no such task", "train, tune, predict, serve", "dance")),
        (("--limits.hours", 0), ("`limits.hours`", "above 0")),
        (("--limits.gpus", -1, "--limits.price", -1), ("2 mistakes", "`limits.gpus`", "`limits.price`")),
        (("--limits.gpus", 0, "--resources.use_gpu", "true"), ("contradict", "use_gpu")),
        (("--limits.hours", "1e-6"), ("cannot be done within the limits", "1e-06 h", "fastest")),
        (("--limits.price", "1e-6"), ("cannot be done within the limits", "cheapest")),
        (("--cluster", "4x(8cpu,1xL44)"), ("L44", "L4")),
        (("--cluster", "4x(8cpu,1gpu)", "--resources.use_gpu", "true"), ("GPU of unknown kind", "1xL4")),
        (("--cluster", "4 pigs (8cpu"), ("description of a cluster cannot be read", "4x(8cpu")),
        (("--cluster", "nowhere.yaml"), ("cannot be read", "nowhere.yaml", "No such file")),
        (("--cluster", "moon"), ("a cluster that cannot be meant", "moon", "host:6379")),
        (("--resources.num_workers", 99), ("no room for the workers", "99 workers", "room for")),
        (("--resources.cpus_per_worker", 64), ("no room for the workers", "64 CPUs")),
        (("--resources.accelerator", "H100"), ("no room for the workers", "H100")),
        (("--cluster", "1x(2cpu,1GiB)"), ("does not fit into the memory", "of 1.0 GiB")),
        (("--task", "predict", "--actors.num_actors", 99), ("no room for an actor", "99 with", "room for")),
        (("--task", "predict", "--actors.gpus_per_actor", 1.5), ("`resources.gpus_per_actor`",)),
        (("--task", "serve", "--load_tokens_per_s", 1e12), ("does not bear the load", "70 %")),
        (("--num_documents", 0, "--num_tags", 1), ("2 mistakes", "`num_documents`", "`num_tags`")),
        (("--cluster.address", "x:1"), ("unknown setting `cluster.address`", "--cluster")),
    ],
)
def test_mistake_is_one_clear_error(run, model, histogram, arguments, facts):
    given = {"--cluster": CLUSTER} if "--cluster" not in arguments else {}
    flags = [one for pair in given.items() for one in pair]
    code, out, err = run("--model", model, "--corpus", histogram, *flags, *arguments)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    for fact in facts:
        assert str(fact) in err


@pytest.mark.parametrize(
    ("content", "fact"),
    [("{}", "no"), ('{"16": -3}', "16: -3"), ('{"16": "many"}', "many"), ('{"16": 0}', "empty")],
)
def test_histogram_that_is_none_is_refused(run, model, tmp_path, content, fact):
    path = tmp_path / "lengths.json"
    path.write_text(content)
    code, _, err = run("--model", model, "--corpus", path, "--cluster", CLUSTER)
    assert code == 2
    assert fact in err


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--encoding.window", 513], ["`encoding.window`", "8 to 512", "513"]),
        (["--encoding.window", 0], ["`encoding.window`", "8 to 512"]),
        (["--encoding.window", 64, "--encoding.stride", 33], ["`encoding.stride`", "0 to 31", "33"]),
        (["--encoding.stride", -1], ["`encoding.stride`", "-1"]),
    ],
)
def test_windows_that_training_would_refuse_are_refused(run, model, histogram, flags, facts):
    code, _, err = run("--model", model, "--corpus", histogram, "--cluster", CLUSTER, *flags)
    assert code == 2
    assert [fact for fact in facts if fact not in err] == []


def test_window_is_no_longer_than_the_tokenizer_takes(run, histogram, tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "short")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 128}))
    command = ["--model", folder, "--corpus", histogram, "--cluster", CLUSTER]
    code, _, err = run(*command, "--encoding.window", 129)
    assert code == 2
    assert "8 to 128" in err
    output = tmp_path / "plan.json"
    assert run(*command, "--output", output)[0] == 0
    assert json.loads(output.read_text())["request"]["longest_window"] == 128


def test_everything_left_out_is_told_at_once(run):
    code, _, err = run()
    assert code == 2
    assert "no model is given" in err
    code, _, err = run("--model", "nowhere/at/all", "--corpus", "x.conll")
    assert code == 2
    assert "nowhere/at/all" in err


def test_address_of_no_cluster_is_refused(run, model, histogram):
    code, _, err = run("--model", model, "--corpus", histogram, "--cluster", "127.0.0.1:1")
    assert code == 2
    assert "the Ray cluster cannot be reached" in err
    assert "127.0.0.1:1" in err


@pytest.mark.parametrize(
    ("task", "flags", "told"),
    [
        ("serve", ["--limits.price", 1, "--limits.hours", 1], ["`limits.price`", "`limits.hours`"]),
        ("predict", ["--load_tokens_per_s", 5, "--num_trials", 3], ["`load_tokens_per_s`", "`num_trials`"]),
        ("tune", ["--num_trials", 3, "--limits.hours", 100], []),
    ],
)
def test_settings_of_another_task_are_told(run, model, histogram, task, flags, told):
    command = ["--task", task, "--model", model, "--corpus", histogram, "--cluster", CLUSTER, *flags]
    code, _, complained = run(*command)
    assert code == 0
    assert complained.count("has no effect") == len(told)
    for fact in told:
        assert fact in complained
