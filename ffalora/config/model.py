"""The section of the pretrained model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .section import SEEDS, Section


class ModelConfig(Section):
    """The pretrained model."""

    name: str = Field("all-MiniLM-L6-v2", description="embedded model, local folder, or hub name")
    pooling: Literal["model", "mean"] = Field(
        "mean", description="'model': the model's own classification head; 'mean': a linear head on mean-pooled states"
    )
    head_std: float = Field(0.3, gt=0, description="standard deviation of the random head weights (pooling: mean)")
    head_seed: int | None = Field(
        None,
        ge=0,
        lt=SEEDS,
        description="seed of random head weights, where all runs shall share one public draw (default: seed)",
    )
    head_scale: float = Field(10.0, gt=0, description="length to which the pooled state is normalised (pooling: mean)")
    pooled_layers: int = Field(
        3,
        ge=1,
        description="pooling: mean; the head reads the pooled states of so many layers, evenly spaced and ending with "
        "the last; 1 is the last alone",
    )
    head_start: Literal["auto", "labels", "zero", "random"] = Field(
        "auto",
        description="where the task head starts: at the texts of its classes, which costs no privacy; at zero; or at "
        "random weights; auto: labels where a trained head has classes with names, else zero, and random where it is "
        "frozen",
    )
    head_temperature: float = Field(
        10.0, gt=0, description="head_start: labels; what cosines between samples and classes are multiplied with"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the frozen base; auto: bfloat16 where the processor has fast bfloat16"
    )
    attention: Literal["auto", "eager", "sdpa"] = Field(
        "auto", description="attention implementation; auto: eager on a CPU"
    )
    packed: bool | Literal["auto"] = Field(
        "auto",
        description="train on samples laid end to end, without padding (pooling: mean, and language models); auto: on "
        "a CPU, where the model's outputs stay the same",
    )
    cache_frozen_layers: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compute the layers below the first adapted one once a sample (encoders such as BERT); auto: where "
        "training repeats samples and their states take at most 2 GiB",
    )
    shard: bool = Field(
        False,
        description="under torchrun, each process holds its part of the frozen base alone, and gathers a layer's "
        "weights while it computes (FSDP2)",
    )
    compile: bool = Field(False, description="compile the model with torch.compile")
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, record the passes of steps and replay them: the GPU then waits less",
    )
