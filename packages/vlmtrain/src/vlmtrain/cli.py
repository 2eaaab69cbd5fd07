"""The command line of vlmtrain. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vlmdata.errors import ConfigError, ToolkitError
from vlmdata.options import add_options, build_section, read_yaml
from vlmtrain.adapter_config import preset_values
from vlmtrain.config import SECTIONS, AdapterConfig, FitConfig, OptimizerConfig
from vlmtrain.launch import describe_bug, in_group, launch, report_failure, watch_parent
from vlmtrain.plan_config import PlanConfig
from vlmtrain.preview_config import PreviewConfig
from vlmtrain.quiet import mark_compiled_graphs, quieten_libraries, yield_cores
from vlmtrain.settings import EvalConfig, ExportConfig, GenerateConfig
from vlmtrain.tiny.options import TinyOptions

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the code that the error, if any, stands for."""
    quieten_libraries()
    yield_cores()
    mark_compiled_graphs()
    try:
        cli.main(args=arguments, prog_name="vlmtrain", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("error: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # whoever read the output has gone; keep the interpreter from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ToolkitError as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        lines = [f"error: {problem}" for problem in problems]
        if not report_failure(error, lines, error.exit_code):
            click.echo("\n".join(lines), err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if not report_failure(error, describe_bug(error), 1):
            raise
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vlmtrain")
def cli() -> None:
    """Fine-tunes, evaluates and exports vision-language models on folders that `vlmdata build` made."""


def _fit_config(config_file: Path | None, options: dict[str, Any]) -> FitConfig:
    values = read_yaml(config_file, SECTIONS) if config_file else {}
    return FitConfig.from_values(values | {name: value for name, value in options.items() if value not in (None, ())})


@cli.command()
@click.argument("config_file", metavar="[CONFIG.yaml]", required=False, type=click.Path(path_type=Path))
@add_options(*SECTIONS)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of --out.")
@click.option("--overwrite", is_flag=True, help="Throw an earlier run in --out away.")
def fit(config_file: Path | None, resume: bool, overwrite: bool, **options: Any) -> None:
    """Train a model on a built folder.

    Options win over CONFIG.yaml, which has the same names. The set is checked before weights are loaded; what was
    chosen is printed. OUT/run.json is written last.
    """
    config = _fit_config(config_file, options)
    if config.run.gpus > 1 and not in_group():
        sys.exit(_fit_in_group(config, resume=resume, overwrite=overwrite))
    watch_parent()
    from vlmtrain.training import fit as run_fit

    run_fit(config, resume=resume, overwrite=overwrite)


def _fit_in_group(config: FitConfig, *, resume: bool, overwrite: bool) -> int:
    """Starts the processes of a run on several GPUs; each reads the settings that were put together here."""
    import yaml

    with tempfile.TemporaryDirectory(prefix="vlmtrain-") as folder:
        settings = Path(folder) / "fit.yaml"
        settings.write_text(yaml.safe_dump(config.flat()), encoding="utf-8")
        command = [sys.executable, "-m", "vlmtrain", "fit", str(settings)]
        command += ["--resume"] * resume + ["--overwrite"] * overwrite
        return launch(config.run.gpus, command)


@cli.command()
@click.argument("config_file", metavar="[CONFIG.yaml]", required=False, type=click.Path(path_type=Path))
@add_options(*SECTIONS, skip=("out",))
@click.option(
    "--align",
    metavar="ROWS",
    type=click.IntRange(min=2),
    help="Also load the weights, and compare the loss of this many rows with their own and with other rows' pictures.",
)
def check(config_file: Path | None, align: int | None, **options: Any) -> None:
    """Check a built folder against a model, as `fit` does before it loads weights.

    Without --align no weights are loaded, so that the longest batch is not tried for memory; `fit` tries it before
    its first step, and `plan` foresees it.
    """
    config = _fit_config(config_file, options | {"out": Path(os.devnull)})
    from vlmtrain.preparation import prepare

    prepared = prepare(config)
    if align is not None:
        from vlmtrain.alignment import measure_alignment
        from vlmtrain.inference import load_source

        model = load_source(
            prepared.source,
            prepared.backend,
            load_in=config.model.load_in,
            trust_remote_code=config.model.trust_remote_code,
        )
        found = measure_alignment(prepared.train, model, align, batch_size=config.optimizer.batch_size)
        click.echo(found.describe())
    click.echo("checked: this set can be trained on")


@cli.command()
@add_options(PreviewConfig)
def preview(**options: Any) -> None:
    """Show rows as the model is given them, as one HTML file: the rendered text, what carries loss, image tokens."""
    config = _build(PreviewConfig, options)
    from vlmtrain.preview import write_preview

    click.echo(write_preview(config))


@cli.command()
@add_options(PlanConfig, AdapterConfig, OptimizerConfig)
def plan(**options: Any) -> None:
    """Work out memory, steps and time of a run from the model's config; no weights are read.

    Shows 16-, 8- and 4-bit weights with and without checkpointing, and what to change when nothing fits.
    """
    sections = (PlanConfig, AdapterConfig, OptimizerConfig)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    values = {**dict.fromkeys(options), **preset_values(options["preset"]), **given}
    planned, adapter, optimizer = _build_all(sections, values)
    from vlmtrain.plan import make_plan
    from vlmtrain.plan_text import describe_plan

    click.echo(describe_plan(make_plan(planned, adapter, optimizer)))


@cli.command("eval")
@click.argument("model_or_run")
@add_options(EvalConfig)
def evaluate(model_or_run: str, **options: Any) -> None:
    """Answer held-out rows and score the answers.

    Beside the score stands what the most frequent training answer scores; --swap-images, --compare and --precision
    add more. The answers go to eval-SPLIT.jsonl, the scores to eval-SPLIT.json and, for the eye, to eval-SPLIT.html.
    """
    config = _build(EvalConfig, options)
    if config.rank:
        from vlmtrain.ranking import describe_ranking, rank_rows

        click.echo(describe_ranking(rank_rows(model_or_run, config), config.top))
        return
    from vlmtrain.evaluation import evaluate as run_evaluate
    from vlmtrain.score_table import describe_result

    click.echo(describe_result(run_evaluate(model_or_run, config)))


@cli.command()
@click.argument("model_or_run")
@add_options(GenerateConfig)
def generate(model_or_run: str, **options: Any) -> None:
    """Answer a prompt about pictures, or a JSON-lines file of prompts."""
    config = _build(GenerateConfig, options)
    from vlmtrain.answers import answer_all

    for line in answer_all(model_or_run, config):
        click.echo(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False))


@cli.command()
@click.argument("model_or_run")
@add_options(ExportConfig)
def export(model_or_run: str, **options: Any) -> None:
    """Write the trained model for others to load, and check that it is the trained one."""
    config = _build(ExportConfig, options)
    from vlmtrain.exports import describe_export
    from vlmtrain.exports import export as run_export

    report = run_export(model_or_run, config)
    click.echo(describe_export(config.out, report))


@cli.command()
@click.argument("families", metavar="[FAMILY]…", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def models(families: tuple[str, ...], as_json: bool) -> None:
    """List the model families: class, markers, what happens to pictures, known models with their memory."""
    from vlmdata.families import FAMILIES, get_family
    from vlmtrain.model_table import describe_families, family_facts

    if as_json:
        chosen = [get_family(name) for name in families or FAMILIES]
        click.echo(json.dumps([family_facts(family) for family in chosen], indent=1, ensure_ascii=False))
    else:
        click.echo(describe_families(families))


@cli.command()
@click.argument("family")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@add_options(TinyOptions)
def tiny(family: str, folder: Path, **sizes: int | None) -> None:
    """Make a tiny randomly initialised model of a family, offline, for trying a pipeline out.

    It has the family's real architecture, processor and chat template; it knows nothing.
    """
    from vlmtrain.tiny import make_tiny

    make_tiny(family, folder, **{name: value for name, value in sizes.items() if value is not None})
    click.echo(f"{folder}: a tiny {family} model")


def _build_all(sections: Sequence[type[Any]], options: dict[str, Any]) -> list[Any]:
    problems: list[str] = []
    for section in sections:
        fields = [field for field in dataclasses.fields(section) if field.default is dataclasses.MISSING]
        problems += [f"--{field.name.replace('_', '-')} is missing" for field in fields if options[field.name] is None]
    built = [] if problems else [build_section(section, options, problems) for section in sections]
    if problems:
        raise ConfigError(problems)
    return built


def _build(section: type[Any], options: dict[str, Any]) -> Any:
    return _build_all([section], options)[0]
