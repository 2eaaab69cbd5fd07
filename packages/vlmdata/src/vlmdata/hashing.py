"""`vlmdata hash`: the hashes of a set's pictures, to be given away in place of the pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vlmdata.build_config import BuildConfig
from vlmdata.decontamination import (
    EvaluationSet,
    differing_options,
    open_evaluation_sets,
    pixel_options,
    prepare_evaluation,
    write_hash_list,
)
from vlmdata.disk import explain_disk_errors
from vlmdata.errors import ConfigError, ResourceError
from vlmdata.pipeline import list_versions
from vlmdata.stage import PartitionSummary

__all__ = ["hash_images"]


def hash_images(
    config: BuildConfig,
    *,
    thumbnails: bool,
    on_partition: Callable[[PartitionSummary], None],
    on_note: Callable[[str], None],
) -> int:
    """Write the hashes of all pictures of the inputs to the file `config.out`, and return how many there are.

    Args:
        config: inputs, columns of images, and how images are prepared.
        thumbnails: whether to write the small copies too, by which near-duplicates are looked at twice.
        on_partition: called with each partition as it is done, in any order.
        on_note: called with a line on each input.

    Raises:
        ConfigError: a list of hashes, or a folder that was built under other image options.
        ResourceError: the file cannot be written.
        ToolkitError: as a build would.
    """
    if not config.out.parent.is_dir():
        raise ResourceError(f"{config.out}: cannot be written: there is no folder {str(config.out.parent)!r}")
    with explain_disk_errors(config.out):
        sets = _open_sets(config)
        with tempfile.TemporaryDirectory(prefix="vlmdata-hash-") as name:
            evaluation = prepare_evaluation(
                sets,
                config,
                Path(name),
                image_root=config.input.image_root,
                on_partition=on_partition,
                on_note=on_note,
            )
            options = pixel_options(config.images)
            return write_hash_list(config.out, evaluation.parts, options, list_versions(), thumbnails=thumbnails)


def _open_sets(config: BuildConfig) -> list[EvaluationSet]:
    sets = open_evaluation_sets(config.inputs, config.columns.image, config.input)
    problems = [f"{each.path}: is a list of hashes already" for each in sets if each.hash_list is not None]
    for each in sets:
        if each.folder is not None and (other := differing_options(each.folder.manifest.config, config.images)):
            problems.append(f"{each.path}: was built under other image options, which its hashes go by: give {other}")
    if problems:
        raise ConfigError(problems)
    return sets
