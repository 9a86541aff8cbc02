"""Defines the fields of a request: those of OpenAI's API, and llama.cpp's for `/infill`.

A field of OpenAI's that would change the answer and is not supported is refused, not ignored.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]


class Request(BaseModel):
    """A request. Unknown fields raise."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`. `prompt_name` and `prompt` are those of `encode`."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None


class CompletionRequest(Request):
    """`POST /v1/completions`. With a `suffix`, fill the gap before it; `span_length` is that of `infill`."""

    prompt: str | list[str]
    suffix: str | None = None
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1)
    best_of: int | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: str | Stop | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    span_length: int | None = Field(None, ge=1)
    user: str | None = None
    echo: Literal[False] = False
    frequency_penalty: Zero | None = 0
    presence_penalty: Zero | None = 0
    logit_bias: dict[str, float] | None = Field(None, max_length=0)


class Extra(BaseModel):
    """A text from elsewhere in the project. Its name and time are ignored."""

    text: str = ""


class InfillRequest(BaseModel):
    """`POST /infill`, as editors send it to llama.cpp.

    Editors send many more fields, which tune llama.cpp's own sampling and cache; these are ignored.
    """

    input_prefix: str
    input_suffix: str
    input_extra: list[Extra] = []
    prompt: str = ""
    n_predict: int = Field(-1, ge=-1)
    span_length: int | None = Field(None, ge=1)
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    seed: int | None = None
    stop: Stop = []
    stream: bool = False

    @property
    def completion(self) -> CompletionRequest:
        """The request in OpenAI's fields."""
        extra = "".join(f"{entry.text}\n" for entry in self.input_extra)
        return CompletionRequest(
            prompt=extra + self.input_prefix + self.prompt,
            suffix=self.input_suffix,
            max_tokens=self.n_predict if self.n_predict > 0 else None,
            seed=self.seed if self.seed is not None and self.seed >= 0 else None,
            **self.model_dump(
                include={"span_length", "temperature", "top_p", "top_k", "stop", "stream"}
            ),
        )
