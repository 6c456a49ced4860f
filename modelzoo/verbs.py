"""`run.py VERB ...`: what moves or compares files. Each verb imports what it needs when it runs."""

import argparse
import shlex
from collections.abc import Callable
from typing import NamedTuple

from modelzoo.config.arguments import (
    Parser,
    Settings,
    count,
    device,
    nonnegative_float,
    parse_block,
    parse_nm,
    positive_float,
    positive_int,
    share,
)


class Verb(NamedTuple):
    """One verb: its help text, its arguments, and what it does with them."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _convert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("old", metavar="OLD", help="a Model Zoo GPT-2/GPT-3 config of release 1.8 or later")
    p.add_argument("new", metavar="NEW", help="the YAML to write")
    p.add_argument("--set", action=Settings, default=[], metavar="KEY=VALUE", dest="overrides", help="override a key")
    p.add_argument("--force", action="store_true", help="replace NEW if it exists")


def _convert(args: argparse.Namespace) -> None:
    from modelzoo.tasks.convert_config import convert_config

    print(convert_config(args.old, args.new, args.overrides, args.force))


def _export_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("out", metavar="OUT", help="the folder to make, FILE.gguf (llama.cpp), or FILE.mdl (Model Zoo)")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the training data's)")
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "q8_0"],
        default="float32",
        help="of weights; q8_0: GGUF's",
    )
    p.add_argument("--format", choices=["hf", "gguf", "onnx", "mdl"], help="default: by OUT's name, else hf")


def _export(args: argparse.Namespace) -> None:
    from modelzoo.interop.export import export

    print(export(args.checkpoint, args.out, args.params, args.tokenizer, args.dtype, args.format))


def _import_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder with safetensors, or FILE.mdl")
    p.add_argument("out", metavar="RUN", help="the run folder to make")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the config to go on with (a .mdl needs one)")
    p.add_argument("--weights", action="store_true", help="of a .mdl take weights and masks, not the optimizer's state")


def _import(args: argparse.Namespace) -> None:
    from modelzoo.interop.import_checkpoint import import_checkpoint

    print(import_checkpoint(args.checkpoint, args.out, args.params, args.weights))


def _push_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="EXPORT", help="a folder that export wrote")
    p.add_argument("--repo", metavar="ORG/NAME", help="the repository on the Hub")
    p.add_argument("--license", metavar="ID", help="of the weights, by the Hub's id (apache-2.0)")
    p.add_argument("--language", metavar="CODE", action="extend", nargs="+", help="of the texts (the card says en)")
    p.add_argument("--datasets", metavar="ORG/NAME", action="extend", nargs="+", help="the training data on the Hub")
    p.add_argument("--base_model", metavar="ORG/NAME", help="the model on the Hub whose weights the run began from")


def _push(args: argparse.Namespace) -> None:
    from modelzoo.interop.push import prepare_push

    given = {key: getattr(args, key) for key in ("license", "language", "datasets", "base_model")}
    print(prepare_push(args.folder, args.repo, given))


def _prompt_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the run's)")
    p.add_argument(
        "--nearest", metavar="N", type=positive_int, default=5, help="nearest tokens to list for each vector (5)"
    )


def _prompt(args: argparse.Namespace) -> None:
    from modelzoo.interop.adapters import format_prompt_table

    print(format_prompt_table(args.run, args.tokenizer, args.nearest))


def _compare_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; the others are compared with the first")
    p.add_argument("-o", "--output", metavar="PICTURE", default="comparison.svg", help=".svg or .png (comparison.svg)")


def _compare(args: argparse.Namespace) -> None:
    from modelzoo.study.compare import compare_runs

    compare_runs(args.runs, args.output)


def _report_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; those that differ in their seed count as one")
    p.add_argument("-o", "--output", metavar="PAGE", default="report.html", help="the HTML file (report.html)")


def _report(args: argparse.Namespace) -> None:
    from modelzoo.study.report import report_runs

    print(report_runs(args.runs, args.output))
    print(f"next       open {shlex.quote(args.output)} in a browser")


def _search_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a run folder, a step folder or an exported folder")
    p.add_argument("--task", required=True, metavar="TASK", help="a file like configs/eval/pubmedqa.yaml, or its name")
    p.add_argument(
        "--templates",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files or folders (the task's folder)",
    )
    p.add_argument("-o", "--output", metavar="DIR", help="where results go (./prompt_search/TASK)")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--data_dir", metavar="DIR", help="the task's data, instead of its file's own")
    p.add_argument("--split", choices=["train", "dev"], default="dev", help="dev; never test: it would be used up")
    p.add_argument("--eval_batch_size", type=positive_int, default=8, metavar="N", help="rows at once (8)")
    p.add_argument("--target", type=device, choices=["GPU", "CPU", "auto"], default="auto", help="device (auto)")


def _search(args: argparse.Namespace) -> None:
    from modelzoo.scoring.prompt_search import Request, search_prompts

    request = Request(
        args.checkpoint, args.task, args.output, tuple(args.templates), args.params, args.data_dir, args.split,
        args.eval_batch_size, args.target,
    )  # fmt: skip
    print(search_prompts(request))


def _prepare_arguments(p: argparse.ArgumentParser) -> None:
    names = ("medqa", "medmcqa", "mmlu", "bioasq", "pubmedqa")
    p.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    p.add_argument("source", metavar="SOURCE", help="the official files: a folder, a .zip or a tar file")
    p.add_argument("out", metavar="OUT", help="the folder to make, for --data_dir")


def _prepare(args: argparse.Namespace) -> None:
    from modelzoo.evaluation.official.prepare import prepare_task

    print(prepare_task(args.name, args.source, args.out))


def _generate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="RUN", help="a run folder, a step folder, a .mdl or an exported folder")
    p.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a text to go on from; may be repeated"
    )
    p.add_argument("--file", metavar="FILE", help="prompts: text, one a line, or .jsonl; - is standard input (text)")
    p.add_argument("--whole", action="store_true", help="take the text of --file for one prompt")
    p.add_argument("--field", metavar="NAME", help="of a .jsonl line, that holds the prompt (prompt)")
    p.add_argument("--max_new_tokens", type=positive_int, default=128, metavar="N", help="of each text (128)")
    p.add_argument("--temperature", type=nonnegative_float, metavar="T", help="draw tokens (default: the likeliest)")
    p.add_argument("--top_k", type=positive_int, metavar="K", help="draw among the K likeliest tokens")
    p.add_argument("--top_p", type=share, metavar="P", help="draw among the likeliest that have this share together")
    p.add_argument("--repetition_penalty", type=positive_float, default=1.0, metavar="R", help="of tokens there (1)")
    p.add_argument("--samples", type=positive_int, default=1, metavar="N", help="texts for each prompt (1)")
    p.add_argument("--seed", type=count, metavar="N", help="of the draws (0): the same texts again, in any batch")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be repeated")
    p.add_argument("--refuse_long", action="store_true", help="refuse a prompt longer than the context (default: cut)")
    p.add_argument("-o", "--output", metavar="FILE", help="JSON lines here, - for standard output (default: texts)")
    p.add_argument("--batch_size", type=positive_int, default=8, metavar="N", help="texts at once (8)")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the run's)")
    p.add_argument("--target", type=device, choices=["GPU", "CPU", "auto"], default="auto", help="device (auto)")


def _generate(args: argparse.Namespace) -> None:
    import os
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
    if not os.path.exists(args.path):
        raise UserError(f"{args.path}: no such run; name a run folder, a step folder, a .mdl or an exported folder")
    asks = not args.prompt and args.file is None and not args.whole and args.field is None and sys.stdin.isatty()
    if asks and args.output is not None:
        raise UserError("-o: takes the texts of --prompt or --file; at a terminal there are none to store")
    file = prompts.STDIN if not asks and not args.prompt and args.file is None else args.file
    found = None if asks else prompts.read_prompts(args.prompt, file, args.field, args.whole)
    from modelzoo.generation.command import Request, generate_texts

    generate_texts(
        Request(
            args.path, found, how, args.batch_size, args.output, args.params, args.tokenizer, args.target,
            args.refuse_long,
        )
    )  # fmt: skip


def _doctor_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where runs would be written (here)")


def _doctor(args: argparse.Namespace) -> None:
    from modelzoo.starting.doctor import describe_machine

    print("\n".join(describe_machine(args.folder)))


def _list_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="WHAT", help="algorithms, schedules, optimizers, tasks, configs or keys")
    p.add_argument("pattern", nargs="?", metavar="TEXT", help="only lines that have it")


def _list(args: argparse.Namespace) -> None:
    from modelzoo.starting.listing import describe_list

    print("\n".join(describe_list(args.what, args.pattern)))


def _init_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="DIR", help="the folder to make")
    p.add_argument("--data", metavar="FOLDER", help="of shards (default: the one that is below this folder)")
    p.add_argument("--size", choices=["tiny", "small", "medium", "med"], help="of the model (by this machine)")
    p.add_argument("--sparsity", type=share, default=0.75, help="share of the matrices' weights that is off (0.75)")


def _init(args: argparse.Namespace) -> None:
    from modelzoo.starting.first_config import write_first_config

    print("\n".join(write_first_config(args.folder, args.data, args.size, args.sparsity)))


def _completion_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("shell", choices=["bash", "zsh"], help="which shell's")


def _completion(args: argparse.Namespace) -> None:
    from modelzoo.starting.completion import write_completion

    print(write_completion(args.shell, list(VERBS)))


def _prune_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="RUN", help="a dense run's folder, an imported one, or a step folder")
    p.add_argument("out", metavar="OUT", help="the run folder to make")
    p.add_argument(
        "--method",
        required=True,
        choices=["magnitude", "wanda", "sparsegpt"],
        help="the largest weights stay, or the largest by |W| * |X|; sparsegpt also changes what stays",
    )
    p.add_argument("--sparsity", type=share, metavar="S", help="the share of weights that goes (0.5)")
    shape = p.add_mutually_exclusive_group()
    shape.add_argument("--block", type=parse_block, metavar="R,C", help="weights go in blocks of R outputs, C inputs")
    shape.add_argument("--nm", type=parse_nm, metavar="N:M", help="N of every M weights along the inputs stay")
    shape.add_argument(
        "--shared_inputs",
        type=positive_int,
        metavar="G",
        help="G groups of outputs, each of which reads the same inputs",
    )
    p.add_argument("--data", action="extend", nargs="+", default=[], metavar="SHARDS", help="calibration text")
    p.add_argument("--samples", type=positive_int, default=128, metavar="N", help="examples of it to take (128)")
    p.add_argument("--seed", type=count, default=0, metavar="N", help="of their draw (0)")
    p.add_argument(
        "--validate",
        action="extend",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="measure perplexity before and after",
    )
    p.add_argument("--compare", action="store_true", help="show what magnitude would have given, too")
    p.add_argument("--damping", type=positive_float, default=0.01, metavar="D", help="of sparsegpt's Hessians (0.01)")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the config to go on with (default: the run's)")
    p.add_argument("--batch_size", type=positive_int, default=8, metavar="N", help="examples at a time (8)")
    p.add_argument("--target", type=device, choices=["GPU", "CPU", "auto"], default="auto", help="device (auto)")


def _prune(args: argparse.Namespace) -> None:
    from modelzoo.pruning.command import Request, prune_run

    flags = {k: x for k in ("sparsity", "block", "nm", "shared_inputs") if (x := getattr(args, k)) is not None}
    request = Request(
        args.path, args.out, args.method, flags, tuple(args.data), args.samples, tuple(args.validate), args.compare,
        args.params, args.seed, args.damping, args.batch_size, args.target,
    )  # fmt: skip
    print(prune_run(request))


VERBS = {
    "init": Verb(
        "Write a commented config for the data that is here; it asks nothing.",
        "python run.py init first --data data/quickstart",
        _init_arguments,
        _init,
    ),
    "list": Verb(
        "Names that configs and commands take: algorithms, schedules, optimizers, tasks, configs, keys.",
        "python run.py list algorithms\n  python run.py list keys checkpoint",
        _list_arguments,
        _list,
    ),
    "doctor": Verb(
        "What this machine has, and what would run how: processor, kernels, GPU, packages, disk.",
        "python run.py doctor runs",
        _doctor_arguments,
        _doctor,
    ),
    "completion": Verb(
        "A line for a shell's start-up file that completes modes, verbs and flags.",
        "python run.py completion bash",
        _completion_arguments,
        _completion,
    ),
    "generate": Verb(
        "Write texts with a run or an export: from prompts given here, in a file, on standard input, or at a terminal.",
        'python run.py generate runs/s75 --prompt "Aspirin lowers" --temperature 0.8 --top_p 0.9\n'
        "  python run.py generate runs/s75 --file prompts.jsonl --samples 4 -o texts.jsonl",
        _generate_arguments,
        _generate,
    ),
    "compare": Verb(
        "Runs side by side: a table of FLOPs and scores, and a picture of their losses and sparsity per layer.",
        "python run.py compare runs/dense runs/s75 -o comparison.svg",
        _compare_arguments,
        _compare,
    ),
    "report": Verb(
        "One self-contained HTML page of runs: losses, FLOPs, masks, weights and time, with the numbers as CSV.",
        "python run.py report runs/dense runs/s75 runs/rigl75 -o report.html",
        _report_arguments,
        _report,
    ),
    "export": Verb(
        "Write a checkpoint as a Hugging Face folder (with tokenizer and model card), GGUF, ONNX, or Model Zoo's .mdl.",
        "python run.py export runs/s75 exported/s75\n  python run.py export runs/s75 s75.gguf --dtype q8_0\n"
        "  python run.py export runs/s75 onnx/s75 --format onnx\n  python run.py export runs/s75 checkpoint_300.mdl",
        _export_arguments,
        _export,
    ),
    "push": Verb(
        "Make an export ready for the Hugging Face Hub and print the command that uploads it. Nothing is sent.",
        "python run.py push exported/s75 --repo ORG/s75 --license apache-2.0",
        _push_arguments,
        _push,
    ),
    "prompt": Verb(
        "The vocabulary's tokens that each learned soft-prompt vector is nearest to, as a table.",
        "python run.py prompt runs/pubmedqa_prompt --nearest 3",
        _prompt_arguments,
        _prompt,
    ),
    "import": Verb(
        "Import a Hugging Face folder (GPT-2, GPT-NeoX, Llama, ...), or Model Zoo's .mdl, as a new run's checkpoint.",
        "python run.py import pythia/ runs/pythia\n  python run.py import checkpoint_300.mdl runs/s75 -p s75.yaml",
        _import_arguments,
        _import,
    ),
    "prune": Verb(
        "Prune a dense checkpoint in one shot (magnitude, Wanda, SparseGPT) into masks that training goes on with.",
        "python run.py prune runs/dense runs/s50 --method sparsegpt --sparsity 0.5 --data data/train\n"
        "  python run.py prune runs/dense runs/blocks --method wanda --sparsity 0.75 --block 32,32 --data data/train",
        _prune_arguments,
        _prune,
    ),
    "prompt-search": Verb(
        "Score a task's templates and label words on its dev split, each against the task's own.",
        "python run.py prompt-search runs/s75 --task configs/eval/pubmedqa.yaml",
        _search_arguments,
        _search,
    ),
    "prepare-task": Verb(
        "Convert a benchmark's official files into what its bundled task reads.",
        "python run.py prepare-task medqa data_clean.zip data/medqa\n"
        "  python run.py prepare-task mmlu data.tar data/mmlu_medical\n"
        "  python run.py prepare-task pubmedqa pubmedqa/data data/pubmedqa",
        _prepare_arguments,
        _prepare,
    ),
    "convert-config": Verb(
        "Write a Model Zoo config of an older release (or today's) in today's format, and report each change.",
        "python run.py convert-config params_gpt3_125m_rigl75.yaml rigl75.yaml",
        _convert_arguments,
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
    from modelzoo.kernels.processor import processor_class

    processor_class()  # refuses a MEDISWIFT_PROCESSOR that this machine cannot act as
    verb.run(args)
