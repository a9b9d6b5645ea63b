"""The contract of the endpoint: what a request may say, and what an answer holds. Offsets are Unicode code points."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, model_validator

MAX_LABELS = 1000
MAX_NAME = 256
Redaction = Literal["mask", "label", "hash"]
Label = Annotated[str, StringConstraints(max_length=MAX_NAME)]


def _check_id(value: Any) -> str | int:
    """A union of two types would point at `/id/str` and `/id/int`, which no body has."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("Input should be a string or an integer")
    return value


LineId = Annotated[str | int, PlainValidator(_check_id, json_schema_input_type=str | int)]


class Options(BaseModel):
    """What to leave out of an answer, and what to add to it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: list[Label] | None = Field(
        None,
        max_length=MAX_LABELS,
        description="Only entities of these labels of the model; default: all.",
        examples=[["PER"]],
    )
    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Only entities of at least this probability; default: the endpoint's own, usually 0.",
    )
    redact: Redaction | None = Field(
        None,
        description="Return the text with each entity replaced: by `█` for each of its characters (mask), by its label "
        "in brackets (label), or by its label and a keyed hash, equal for equal mentions (hash).",
    )


def _require_one(schema: dict[str, Any]) -> None:
    """Say in the schema what `check_texts` checks; null is as good as nothing."""
    schema["oneOf"] = []
    for name in ("text", "texts"):
        field = schema["properties"][name]
        given = field.pop("anyOf")[0]
        del field["default"]
        schema["properties"][name] = given | field | {"type": [given["type"], "null"]}
        schema["oneOf"].append({"required": [name], "properties": {name: {"type": given["type"]}}})


class EntitiesRequest(Options):
    """One text, or several."""

    model_config = ConfigDict(json_schema_extra=_require_one, extra="forbid", strict=True)

    text: str | None = Field(None, description="A text of any length that the endpoint's limits allow.")
    texts: list[str] | None = Field(
        None,
        min_length=1,
        fail_fast=True,  # a million mistakes would fill the memory
        description="Several texts; the answer keeps their order.",
    )

    @model_validator(mode="after")
    def check_texts(self) -> Self:
        """Either `text` or `texts`."""
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either `text` or `texts`")
        return self


class StreamLine(Options):
    """One line of a stream."""

    text: str
    id: LineId | None = Field(None, description="Comes back with the answer.")


class Entity(BaseModel):
    """A mention: `text == document[start:end]`, in code points."""

    text: str
    label: str
    start: int
    end: int
    score: float = Field(description="Probability of exactly these edges and this label.")


class Coverage(BaseModel):
    """How much of the text the model read; `fraction` is 1 unless something could not be read."""

    num_characters: int
    num_words: int
    num_tokens: int
    num_windows: int
    fraction: float


class RedactedSpan(BaseModel):
    """Where an entity's replacement stands in the redacted text."""

    start: int
    end: int
    label: str


class Redacted(BaseModel):
    """The text with its entities replaced; `spans` are in the order of the entities."""

    text: str
    spans: list[RedactedSpan]


class Result(BaseModel):
    """The answer for one text."""

    entities: list[Entity]
    coverage: Coverage
    redacted: Redacted | None = Field(None, description="Only where the request asks to redact.")


class Results(BaseModel):
    """The answers for several texts, in order."""

    results: list[Result]


class StreamResult(Result):
    """The answer for one line, in the order of the lines."""

    line: int = Field(description="Number of the line, from 1.")
    id: str | int | None = None


class ModelInfo(BaseModel):
    """A model of the endpoint."""

    name: str
    labels: list[str]
    scheme: str
    fingerprint: str
    runtime: str
    precision: str
    device: str
    window: int
    stride: int
    metrics: dict[str, Any] = Field(description="Scores that the bundle was saved with.")


class ModelList(BaseModel):
    """The endpoint's models."""

    default: str
    models: list[str]
    loaded: list[str] = Field(description="Those that the answering replica holds in memory now.")


class Mistake(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="Where, as a JSON pointer into the body.", examples=["/texts/3"])
    detail: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Mistake] | None = None


class StreamProblem(BaseModel):
    """A line of a stream that could not be answered; the others are."""

    line: int
    id: str | int | None = None
    error: Problem
