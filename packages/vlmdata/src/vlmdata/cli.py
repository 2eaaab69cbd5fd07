"""The command line: options become a config, errors become one line and an exit code.

Only click and the config are imported here; what does the work is imported by the command that needs it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlmdata.build_config import NOT_FOR_HASHES, SECTIONS, BuildConfig, PlaceConfig
from vlmdata.errors import ConfigError, ToolkitError
from vlmdata.locations import locator
from vlmdata.options import add_options, read_yaml
from vlmdata.worker_server import start_worker_server

if TYPE_CHECKING:
    from vlmdata.build import BuildReport
    from vlmdata.manifest import Counts

__all__ = ["main"]

_CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file with any of these options (max_side: 800); what is given on the command line wins.",
)
_FOLDER = click.argument("folder")


class _TerminatedError(BaseException):
    """SIGTERM came."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlmdata")
def cli() -> None:
    """Build validated, deduplicated Arrow shards for vision-language fine-tuning from raw image and text sets."""


@cli.command()
@click.argument("inputs", nargs=-1)
@add_options(PlaceConfig, *SECTIONS, skip=["inputs"])
@_CONFIG_OPTION
def build(inputs: tuple[str, ...], config_file: Path | None, **options: Any) -> None:
    """Build a folder of shards from INPUTS: JSON, CSV, Parquet or Arrow files, image folders, Hugging Face sets."""
    config = _read_config(inputs, config_file, options)
    if config.output.engine == "local" and config.output.workers != 0:
        # both processes have much to import: side by side they are done in half the time
        start_worker_server()
    from vlmdata.build import build_folder

    with _progress() as advance:
        report = build_folder(config, on_partition=lambda done: advance(done.read), on_note=click.echo)
    _print_report(report)


@cli.command()
@click.argument("inputs", nargs=-1, required=True)
@add_options(*SECTIONS, skip=["overwrite", "shard_size"])
@_CONFIG_OPTION
@click.option("--rejected", type=click.Path(path_type=Path, dir_okay=False), help="Write the rejected rows here.")
def check(inputs: tuple[str, ...], config_file: Path | None, rejected: Path | None, **options: Any) -> None:
    """Check raw INPUTS as a build would, without building; or a built folder, to the last image."""
    from vlmdata.check import check_folder, check_inputs
    from vlmdata.manifest import is_built

    if len(inputs) == 1 and is_built(inputs[0]):
        _refuse_options(inputs[0], {**options, "config": config_file, "rejected": rejected})
        with _progress() as advance:
            click.echo(check_folder(inputs[0], on_rows=advance))
        return
    config = _read_config(inputs, config_file, {**options, "out": Path(os.devnull)})
    with _progress() as advance:
        counts = check_inputs(
            config, rejected=rejected, on_partition=lambda done: advance(done.read), on_note=click.echo
        )
    _print_counts(counts, rejected)


@cli.command("hash")
@click.argument("inputs", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Parquet file to write.")
@click.option(
    "--thumbnails",
    is_flag=True,
    help="Add the copies of 64x64 px by which near-duplicates are looked at twice. A list without them shows nothing "
    "of its pictures, and finds near-duplicates up to 20 of 256 bits only.",
)
@add_options(*SECTIONS, skip=NOT_FOR_HASHES)
@_CONFIG_OPTION
def hash_(inputs: tuple[str, ...], config_file: Path | None, out: Path, thumbnails: bool, **options: Any) -> None:
    """Write the hashes of all images of INPUTS, as build --against takes them in place of the images."""
    from vlmdata.hashing import hash_images

    config = _read_config(inputs, config_file, {**options, "out": out})
    with _progress() as advance:
        count = hash_images(
            config, thumbnails=thumbnails, on_partition=lambda done: advance(done.read), on_note=click.echo
        )
    signals = "pixel and perceptual hashes" + (", thumbnails" if thumbnails else "")
    click.echo(f"{out}: {count} image{'s' * (count != 1)}; {signals}; {out.stat().st_size / 1e6:.1f} MB")


@cli.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def stats(folder: str, as_json: bool) -> None:
    """Print the figures of a built FOLDER: rows, rejections, image sizes, turns, texts."""
    import json

    from vlmdata.shards import open_folder
    from vlmdata.stats import compute_stats, format_stats

    figures = compute_stats(open_folder(folder))
    click.echo(json.dumps(figures, indent=1) if as_json else format_stats(figures))


@cli.command()
@_FOLDER
@click.option("--split", default="train", show_default=True, help="Split to show.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(1, 10_000), help="Rows to show.")
@click.option("--seed", type=int, help="Show random rows, drawn with this number, instead of the first ones.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Page to write [default: FOLDER.html].")
def preview(folder: str, split: str, rows: int, seed: int | None, out: Path | None) -> None:
    """Write an HTML page that shows rows of a built FOLDER, images included."""
    from vlmdata.preview import name_page, write_preview

    target = out or name_page(folder)
    shown = write_preview(folder, target, split=split, rows=rows, seed=seed)
    click.echo(f"{target}: {shown} rows of split {split!r}")


def _refuse_options(folder: str, options: dict[str, Any]) -> None:
    """Let nobody believe that options for raw inputs say something about a built folder."""
    given = [f"--{name.rstrip('_').replace('_', '-')}" for name, value in options.items() if value not in (None, ())]
    if given:
        raise ConfigError(
            f"{folder}: is a built folder, whose check takes no options for raw inputs: {', '.join(given)}"
        )


def _read_config(inputs: Sequence[str], config_file: Path | None, options: dict[str, Any]) -> BuildConfig:
    values = read_yaml(config_file, (PlaceConfig, *SECTIONS)) if config_file is not None else {}
    values.update({name: value for name, value in options.items() if value not in (None, ())})
    if inputs:
        values["inputs"] = tuple(inputs)
    return BuildConfig.from_values(values)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A progress bar of rows on stderr: shown after two seconds, and only on a terminal."""
    from tqdm import tqdm

    with tqdm(unit=" rows", delay=2, disable=None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def _print_report(report: BuildReport) -> None:
    counts = report.manifest.counts
    splits = report.manifest.splits
    size = sum(shard.bytes for split in splits.values() for shard in split.shards)
    if report.partitions_reused:
        click.echo(f"{report.partitions_reused} of {report.partitions} partitions were done already")
    _print_counts(counts, f"{locator(report.out)}/rejected.jsonl")
    parts = ", ".join(f"{name} {split.rows}" for name, split in splits.items())
    click.echo(f"{locator(report.out)}: {parts} rows, {size / 1e6:.1f} MB, {report.seconds:.1f} s")
    if report.remark:
        click.echo(report.remark)


def _print_counts(counts: Counts, rejected: str | Path | None) -> None:
    click.echo(f"read {counts.read} = kept {counts.kept} + rejected {counts.read - counts.kept}")
    for reason, count in sorted(counts.rejected.items(), key=lambda item: -item[1]):
        remark = ", now turns of kept rows" if reason == "merged" else ""
        click.echo(f"  {reason:<24} {count}{remark}")
    if counts.rejected and rejected is not None:
        click.echo(f"  each with its reason in {rejected}")


def _on_sigterm(*_: object) -> None:
    raise _TerminatedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; a bug ends it with a traceback."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        cli.main(arguments, prog_name="vlmdata", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except ToolkitError as error:
        for problem in getattr(error, "problems", (str(error),)):
            click.echo(f"error: {problem}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("error: interrupted; the next build goes on from here", err=True)
        return 130
    except _TerminatedError:
        click.echo("error: terminated; the next build goes on from here", err=True)
        return 143
    except BrokenPipeError:
        # whoever read the output has gone; keep the interpreter from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
