"""The base of all configurations and results."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gallery.codes import MAX_MODEL_VERSION, MAX_TEXT


class Record(BaseModel):
    """Frozen, and an unknown key is an error; not-a-number survives JSON as the string "NaN"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            error.args = (describe(error).replace("_", "-"),)  # what the command line prints; pydantic leaves it empty
            raise


def _one_line(text: str) -> str:
    if not text.isprintable() or len(text) > MAX_TEXT:
        raise ValueError(f"not one printable line of at most {MAX_TEXT:,} characters")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
ModelVersion = Annotated[int, Field(ge=0, le=MAX_MODEL_VERSION)]


def describe(error: ValidationError) -> str:
    """Return what is wrong, by the name of each field."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
