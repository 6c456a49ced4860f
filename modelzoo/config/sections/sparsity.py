"""The `sparsity` section: what cerebras.pytorch.sparse.configure reads, plus seed, distribution, cubic and a bound."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelzoo.config.loading.explain import format_value
from modelzoo.config.loading.renamed import Renamed
from modelzoo.config.sections.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
    Str,
    Width,
    listed,
)
from modelzoo.config.sections.sparsity_schedules import Constant, Schedule, Sigmoid, Update
from modelzoo.config.values.patterns import check_syntax

REGROWING = ("set", "rigl", "smet", "granet", "mest", "chts", "chtss")  # algorithms whose masks move
GRADUAL = ("gmp", "granet", "chtss")  # those that prune along a schedule
TOPOLOGICAL = ("chts", "chtss")
OWNERS = {  # of keys that belong to some algorithms
    **dict.fromkeys(("drop_fraction", "regrow_warmup"), REGROWING),
    **dict.fromkeys(("link_predictor", "temperature"), TOPOLOGICAL),
    "gamma": ("mest",),
    "lambda_w": ("sr_ste",),
}
CSTORCH = ("static", "gmp", "set", "rigl")  # those of cerebras.pytorch
PRESETS = {  # what an algorithm sets unless it is given
    "smet": {"update": {"freq": 100}, "drop_fraction": 0.2, "regrow_warmup": 100},
    "sr_ste": {"init_method": "topk"},
}
WARMUP = 100  # of `regrow_warmup: true`


def _warmup_form(value: Any) -> Any:
    if isinstance(value, bool) or value == 0:
        return WARMUP if value else None
    return value


class SparsityGroup(Section):
    """One sparsity algorithm and the parameters it acts on."""

    # masks that stay (static), prune (gmp), move (set, rigl, smet, mest, chts), do both (granet, chtss), or follow the
    # largest of weights that all go on training (sr_ste, for nm)
    algorithm: Literal["static", "gmp", "set", "rigl", "smet", "granet", "mest", "chts", "chtss", "sr_ste"] = "static"
    sparsity: Schedule  # share of weights off; a number or a schedule
    init_method: Literal["random", "topk", "from_zeros", "checkerboard"] = "random"  # which weights live at the start
    # globs over parameter names, or re:EXPRESSION, each of which must match; default: linear weights
    param_filter: Annotated[tuple[Str, ...] | None, BeforeValidator(listed)] = None
    update: Update | None = None  # when masks change; default: every step
    # share of live weights that gives up its place at an update; default 0.3 (granet 0.5, smet 0.2)
    drop_fraction: Schedule | None = None
    # own steps over which Adam's updates of a regrown weight rise to full size; true: 100; smet's default is 100
    regrow_warmup: Annotated[PositiveInt | None, BeforeValidator(_warmup_form)] = None
    gamma: NonNegativeFloat | None = None  # of mest, which drops the smallest |w| + gamma |gradient|; default 0.01
    link_predictor: Literal["ch2_l3n", "ch3_l3n"] | None = None  # by which chts and chtss grow; default ch2_l3n
    # of chts and chtss: a weight stays with odds |w| ** temperature; a number or a schedule; default 1
    temperature: Schedule | None = None
    lambda_w: NonNegativeFloat | None = None  # of sr_ste: pulls the weights that are off towards zero; default 2e-4
    balance_in_groups: Width | None = None
    balance_out_groups: Width | None = None
    distribution: Literal["uniform", "erdos_renyi", "erk"] = "uniform"  # over the matrices: each alike, or by sides
    seed: NonNegativeInt | None = None  # of random masks and growth; default: trainer.init.seed
    max_sparsity: Rate = 0.999  # refuse a schedule that goes beyond
    compat: Literal["cstorch"] | None = None  # masks by cerebras.pytorch's rules to the last weight (docs/csx.md)
    mup_base_density: Annotated[PositiveFloat, Field(le=1)] | None = None  # rate and init corrected from it (SuPar)
    block: tuple[Width, Width] = (1, 1)  # rows x columns that live or die together
    # the order in which inputs form blocks is found from the weights that masks begin with (start), or at each update
    # of an algorithm that prunes gradually (updates); null: inputs form them as they are
    permute_inputs: Literal["start", "updates"] | None = None
    shared_inputs: Width | None = None  # groups of consecutive outputs; a group's outputs read the same inputs
    nm: tuple[Width, Width] | None = None  # N of every M weights along the inputs
    storage: Literal["auto", "packed", "compressed", "masked"] = "auto"  # off the CS-2; auto: blocks alone, if faster
    renamed: ClassVar = (Renamed("storage", "storage", lambda v: "masked" if v == "dense" else v),)

    @property
    def copies_dense_gradient(self) -> bool:
        """Whether they are kept apart from the weight's own gradient until masks change (SR-STE's are that one)."""
        return self.needs_dense_gradient and self.algorithm != "sr_ste"

    @property
    def needs_dense_gradient(self) -> bool:
        """Whether an update wants the gradient of dead weights too."""
        return self.algorithm in ("rigl", "granet", "sr_ste")

    @property
    def pattern(self) -> str | None:
        """The shape that live weights take, in the config's words; None where masks are unstructured."""
        if self.shared_inputs:
            return f"shared_inputs: {self.shared_inputs}"
        if self.nm:
            return f"nm: [{self.nm[0]}, {self.nm[1]}]"
        if self.block == (1, 1):
            return None
        ordered = f", permute_inputs: {self.permute_inputs}" if self.permute_inputs else ""
        return f"block: [{self.block[0]}, {self.block[1]}]{ordered}"

    @property
    def may_pack(self) -> bool:
        """Whether live blocks may be stored alone: asked for, or left open for a pattern of blocks."""
        return self.storage == "packed" or (self.storage == "auto" and self.pattern is not None and self.nm is None)

    @property
    def may_compress(self) -> bool:
        """Whether sparse tensor cores may multiply by the weights, which are 2:4."""
        return self.storage == "compressed"

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and value.strip().endswith("%")):
            return {"sparsity": value}
        if not isinstance(value, dict):
            raise ValueError(
                f"takes the share of weights off, or a mapping (algorithm, sparsity, ...); got {format_value(value)}"
            )
        value = dict(value)
        for alias, name in (("type", "algorithm"), ("schedule", "sparsity")):
            if alias in value:
                if name in value:
                    raise ValueError(f"`{alias}` is another name of `{name}`; give one of them")
                value[name] = value.pop(alias)
        if isinstance(value.get("algorithm"), str):
            value["algorithm"] = value["algorithm"].lower()
        if (level := _nm_level(value.get("nm"))) is not None:
            value.setdefault("sparsity", level)
        name = value.get("algorithm")
        return {**PRESETS.get(name, {}), **value} if isinstance(name, str) else value

    @model_validator(mode="after")
    def _patterns_parse(self):
        check_syntax(self.param_filter)
        return self

    @model_validator(mode="after")
    def _fits_algorithm(self):
        name, level = self.algorithm, self.sparsity.value if isinstance(self.sparsity, Constant) else None
        constant = level is not None
        if level is not None and not 0 <= level < 1:
            raise ValueError(f"sparsity {level} must be at least 0 and below 1 (the share of weights off)")
        if name == "static":
            if not constant:
                raise ValueError("static sparsity is one number; for a schedule use gmp, set or rigl")
            if self.update is not None:
                raise ValueError("static masks never change: remove `update`, or use gmp, set or rigl")
        if name in GRADUAL and constant:
            instead = {"gmp": "static", "granet": "rigl", "chtss": "chts"}[name]
            raise ValueError(f"{name} prunes along a schedule; for one level use `algorithm: {instead}`")
        self._own_keys(name)
        if self.balance_in_groups and self.balance_out_groups:
            raise ValueError("give balance_in_groups or balance_out_groups, not both")
        if (self.balance_in_groups or self.balance_out_groups) and name != "rigl":
            raise ValueError(f"balance_in_groups and balance_out_groups belong to rigl, not {name}")
        if (self.balance_in_groups or self.balance_out_groups) and self.distribution != "uniform":
            raise ValueError("balanced groups need `distribution: uniform`")
        if self.compat and name not in CSTORCH:
            raise ValueError(f"compat: cstorch knows {', '.join(CSTORCH)}, not {name}")
        if self.compat and self.regrow_warmup:
            raise ValueError("compat: cstorch counts no ages of regrown weights; remove regrow_warmup")
        if self.compat and isinstance(self.sparsity, Sigmoid):
            raise ValueError("compat: cstorch knows no sigmoid; use cubic")
        if self.compat and self.distribution != "uniform":
            raise ValueError("compat: cstorch knows `distribution: uniform` alone")
        if self.init_method == "from_zeros" and not constant:
            raise ValueError("from_zeros takes its level from the weights; it does not go with a schedule")
        if self.mup_base_density is not None and (not constant or self.init_method == "from_zeros"):
            raise ValueError("mup_base_density corrects for one density: it takes a constant sparsity, no from_zeros")
        return self

    def _own_keys(self, name: str) -> None:
        for key, owners in OWNERS.items():
            if getattr(self, key) is not None and name not in owners:
                raise ValueError(f"{key} belongs to {', '.join(owners)}, not {name}")
        if name == "sr_ste":
            if self.nm is None:
                raise ValueError("sr_ste trains N:M patterns: give nm, such as nm: [2, 4]")
            if other := next((k for k in ("update", "mup_base_density") if getattr(self, k) is not None), None):
                raise ValueError(f"sr_ste chooses its weights at every step, among all: remove {other}")

    @model_validator(mode="after")
    def _fits_pattern(self):
        self._fits_order()
        given = [k for k in ("block", "shared_inputs", "nm") if getattr(self, k) not in (None, (1, 1))]
        if len(given) > 1:
            raise ValueError(f"give {' or '.join(given)}, not both")
        if self.storage == "compressed" and self.nm != (2, 4):
            raise ValueError("storage: compressed is for nm: [2, 4], which sparse tensor cores multiply by")
        if self.storage == "packed" and self.nm:
            raise ValueError("storage: packed holds blocks and single weights; nm is kept whole")
        if not given:
            return self
        key = given[0]
        if self.compat:
            raise ValueError(f"compat: cstorch knows unstructured masks alone; remove {key}")
        if other := next((k for k in ("balance_in_groups", "balance_out_groups") if getattr(self, k)), None):
            raise ValueError(f"give {key} or {other}, not both")
        if key != "block" and self.distribution != "uniform":
            raise ValueError(f"{key} needs `distribution: uniform`; {self.distribution} goes with block")
        if key == "nm" and self.nm is not None:
            self._fits_nm(*self.nm)
        return self

    def _fits_order(self) -> None:
        if self.permute_inputs is None:
            return
        if self.block[1] == 1:
            raise ValueError(
                "permute_inputs orders the inputs of blocks: give a block of two columns or more, such as [32, 32]"
            )
        gradual = self.algorithm in GRADUAL
        if self.permute_inputs == "updates" and not gradual:
            raise ValueError(
                f"permute_inputs: updates is for {', '.join(GRADUAL)}, which prune along a schedule; use start with "
                f"{self.algorithm}: a new order would move more weights than its updates may"
            )
        if self.permute_inputs == "start" and gradual:
            raise ValueError(f"permute_inputs: start is for masks that begin sparse; {self.algorithm} takes updates")
        if self.permute_inputs == "start" and self.init_method in ("random", "checkerboard"):
            raise ValueError(
                f"permute_inputs: start finds the order by magnitudes, and {self.init_method} masks gain nothing from "
                "one; use init_method: topk"
            )

    def _fits_nm(self, n: int, m: int) -> None:
        level = _nm_level((n, m))
        if level is None:
            raise ValueError(f"nm [{n}, {m}] keeps {n} of every {m} weights; the first must be smaller")
        if not isinstance(self.sparsity, Constant) or abs(self.sparsity.value - level) > 1e-6:
            raise ValueError(f"nm [{n}, {m}] is sparsity {level:.6g}; leave `sparsity` out, or choose another pattern")
        if self.init_method == "from_zeros":
            raise ValueError("nm chooses its own weights; use init_method: topk to keep the largest, not from_zeros")


def _nm_level(value: Any) -> float | None:
    """The sparsity that N of M is, or None where `value` is no such pair."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(x) is int for x in value)
    return 1 - value[0] / value[1] if pair and 0 < value[0] < value[1] else None


def _group_list(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"groups"}:  # Model Zoo's nested spelling
        value = value["groups"]
        value = value if isinstance(value, list) else [value]
        value = [
            {**g, **g["params"]} if isinstance(g, dict) and isinstance(g.get("params"), dict) else g for g in value
        ]
        return [{k: v for k, v in g.items() if k != "params"} if isinstance(g, dict) else g for g in value]
    return () if value is None else listed(value)


SparsityGroups = Annotated[tuple[SparsityGroup, ...], BeforeValidator(_group_list)]
