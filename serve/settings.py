"""What an endpoint can be told: the arguments of `serve.app:build_app`, and what may change while it runs."""

from importlib.util import find_spec
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipelines.ner.labels import SCHEMES
from pipelines.ner.runtimes.calibration import RUNTIMES
from pipelines.ner.runtimes.runtime import PRECISIONS

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Tuning(BaseModel):
    """What may change without a restart: `user_config` of the deployment."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    min_score: float = Field(0.0, ge=0, le=1, description="Entities below are left out where a request says nothing.")
    max_batch_tokens: int | None = Field(
        None, ge=16, description="Sub-tokens of a batch; more is faster and later. Default: the runtime's own."
    )
    max_queued_tokens: int = Field(
        200_000, ge=1, description="Sub-tokens that may wait in a replica before it answers 429."
    )
    max_wait_s: float = Field(
        5.0, gt=0, description="Expected waiting, by the present speed, above which a replica answers 429."
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="A request that takes longer is answered 504; for a line of a stream waiting does not count.",
    )
    max_body_kib: int = Field(4096, ge=1, description="Of a request, and of a line of a stream.")
    max_texts: int = Field(1024, ge=1, description="Of a request.")
    max_characters: int = Field(500_000, ge=1, description="Of a text.")
    max_streams: int = Field(64, ge=1, description="At once in a replica, before it answers 429.")


def _split_models(value: Any) -> Any:
    """`a=path,b=path` as a command line gives it."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    models = {name.strip(): path.strip() for name, _, path in pairs}
    if len(models) < len(pairs):
        raise ValueError("two models have the same name")
    return models


def _can_trace() -> bool:
    """Whether the extra's exporter is there; others of OpenTelemetry come with Ray Serve."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


Models = Annotated[
    dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(min_length=1)]], BeforeValidator(_split_models)
]


class Arguments(BaseModel):
    """Arguments of `serve.app:build_app`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(description="A bundle folder, a Hugging Face token-classification checkpoint, or a hub id.")
    model_name: str = Field("default", pattern=NAME, description="Its name at the endpoint.")
    models: Models = Field({}, description="Further models by name, loaded when they are asked for.")
    max_models_mib: int = Field(
        2048, ge=1, description="Memory for the weights of loaded models; those longest unused make room."
    )

    device: str = Field(
        "auto", pattern=DEVICE, description="cpu, cuda, or auto: a GPU where the replica has a share of one."
    )
    runtime: str = Field(
        "auto", pattern=f"^({'|'.join(RUNTIMES)})$", description="How emissions are computed; auto measures."
    )
    precision: str = Field(
        "auto",
        pattern=f"^(auto|{'|'.join(PRECISIONS)})$",
        description="fp32, bf16, fp16, int8 (of a bundle that has it) or auto.",
    )
    scheme: str | None = Field(
        None,
        pattern=f"^({'|'.join(SCHEMES)})$",
        description="Tag scheme of a checkpoint of others whose tags do not tell: IOB1.",
    )
    num_cpus: float = Field(1.0, gt=0, description="CPUs of a replica: so many threads compute.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a replica; a fraction caps its share of the memory too.")

    min_replicas: int = Field(1, ge=0, description="0: the endpoint may go to sleep; its first request waits.")
    max_replicas: int = Field(1, ge=1)
    target_queued_tokens: int = Field(
        4000, ge=1, description="Waiting and running sub-tokens of a replica above which another one is started."
    )
    upscale_delay_s: float = Field(2.0, ge=0, description="A burst shorter than this starts nothing.")
    downscale_delay_s: float = Field(120.0, ge=0, description="So long must a replica be superfluous.")

    api_keys_file: str | None = Field(
        None, description="A file on every node with one key a line; else `RAYNER_API_KEYS`; else everybody may ask."
    )
    needs_api_keys: bool = Field(False, description="A replica that finds no API key does not start.")
    redaction_key_file: str | None = Field(
        None, description="A file whose bytes key the hashes of `redact`; else each start makes a key of its own."
    )
    page: bool = Field(True, description="Serve the web page at `/`.")
    access_log: bool = Field(True, description="A JSON line a request on the replica's standard error.")
    log_texts: bool = Field(False, description="Put texts into the access log. They may be private.")
    tracing: bool = Field(False, description="Send OpenTelemetry spans as the standard OTEL_ variables say.")

    tuning: Tuning = Field(default_factory=lambda: Tuning.model_validate({}))

    @model_validator(mode="after")
    def check(self) -> Self:
        """Settings that contradict each other."""
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus must be a fraction up to 1 or a whole number, not {self.num_gpus}")
        if self.tracing and not _can_trace():
            raise ValueError("tracing needs the extra `tracing`: pip install 'rayner[tracing]'")
        if self.model_name in self.models:
            raise ValueError(f"two models are named `{self.model_name}`")
        return self
