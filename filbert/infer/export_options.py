"""Every option of `filbert export`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ExportOptions(BaseModel):
    """Which bundle, into what, and which texts the result is compared on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str = Field(min_length=1, description="Bundle, Hugging Face folder, hub or model name")
    format: Literal["onnx", "openvino", "torch", "tensorflow"] = Field(
        description="What to write: for ONNX Runtime, OpenVINO, torch.export or TensorFlow"
    )
    out: str = Field(min_length=1, description="Folder of the exported model")
    overwrite: bool = Field(False, description="Replace a bundle in the output folder")
    opset: int | None = Field(None, ge=18, le=23, description="onnx: version of the operators [18]")
    aot: bool = Field(
        False, description="torch: also compile for this processor (AOTInductor, needs a compiler)"
    )

    # texts to compare on
    data: str | None = Field(
        None, description="Compare on the texts of this file [built-in English and Chinese ones]"
    )
    limit: int = Field(100, gt=0, le=2**31, description="Compare on the first N rows of --data")
    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    encoding: str = Field("utf-8", description="Text encoding of the file")
    header: bool | None = Field(None, description="First row holds the column names")

    # machine
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")

    @model_validator(mode="after")
    def _of_the_format(self) -> ExportOptions:
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"--opset is for --format onnx, not {self.format}")
        if self.aot and self.format != "torch":
            raise ValueError(f"--aot is for --format torch, not {self.format}")
        return self
