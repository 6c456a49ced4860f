"""How a weight is drawn: the `*_initializer` sections of a model."""

from typing import Any, Literal

from pydantic import model_validator

from modelzoo.config.sections.base import Float, PositiveFloat, Section


class Initializer(Section):
    """How a weight is drawn, by Model Zoo's names. Fields beyond those of the named distribution are refused."""

    name: Literal[
        "constant",
        "ones",
        "zeros",
        "eye",
        "uniform",
        "normal",
        "truncated_normal",
        "xavier_normal",
        "glorot_normal",
        "xavier_uniform",
        "glorot_uniform",
        "kaiming_normal",
        "kaiming_uniform",
        "variance_scaling",
        "lecun_normal",
        "lecun_uniform",
    ]
    val: Float | None = None  # of constant
    mean: Float = 0.0
    std: PositiveFloat = 0.05
    a: Float | None = None  # truncated_normal: lower cut, default -2 std; uniform: lower end; kaiming: negative slope
    b: Float | None = None
    gain: PositiveFloat = 1.0  # of xavier
    scale: PositiveFloat = 1.0  # of variance_scaling and lecun
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["uniform", "normal", "truncated_normal"] | None = None
    nonlinearity: Literal["leaky_relu", "relu"] = "leaky_relu"

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _own_fields(self):
        kind = self.name.replace("glorot", "xavier")
        allowed = {
            "constant": {"val"},
            "uniform": {"a", "b"},
            "normal": {"mean", "std"},
            "truncated_normal": {"mean", "std", "a", "b"},
            "xavier_normal": {"gain"},
            "xavier_uniform": {"gain"},
            "kaiming_normal": {"a", "mode", "nonlinearity"},
            "kaiming_uniform": {"a", "mode", "nonlinearity"},
            "variance_scaling": {"scale", "mode", "distribution"},
            "lecun_normal": {"scale", "mode"},
            "lecun_uniform": {"scale", "mode"},
        }.get(kind, set())
        given = {
            k
            for k in self.model_fields_set
            if getattr(self, k) is not None and getattr(self, k) != type(self).model_fields[k].default
        }
        if extra := given - {"name"} - allowed:
            raise ValueError(f"{self.name} does not take {', '.join(sorted(extra))}")
        if self.name == "constant" and self.val is None:
            raise ValueError("constant needs val")
        return self
