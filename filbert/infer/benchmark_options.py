"""Every option of `filbert benchmark`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

PEERS = ("transformers", "sentence-transformers", "onnxruntime", "openvino", "ctranslate2")


class BenchmarkOptions(BaseModel):
    """Which bundle is measured on which texts, beside which peers, and how long."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str = Field(min_length=1, description="Folder of a trained model, or its name")
    data: str = Field(description="File of the texts: CSV, TSV, JSONL, Parquet, text, .gz")
    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    format: str | None = Field(
        None, description="csv, tsv, jsonl, parquet, cola, mrpc (else from the name)"
    )
    encoding: str = Field("utf-8", description="Text encoding of the file")
    header: bool | None = Field(None, description="First row holds the column names")
    limit: int = Field(1000, gt=0, le=2**31, description="Use only the first N rows")

    # what is measured
    peers: str | None = Field(
        None, description=f"Names with commas between, or none [{','.join(PEERS)}]"
    )
    rounds: int = Field(5, gt=0, le=1000, description="Rounds; in each every arm has its turn")
    rate: float | None = Field(
        None, ge=0.01, description="Texts that arrive a second [half of what one by one manages]"
    )
    single: int = Field(50, gt=0, description="Texts of a round that are answered one by one")
    seed: int = Field(0, ge=0, description="Of the moments of arrival")
    out: str | None = Field(None, description="Folder for benchmark.json, .md and .svg")
    overwrite: bool = Field(False, description="Replace an earlier benchmark in --out")

    # machine
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "float32", "bf16", "int8"] = Field(
        "auto", description="Compute precision"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="Tokens computed at once [4096; on a GPU 32768]"
    )
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")
    core: Literal["auto", "torch", "onnxruntime", "openvino"] = Field(
        "auto",
        description="What computes: auto is the native encoder where it serves, else torch; the "
        "last two open folders of filbert export",
    )

    @field_validator("peers")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        names = [] if value in (None, "none") else [part.strip() for part in str(value).split(",")]
        for name in names:
            if name not in PEERS:
                raise ValueError(f"no peer {name!r}; expected none, or some of {', '.join(PEERS)}")
        return value

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The peers that are wanted, in the order of `PEERS`."""
        if self.peers is None:
            return PEERS
        wanted = {part.strip() for part in self.peers.split(",")}
        return tuple(name for name in PEERS if name in wanted)
