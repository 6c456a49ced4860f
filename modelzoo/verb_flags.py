"""The flags of each verb, for argparse. No torch."""

import argparse

from modelzoo.config.arguments import (
    Settings,
    count,
    device,
    integer,
    nonnegative_float,
    parse_block,
    parse_nm,
    positive_float,
    positive_int,
    share,
    sparsity,
)


def add_convert_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("old", metavar="OLD", help="a Model Zoo GPT-2/GPT-3 config of release 1.8 or later")
    p.add_argument("new", metavar="NEW", help="the YAML to write")
    p.add_argument("--set", action=Settings, default=[], metavar="KEY=VALUE", dest="overrides", help="override a key")
    p.add_argument("--force", action="store_true", help="replace NEW if it exists")


def add_export_flags(p: argparse.ArgumentParser) -> None:
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


def add_import_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder with safetensors, or FILE.mdl")
    p.add_argument("out", metavar="RUN", help="the run folder to make")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the config to go on with (a .mdl needs one)")
    p.add_argument("--weights", action="store_true", help="of a .mdl take weights and masks, not the optimizer's state")


def add_push_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="EXPORT", help="a folder that export wrote")
    p.add_argument("--repo", metavar="ORG/NAME", help="the repository on the Hub")
    p.add_argument("--license", metavar="ID", help="of the weights, by the Hub's id (apache-2.0)")
    p.add_argument("--language", metavar="CODE", action="extend", nargs="+", help="of the texts (the card says en)")
    p.add_argument("--datasets", metavar="ORG/NAME", action="extend", nargs="+", help="the training data on the Hub")
    p.add_argument("--base_model", metavar="ORG/NAME", help="the model on the Hub whose weights the run began from")


def add_prompt_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the run's)")
    p.add_argument(
        "--nearest", metavar="N", type=positive_int, default=5, help="nearest tokens to list for each vector (5)"
    )


def add_compare_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; the others are compared with the first")
    p.add_argument("-o", "--output", metavar="PICTURE", default="comparison.svg", help=".svg or .png (comparison.svg)")


def add_report_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; those that differ in their seed count as one")
    p.add_argument("-o", "--output", metavar="PAGE", default="report.html", help="the HTML file (report.html)")


def add_search_flags(p: argparse.ArgumentParser) -> None:
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


def add_prepare_flags(p: argparse.ArgumentParser) -> None:
    names = ("medqa", "medmcqa", "mmlu", "bioasq", "pubmedqa")
    p.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    p.add_argument("source", metavar="SOURCE", help="the official files: a folder, a .zip or a tar file")
    p.add_argument("out", metavar="OUT", help="the folder to make, for --data_dir")


def add_generate_flags(p: argparse.ArgumentParser) -> None:
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
    p.add_argument("--samples", type=integer(1, 2**20), default=1, metavar="N", help="texts for each prompt (1)")
    p.add_argument("--seed", type=count, metavar="N", help="of the draws (0): the same texts again, in any batch")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be repeated")
    p.add_argument("--refuse_long", action="store_true", help="refuse a prompt longer than the context (default: cut)")
    p.add_argument("-o", "--output", metavar="FILE", help="JSON lines here, - for standard output (default: texts)")
    p.add_argument("--batch_size", type=positive_int, default=8, metavar="N", help="texts at once (8)")
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of weights (float32); bfloat16: half of the memory, quicker, and rounded",
    )
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the run's)")
    p.add_argument("--target", type=device, choices=["GPU", "CPU", "auto"], default="auto", help="device (auto)")


def add_doctor_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where runs would be written (here)")


def add_list_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="WHAT", help="algorithms, schedules, optimizers, tasks, configs or keys")
    p.add_argument("pattern", nargs="?", metavar="TEXT", help="only lines that have it")


def add_init_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="DIR", help="the folder to make")
    p.add_argument("--data", metavar="FOLDER", help="of shards (default: the one that is below this folder)")
    p.add_argument("--size", choices=["tiny", "small", "medium", "med"], help="of the model (by this machine)")
    p.add_argument("--sparsity", type=sparsity, default=0.75, help="share of the matrices' weights that is off (0.75)")


def add_completion_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("shell", choices=["bash", "zsh"], help="which shell's")


def add_prune_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="RUN", help="a dense run's folder, an imported one, or a step folder")
    p.add_argument("out", metavar="OUT", help="the run folder to make")
    p.add_argument(
        "--method",
        required=True,
        choices=["magnitude", "wanda", "sparsegpt"],
        help="the largest weights stay, or the largest by |W| * |X|; sparsegpt also changes what stays",
    )
    p.add_argument("--sparsity", type=sparsity, metavar="S", help="the share of weights that goes (0.5)")
    p.add_argument("--permute", action="store_const", const="start", help="order the inputs before blocks are formed")
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
