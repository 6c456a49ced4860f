"""`run.py VERB ...`: what moves or compares files. Each verb imports what it needs when it runs."""

import argparse
import shlex
from collections.abc import Callable
from typing import NamedTuple

from modelzoo import verb_flags as flags
from modelzoo.config.arguments import Parser


class Verb(NamedTuple):
    """One verb: its help text, its arguments, and what it does with them."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _convert(args: argparse.Namespace) -> None:
    from modelzoo.tasks.convert_config import convert_config

    print(convert_config(args.old, args.new, args.overrides, args.force))


def _export(args: argparse.Namespace) -> None:
    from modelzoo.interop.exporting.export import export

    print(export(args.checkpoint, args.out, args.params, args.tokenizer, args.dtype, args.format))


def _import(args: argparse.Namespace) -> None:
    from modelzoo.interop.importing.import_checkpoint import import_checkpoint

    print(import_checkpoint(args.checkpoint, args.out, args.params, args.weights))


def _push(args: argparse.Namespace) -> None:
    from modelzoo.interop.exporting.push import prepare_push

    given = {key: getattr(args, key) for key in ("license", "language", "datasets", "base_model")}
    print(prepare_push(args.folder, args.repo, given))


def _prompt(args: argparse.Namespace) -> None:
    from modelzoo.interop.adapters.prompt_table import format_prompt_table

    print(format_prompt_table(args.run, args.tokenizer, args.nearest))


def _compare(args: argparse.Namespace) -> None:
    from modelzoo.study.reports.compare import compare_runs

    compare_runs(args.runs, args.output)


def _report(args: argparse.Namespace) -> None:
    from modelzoo.study.reports.report import report_runs

    print(report_runs(args.runs, args.output))
    print(f"next       open {shlex.quote(args.output)} in a browser")


def _search(args: argparse.Namespace) -> None:
    from modelzoo.scoring.prompt_search import Request, search_prompts

    request = Request(
        args.checkpoint, args.task, args.output, tuple(args.templates), args.params, args.data_dir, args.split,
        args.eval_batch_size, args.target,
    )  # fmt: skip
    print(search_prompts(request))


def _prepare(args: argparse.Namespace) -> None:
    from modelzoo.evaluation.official.prepare import prepare_task

    print(prepare_task(args.name, args.source, args.out))


def _generate(args: argparse.Namespace) -> None:
    import sys

    from modelzoo.config.errors import UserError
    from modelzoo.generation import prompts, settings
    from modelzoo.reading import exists

    how = settings.choose_settings(
        args.max_new_tokens, args.samples, args.temperature, args.top_k, args.top_p, args.repetition_penalty,
        tuple(args.stop), args.seed,
    )  # fmt: skip
    if args.output not in (None, prompts.STDIN) and exists(args.output):
        raise UserError(f"{args.output}: exists; give another name, or remove it first")
    settings.require_model(args.path)
    asks = not args.prompt and args.file is None and not args.whole and args.field is None and sys.stdin.isatty()
    if asks and args.output is not None:
        raise UserError("-o: takes the texts of --prompt or --file; at a terminal there are none to store")
    file = prompts.STDIN if not asks and not args.prompt and args.file is None else args.file
    found = None if asks else prompts.read_prompts(args.prompt, file, args.field, args.whole)
    from modelzoo.generation.command import Request, generate_texts

    generate_texts(
        Request(
            args.path, found, how, args.batch_size, args.output, args.params, args.tokenizer, args.target,
            args.refuse_long, args.dtype,
        )
    )  # fmt: skip


def _doctor(args: argparse.Namespace) -> None:
    from modelzoo.starting.doctor import describe_machine

    print("\n".join(describe_machine(args.folder)))


def _list(args: argparse.Namespace) -> None:
    from modelzoo.starting.listing import describe_list

    print("\n".join(describe_list(args.what, args.pattern)))


def _init(args: argparse.Namespace) -> None:
    from modelzoo.starting.first_config import write_first_config

    print("\n".join(write_first_config(args.folder, args.data, args.size, args.sparsity)))


def _completion(args: argparse.Namespace) -> None:
    from modelzoo.starting.completion import write_completion

    print(write_completion(args.shell, list(VERBS)))


def _prune(args: argparse.Namespace) -> None:
    from modelzoo.pruning.command import Request, prune_run

    given = {k: getattr(args, k) for k in ("sparsity", "block", "nm", "shared_inputs")}
    flags = {k: x for k, x in {**given, "permute_inputs": args.permute}.items() if x is not None}
    request = Request(
        args.path, args.out, args.method, flags, tuple(args.data), args.samples, tuple(args.validate), args.compare,
        args.params, args.seed, args.damping, args.batch_size, args.target,
    )  # fmt: skip
    print(prune_run(request))


VERBS = {
    "init": Verb(
        "Write a commented config for the data that is here; it asks nothing.",
        "python run.py init first --data data/quickstart",
        flags.add_init_flags,
        _init,
    ),
    "list": Verb(
        "Names that configs and commands take: algorithms, schedules, optimizers, tasks, configs, keys.",
        "python run.py list algorithms\n  python run.py list keys checkpoint",
        flags.add_list_flags,
        _list,
    ),
    "doctor": Verb(
        "What this machine has, and what would run how: processor, kernels, GPU, packages, disk.",
        "python run.py doctor runs",
        flags.add_doctor_flags,
        _doctor,
    ),
    "completion": Verb(
        "A line for a shell's start-up file that completes modes, verbs and flags.",
        "python run.py completion bash",
        flags.add_completion_flags,
        _completion,
    ),
    "generate": Verb(
        "Write texts with a run or an export: from prompts given here, in a file, on standard input, or at a terminal.",
        'python run.py generate runs/s75 --prompt "Aspirin lowers" --temperature 0.8 --top_p 0.9\n'
        "  python run.py generate runs/s75 --file prompts.jsonl --samples 4 -o texts.jsonl",
        flags.add_generate_flags,
        _generate,
    ),
    "compare": Verb(
        "Runs side by side: a table of FLOPs and scores, and a picture of their losses and sparsity per layer.",
        "python run.py compare runs/dense runs/s75 -o comparison.svg",
        flags.add_compare_flags,
        _compare,
    ),
    "report": Verb(
        "One self-contained HTML page of runs: losses, FLOPs, masks, weights and time, with the numbers as CSV.",
        "python run.py report runs/dense runs/s75 runs/rigl75 -o report.html",
        flags.add_report_flags,
        _report,
    ),
    "export": Verb(
        "Write a checkpoint as a Hugging Face folder (with tokenizer and model card), GGUF, ONNX, or Model Zoo's .mdl.",
        "python run.py export runs/s75 exported/s75\n  python run.py export runs/s75 s75.gguf --dtype q8_0\n"
        "  python run.py export runs/s75 onnx/s75 --format onnx\n  python run.py export runs/s75 checkpoint_300.mdl",
        flags.add_export_flags,
        _export,
    ),
    "push": Verb(
        "Make an export ready for the Hugging Face Hub and print the command that uploads it. Nothing is sent.",
        "python run.py push exported/s75 --repo ORG/s75 --license apache-2.0",
        flags.add_push_flags,
        _push,
    ),
    "prompt": Verb(
        "The vocabulary's tokens that each learned soft-prompt vector is nearest to, as a table.",
        "python run.py prompt runs/pubmedqa_prompt --nearest 3",
        flags.add_prompt_flags,
        _prompt,
    ),
    "import": Verb(
        "Import a Hugging Face folder (GPT-2, GPT-NeoX, Llama, ...), or Model Zoo's .mdl, as a new run's checkpoint.",
        "python run.py import pythia/ runs/pythia\n  python run.py import checkpoint_300.mdl runs/s75 -p s75.yaml",
        flags.add_import_flags,
        _import,
    ),
    "prune": Verb(
        "Prune a dense checkpoint in one shot (magnitude, Wanda, SparseGPT) into masks that training goes on with.",
        "python run.py prune runs/dense runs/s50 --method sparsegpt --sparsity 0.5 --data data/train\n"
        "  python run.py prune runs/dense runs/blocks --method wanda --sparsity 0.75 --block 32,32 --data data/train",
        flags.add_prune_flags,
        _prune,
    ),
    "prompt-search": Verb(
        "Score a task's templates and label words on its dev split, each against the task's own.",
        "python run.py prompt-search runs/s75 --task configs/eval/pubmedqa.yaml",
        flags.add_search_flags,
        _search,
    ),
    "prepare-task": Verb(
        "Convert a benchmark's official files into what its bundled task reads.",
        "python run.py prepare-task medqa data_clean.zip data/medqa\n"
        "  python run.py prepare-task mmlu data.tar data/mmlu_medical\n"
        "  python run.py prepare-task pubmedqa pubmedqa/data data/pubmedqa",
        flags.add_prepare_flags,
        _prepare,
    ),
    "convert-config": Verb(
        "Write a Model Zoo config of an older release (or today's) in today's format, and report each change.",
        "python run.py convert-config params_gpt3_125m_rigl75.yaml rigl75.yaml",
        flags.add_convert_flags,
        _convert,
    ),
}


def run(argv: list[str]) -> None:
    """`argv` begins with a verb of VERBS."""
    verb = VERBS[argv[0]]
    p = Parser(
        prog=f"run.py {argv[0]}",
        description=verb.about,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(p)
    args = p.parse_args(argv[1:])
    from modelzoo.kernels.processor import check_switches

    check_switches()
    verb.run(args)
