"""What every section of the schema shares: frozen models, strict scalars, and the one-of-several mapping."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict, create_model, model_serializer, model_validator

from modelzoo.config.loading.renamed import Renamed, take_new_names
from modelzoo.config.values.scalars import MOST

# Strict: `true` is no integer, "6e-4" (quoted) is no number and 1.0 is no step count. A config says what it means.
Int = Annotated[int, Strict(), Field(ge=-MOST, le=MOST)]
PositiveInt = Annotated[int, Strict(), Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0, le=MOST)]
# What takes memory or processes has a bound of its own, far above any use: a slip of the finger is refused as one.
Width = Annotated[int, Strict(), Field(gt=0, le=2**20)]  # of a layer, a batch or a sequence
Many = Annotated[int, Strict(), Field(gt=0, le=2**12)]  # layers, threads, systems
Workers = Annotated[int, Strict(), Field(ge=0, le=2**10)]  # processes
Float = Annotated[float, Strict(), AllowInfNan(False)]
PositiveFloat = Annotated[float, Strict(), AllowInfNan(False), Field(gt=0)]
NonNegativeFloat = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0)]
Rate = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, lt=1)]
Bool = Annotated[bool, Strict()]
Str = Annotated[str, Strict()]


class Section(BaseModel):
    """A mapping of known keys. Unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=False)
    renamed: ClassVar[tuple[Renamed, ...]] = ()  # old spellings of its keys and values

    @model_validator(mode="before")
    @classmethod
    def _take_new_names(cls, value: Any) -> Any:
        return take_new_names(value, cls.renamed) if cls.renamed and isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _clear_empty(cls, value: Any) -> Any:
        """A section or list without a word in it (`callbacks:`, `--set KEY=null`) is as if it were not there."""
        if not isinstance(value, dict):
            return value
        empty = {n for n, f in cls.model_fields.items() if isinstance(f.default, Section) or f.default == ()}
        return {k: v for k, v in value.items() if v is not None or k not in empty}


class OneOf(Section):
    """A mapping with exactly one key, which names the class that its value configures: `{AdamW: {...}}`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        # `- ProgressLogger` and `- ProgressLogger:` both mean the class with its defaults.
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {k: {} if v is None else v for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self):
        if len(self.model_fields_set) != 1:
            named = ", ".join(sorted(self.model_fields_set)) or "none"
            raise ValueError(f"takes exactly one of {', '.join(type(self).model_fields)}; got {named}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        return getattr(self, self.name)

    @model_serializer(mode="wrap")
    def _only_the_chosen(self, handler: Callable) -> dict:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


def one_of(*classes: type[Section]) -> type[OneOf]:
    """A OneOf whose keys are the names of `classes`, to derive a section from."""
    fields: dict[str, Any] = {c.__name__: (c | None, None) for c in classes}
    return create_model("OneOf", __base__=OneOf, **fields)


def listed(value: Any) -> Any:
    """A single value in place of a list becomes a list of one (for `BeforeValidator`)."""
    return value if isinstance(value, list | tuple) or value is None else [value]
