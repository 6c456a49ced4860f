"""The Markdown section of a GPU's figures from a folder that scripts/gpu_check.sh wrote.

python benchmarks/gpu_page.py OUT > OUT/gpu.md
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

PARTS = ("products", "sparse", "dense-XL", "dense-Large", "dense-Med", "nanogpt-XL")


def write_section(folder: Path) -> str:
    """The section: a heading with the card's name, the tests' outcome, and a table for each part that was run."""
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
        elif "products" in found[name]:
            lines += [*tabulate_products(found[name]), ""]
        else:
            lines += [*tabulate(name, found[name]), ""]
    return "\n".join(lines).rstrip() + "\n"


def describe_tests(folder: Path) -> str:
    """The last line of pytest's output that counts."""
    path = folder / "tests.txt"
    counts = (
        re.findall(r"\d+ (?:passed|failed|skipped|errors?)", path.read_text(encoding="utf-8")) if path.exists() else []
    )
    return f"Tests: {', '.join(counts[-4:])}." if counts else "Tests: not run."


def tabulate(name: str, part: dict[str, Any]) -> list[str]:
    """Contestants of whole steps."""
    lines = [
        f"**{name}**: {part['model']}, {part['size']}; a plain product {part['product_tflops']:.0f} TFLOP/s.",
        "",
        f"| | ms/step | tokens/s | MFU | memory, GB | speed against {part['base']} |",
        "|---|---|---|---|---|---|",
    ]
    for who, f in part["contestants"].items():
        ratio = f"{f['ratio']:.2f}x [{f['low']:.2f} to {f['high']:.2f}]"
        cells = (
            f"{f['milliseconds']:.1f} | {f['tokens_per_second']:,.0f} | {f['mfu']:.0%} | {f['memory_bytes'] / 1e9:.1f}"
        )
        lines.append(f"| {who} | {cells} | {ratio} |")
    return lines + [f"\n{who}: not measured, {why}" for who, why in part["failed"].items()]


def tabulate_products(part: dict[str, Any]) -> list[str]:
    """Microseconds of each product."""
    names = list(next(iter(part["products"].values())))
    lines = ["**products**, microseconds:", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for product, times in part["products"].items():
        cells = " | ".join(format(times[n]["microseconds"], ".0f") for n in names)
        lines.append(f"| {product} | {cells} |")
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    print(write_section(p.parse_args().folder), end="")


if __name__ == "__main__":
    main()
