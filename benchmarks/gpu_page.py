"""The Markdown section of a GPU's figures from a folder that scripts/gpu_check.sh wrote.

python benchmarks/gpu_page.py OUT > OUT/gpu.md
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

OUTCOME = r"\d+ (?:passed|failed|skipped|errors?)"
END = OUTCOME + r".* in [\d.]+ ?s"  # pytest's last line
PARTS = ("dense-XL", "nanogpt-XL", "sparse", "dense-Large", "dense-Med", "products")


def write_section(folder: Path) -> str:
    """The section: a heading with the card's name, the tests' outcome, and a table for each part that was begun."""
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in PARTS
        if (path := folder / f"{name}.json").exists()
    }
    card = next(iter(found.values()), {}).get("card", "no GPU")
    torch = next(iter(found.values()), {}).get("torch", "unknown")
    lines = [f"## {card}", "", f"torch {torch}; `scripts/gpu_check.sh`. {describe_tests(folder)}", ""]
    for name in PARTS:
        if name not in found:
            lines += [f"**{name}**: not run.", ""]
        else:
            kind = tabulate_products if found[name]["part"] == "products" else tabulate
            lines += [*kind(name, found[name]), *list_unmeasured(found[name]), ""]
    return "\n".join(lines).rstrip() + "\n"


def describe_tests(folder: Path) -> str:
    """The outcomes in pytest's last line, or that it has none."""
    path = folder / "tests.txt"
    if not path.exists():
        return "Tests: not run."
    ends = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if re.search(END, line)]
    return f"Tests: {', '.join(re.findall(OUTCOME, ends[-1]))}." if ends else "Tests: not run to the end."


def list_unmeasured(part: dict[str, Any]) -> list[str]:
    """What was tried and has no figures, and why."""
    lines = [f"\n{who}: not measured, {why}" for who, why in part.get("failed", {}).items()]
    return lines + ([f"\n{part['under_way']}: not measured, stopped on the way"] if part["under_way"] else [])


def tabulate(name: str, part: dict[str, Any]) -> list[str]:
    """Contestants of whole steps."""
    lines = [
        f"**{name}**: {part['model']}, {part['size']}; MFU is of a plain product in the same rounds.",
        "",
        f"| | ms/step | tokens/s | MFU | memory, GB | speed against {part['base']} |",
        "|---|---|---|---|---|---|",
    ]
    for who, f in part.get("contestants", {}).items():
        ratio = f"{f['ratio']:.2f}x [{f['low']:.2f} to {f['high']:.2f}]" if "ratio" in f else "-"
        share = f"{f['mfu']:.0%} of {f['product_tflops']:.0f} TFLOP/s" if f["mfu"] else "-"
        cells = f"{f['milliseconds']:.1f} | {f['tokens_per_second']:,.0f} | {share} | {f['memory_bytes'] / 1e9:.1f}"
        lines.append(f"| {who} | {cells} | {ratio} |")
    return lines


def tabulate_products(name: str, part: dict[str, Any]) -> list[str]:
    """Microseconds of each product."""
    rows = part.get("products", {})
    names = list(next(iter(rows.values()), ()))
    lines = [f"**{name}**, microseconds:", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for product, times in rows.items():
        cells = " | ".join(format(times[n]["microseconds"], ".0f") for n in names)
        lines.append(f"| {product} | {cells} |")
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    print(write_section(p.parse_args().folder), end="")


if __name__ == "__main__":
    main()
