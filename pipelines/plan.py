"""Plan a run before it takes anything: what it needs of memory, time and money, where it fits, and what was rejected.

For a model (its configuration suffices), a corpus or the lengths of its texts, and a cluster: the running one, a
`cluster.yaml` or KubeRay manifest, or a described one (`--cluster '4x(8cpu,32GiB,1xL4)'`). The settings of `train` that
cost anything (`training`, `parallel`, `resources`) are given as there; what is left out is planned.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.markup import escape

from pipelines.calibrating import measure_machine
from pipelines.cluster import ClusterConfig, connect
from pipelines.corpus.inference import ActorResources, InferenceConfig
from pipelines.folders import write_json
from pipelines.job import console, progress_console, render_next, run_door, warn_of_idle
from pipelines.ner.encoding import EncodingConfig, EncodingError, find_window_problems
from pipelines.ner.errors import UserError, find_wrong_values, raise_all
from pipelines.plan_view import print_plan
from pipelines.planned_corpus import PlannedCorpus, find_longest
from pipelines.planning.architecture import Architecture, read_architecture
from pipelines.planning.cost import count_parameters
from pipelines.planning.descriptions import EXAMPLE, parse_cluster
from pipelines.planning.inference_plans import plan_prediction, plan_serving
from pipelines.planning.inventory import Inventory, set_price
from pipelines.planning.lengths import SPECIAL_TOKENS, Lengths
from pipelines.planning.manifests import read_manifest
from pipelines.planning.plans import TASKS, Limits, Plan
from pipelines.planning.running_cluster import read_running_cluster, read_this_machine, request_nodes
from pipelines.planning.speeds import find_node_rates
from pipelines.planning.training_plans import plan_training
from pipelines.planning.tuning_plans import TrialRequest, plan_tuning
from pipelines.resources import build_inference_request, build_training_request
from pipelines.settings import ConfigError
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig

HERE = ("here", "local", "this machine")
DEFAULT_WINDOW = 256


@dataclass(frozen=True)
class PlanConfig:
    """Settings of `rayner plan`."""

    task: str = "train"
    """train, tune, predict or serve."""
    model: str | None = None
    """An encoder or bundle: a folder with a config.json, a hub id (or one in its cache), or `all-MiniLM-L6-v2`."""
    head: str = "linear"
    """linear or crf."""
    num_tags: int = 9
    """Tags that the model predicts; shards know theirs."""
    corpus: list[str] = field(default_factory=list)
    """Files, as `train` and `predict` take them; a folder of shards from `rayner prepare`; or a JSON file with a
    histogram, `{"17": 300}`: 300 texts of 17 sub-tokens, without special ones."""
    num_documents: int | None = None
    """Plan for so many documents of lengths as those of the corpus; default: as many as it has."""
    cluster: str | None = None
    """A cluster in words, `4x(8cpu,32GiB,1xL4)+0..8x(16cpu,64GiB)` (`0..8`: what an autoscaler may add; `0.8/h`: a
    node's price); a cluster.yaml or KubeRay manifest; the address of a running one; `here`: this machine. Default:
    `RAY_ADDRESS` if set, else this machine."""
    node_price: float | None = None
    """Price of a node's hour, for all nodes, in any currency; default: as described, or as the tables know it."""
    limits: Limits = field(default_factory=Limits)
    num_trials: int = 20
    """Of tune."""
    load_tokens_per_s: float | None = None
    """Of serve: sub-tokens a second that the replicas must bear; default: as many replicas as fit."""
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    actors: ActorResources = field(default_factory=ActorResources)
    """What `predict` calls `resources`."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    calibrate: bool = False
    """Measure this machine first, in about a minute: products, memory, real steps. Later plans for it use what was
    found."""
    request: bool = False
    """Ask the autoscaler of the running cluster for the nodes that the plan needs and that are not there."""
    output: str | None = None
    """Write the plan as JSON to this file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("plan", PlanConfig, run, __doc__ or "", argv)


def run(config: PlanConfig) -> None:
    """Plan as configured, show it, and write it."""
    raise_all(_find_problems(config))
    warn_of_idle(_find_idle(config))
    architecture = read_architecture(str(config.model)) if config.model else None
    encoding = _resolve_window(config, architecture) if architecture else None
    if config.calibrate:
        _calibrate(config.training.precision)
    if architecture is None or encoding is None:
        return
    lengths, num_tags = _read_lengths(config, *encoding)
    address = _find_address(config)
    if address is None:
        plan = _plan(config, architecture, lengths, num_tags, _read_inventory(config))
    else:
        with connect(ClusterConfig(address=address)):
            plan = _plan(config, architecture, lengths, num_tags, read_running_cluster())
            if config.request and plan.placement.added:
                request_nodes(plan.bundles_to_request)
    facts = {
        "model": config.model,
        "parameters": count_parameters(architecture, num_tags, config.head),
        "family": architecture.family,
        "is_known_family": architecture.is_known,
        "corpus": config.corpus,
        "num_windows": lengths.num_windows,
        "num_tokens": lengths.num_tokens,
        "longest_window": lengths.longest,
        "limits": vars(config.limits),
    }
    print_plan(plan, facts)
    if config.output:
        path = Path(config.output).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"request": facts, **plan.to_dict()})
        console.print(escape(f"\nplan:   {path}"))
    if plan.placement.added and not config.request:
        console.print(
            "more nodes are needed: `--request` asks a running cluster's autoscaler for them; `train` does so itself"
        )
    console.print(render_next(_render_command(config, plan)))


def _plan(
    config: PlanConfig, architecture: Architecture, lengths: Lengths, num_tags: int, inventory: Inventory
) -> Plan:
    if config.node_price is not None:
        inventory = set_price(inventory, config.node_price)
    if _may_take_gpus(config):
        for node in [*inventory.nodes, *(group.node for group in inventory.groups)]:
            if node.gpus:
                find_node_rates(node, 1, "auto", gpus=1)  # raises for a kind that is not known
    training = partial(
        build_training_request, config.training, config.parallel, config.resources, head=config.head, num_tags=num_tags
    )
    inference = partial(build_inference_request, config.actors, config.inference, num_tags)
    if config.task == "train":
        return plan_training(inventory, architecture, lengths, training(), config.limits)
    if config.task == "tune":
        return plan_tuning(inventory, architecture, lengths, TrialRequest(training(), config.num_trials), config.limits)
    if config.task == "predict":
        return plan_prediction(inventory, architecture, lengths, inference(), config.limits)
    request = replace(inference(), tokens_per_s=config.load_tokens_per_s)
    return plan_serving(inventory, architecture, lengths, request, config.limits)


def _may_take_gpus(config: PlanConfig) -> bool:
    """Whether the settings of the task leave GPUs to the plan."""
    if config.limits.gpus == 0:
        return False
    if config.task in ("train", "tune"):
        return config.resources.use_gpu is not False
    return config.inference.device != "cpu" and config.actors.gpus_per_actor != 0


def _resolve_window(config: PlanConfig, architecture: Architecture) -> tuple[int, int]:
    """Window and stride, defaults filled in. Raises EncodingError for what training would refuse."""
    longest, window, stride = architecture.max_window, config.encoding.window, config.encoding.stride
    longest = find_longest(str(config.model), longest)
    raise_all(find_window_problems(window, longest, str(config.model)))
    window = min(DEFAULT_WINDOW, longest or DEFAULT_WINDOW) if window is None else window
    stride, most = window // 4 if stride is None else stride, (window - SPECIAL_TOKENS) // 2
    if not 0 <= stride <= most:
        rule = f"0 to {most}, half of the room in a window of {window}"
        raise EncodingError("the stride does not fit the window", where="`encoding.stride`", rule=rule, value=stride)
    return window, stride


def _read_lengths(config: PlanConfig, window: int, stride: int) -> tuple[Lengths, int]:
    """The lengths of windows, and the number of tags."""
    corpus = PlannedCorpus(config.corpus, str(config.model), window, stride)
    with progress_console.status("counting the corpus …"):
        lengths, num_records, num_tags = corpus.count()
    if config.num_documents is not None:
        scale = config.num_documents / max(1, num_records)
        lengths = replace(lengths, counts=tuple((one, max(1, round(count * scale))) for one, count in lengths.counts))
    return lengths, num_tags or config.num_tags


def _find_address(config: PlanConfig) -> str | None:
    """The address of the running cluster that is meant; None if one is described, or this machine is meant."""
    given = config.cluster
    if given is None:
        return os.environ.get("RAY_ADDRESS")
    if given in HERE or "(" in given or Path(given).suffix in (".yaml", ".yml") or Path(given).is_file():
        return None
    if given == "auto" or ":" in given:
        return given
    raise ConfigError(
        "a cluster that cannot be meant",
        where="`cluster`",
        rule=f"a description (`{EXAMPLE}`), a .yaml file, an address (`host:6379`, `auto`), or `here`",
        value=given,
    )


def _read_inventory(config: PlanConfig) -> Inventory:
    given = config.cluster
    if given is None or given in HERE:
        return read_this_machine()
    return parse_cluster(given) if "(" in given else read_manifest(Path(given).expanduser())


def _calibrate(precision: str) -> None:
    """Measure this machine, and say what was found."""
    with progress_console.status("measuring this machine: products, memory, real steps; about a minute …"):
        rates = measure_machine(precision)
    flops = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in rates.flops.items())
    console.print(f"[bold]{escape(rates.name)}[/]: {flops}, memory {rates.memory_bytes_per_s / 1e9:,.1f} GB/s")
    console.print("plans for this machine reckon with that from now on")


def _render_command(config: PlanConfig, plan: Plan) -> str:
    if config.task == "predict":
        return f"rayner predict --model {config.model} --input YOUR_TEXTS.jsonl --output_dir out/entities"
    if config.task == "serve":
        return f"rayner serve --model {config.model}"
    flags = {
        "training.batch_tokens": config.training.batch_tokens,
        "parallel.strategy": plan.settings.get("strategy", config.parallel.strategy),
    }
    plain = {"training.batch_tokens": TrainingConfig().batch_tokens, "parallel.strategy": "ddp"}
    told = "".join(f" --{name} {value}" for name, value in flags.items() if value != plain[name])
    return f"rayner {config.task} --model.encoder {config.model} --corpus.train YOUR_CORPUS{told}"


def _find_idle(config: PlanConfig) -> list[str]:
    """Settings given that change nothing in the plan of this task."""
    limits, plain = config.limits, PlanConfig()
    checks = (
        ("limits.hours", limits.hours is not None and config.task == "serve", "an endpoint has no end"),
        ("limits.price", limits.price is not None and config.task == "serve", "an endpoint has no end"),
        ("load_tokens_per_s", config.load_tokens_per_s is not None and config.task != "serve", "it is of serve"),
        ("num_trials", config.num_trials != plain.num_trials and config.task != "tune", "it is of tune"),
    )
    return [f"`{name}` has no effect: {why}" for name, is_idle, why in checks if is_idle]


def _find_problems(config: PlanConfig) -> list[UserError]:
    problems: list[UserError] = []
    if config.task not in TASKS:
        rule = "one of " + ", ".join(TASKS)
        problems.append(ConfigError("no such task", where="`task`", rule=rule, value=config.task))
    if not config.model and not config.calibrate:
        problems.append(ConfigError("no model is given", remedy="`--model PATH_OR_ID`; its config.json suffices"))
    if config.model and not config.corpus:
        remedy = (
            "`--corpus FILES`, a folder of shards, or a JSON histogram of lengths; `sample:` is the one shipped here"
        )
        problems.append(ConfigError("no corpus is given", remedy=remedy))
    ranges = (
        ("num_documents", "at least 1", config.num_documents is None or config.num_documents >= 1),
        ("num_trials", "at least 1", config.num_trials >= 1),
        ("num_tags", "at least 2", config.num_tags >= 2),
        ("node_price", "at least 0", (config.node_price or 0) >= 0),
        ("load_tokens_per_s", "above 0", config.load_tokens_per_s is None or config.load_tokens_per_s > 0),
    )
    problems += find_wrong_values(ConfigError, config, ranges, what="a number out of range")
    if config.head not in ("linear", "crf"):
        problems.append(ConfigError("no such head", where="`head`", rule="one of linear, crf", value=config.head))
    return [
        *problems,
        *config.limits.find_problems(),
        *config.training.find_problems(),
        *config.parallel.find_problems(),
        *config.resources.find_problems(config.parallel.strategy),
        *config.actors.find_problems(),
        *config.inference.find_problems(),
    ]


if __name__ == "__main__":
    sys.exit(main())
