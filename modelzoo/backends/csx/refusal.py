"""What a cluster says when it does not take a job, or loses one, as one line with what to do about it.

Known by the names of cerebras's error classes: the library itself is imported in library.py alone.
"""

import re
from collections.abc import Iterator

from modelzoo.config.errors import UserError

ADVICE = {
    "ApplianceVersionError": (
        "the cluster runs another release",
        "use the environment of its release, or pass --disable_version_check at your own risk",
    ),
    "ClusterJobScheduleError": (
        "the cluster cannot place the job",
        "ask for fewer systems with --num_csx, or come back when some are free (csctl get cluster)",
    ),
    "ClusterJobInitError": (
        "the cluster refuses the job",
        "check trainer.init.backend: mount_dirs, python_paths, job_labels",
    ),
    "ClusterConfigError": ("the cluster's address is not known", "give --mgmt_address HOST:PORT"),
    "ApplianceResourceExhausted": ("the job does not fit the cluster", "lower the batch size or the model's size"),
    "UNAVAILABLE": (
        "the connection was lost",
        "the job may still be there: `csctl get jobs`, `csctl cancel job ID`; then start again",
    ),
    "CANCELLED": (
        "the cluster ended the job",
        "it must hear from this process every few seconds: keep it running and connected, and start again",
    ),
    "OTHER": ("the cluster ended the job", "see run_meta.json next to the artefacts for its id, and csctl for its log"),
}
_CODE = re.compile(r"StatusCode\.(\w+)|status(?:_code)? ?[:=] ?(?:StatusCode\.)?(\w+)")
_DETAILS = re.compile(r'details ?[:=] ?"?([^"\n]+)', re.IGNORECASE)


def explain_refusal(error: BaseException, address: str | None) -> UserError | None:
    """The message for an error that came from the cluster or the way to it; None if it came from elsewhere."""
    chain = list(_chain(error))
    full = any(_is_rpc(e) and "RESOURCE_EXHAUSTED" in f"{_call(e, 'code')}" for e in chain)
    # The outermost named refusal is the most specific; a bare RPC error inside is the fallback.
    for e in chain:
        if (name := type(e).__name__) in ADVICE:
            name = "ClusterJobScheduleError" if full and name == "ClusterJobInitError" else name
            return _make_error(name, _first_line(e), address)
    for e in chain:
        if _is_rpc(e):
            code = _CODE.search(f"{_call(e, 'code') or ''} {e}")
            name = next((g for g in code.groups() if g), "") if code else ""
            found = _DETAILS.search(str(e))
            details = _call(e, "details") or (found.group(1) if found else _first_line(e))
            return _make_error(name if name in ADVICE else "OTHER", str(details), address)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_rpc(e: BaseException) -> bool:
    return any(c.__name__ in ("RpcError", "PicklableRpcError", "ApplianceClientException") for c in type(e).__mro__)


def _call(e: BaseException, name: str) -> object:
    """`e.name()` where `e` has such a method (grpc's calls do)."""
    method = getattr(e, name, None)
    return method() if callable(method) else None


def _first_line(e: BaseException) -> str:
    return next((x.strip() for x in str(e).splitlines() if x.strip()), type(e).__name__)


def _make_error(kind: str, message: str, address: str | None) -> UserError:
    what, then = ADVICE[kind]
    return UserError(f"CSX {address or ''}: {what}: {message.rstrip('.')[:300]}; {then}".replace("  ", " "))
