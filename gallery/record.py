"""The base of all configurations and results."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Frozen, and an unknown key is an error; not-a-number survives JSON as the string "NaN"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            error.args = (describe(error).replace("_", "-"),)  # what the command line prints; pydantic leaves it empty
            raise


def describe(error: ValidationError) -> str:
    """Return what is wrong, by the name of each field."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
