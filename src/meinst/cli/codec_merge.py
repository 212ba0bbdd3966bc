"""``meinst codec merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meinst.cli.arguments import parse_arguments

EXAMPLES = """
meinst codec merge a.moments b.moments --output all.npz
meinst codec merge a.moments b.moments --output all.npz --components 120 --no-whiten
meinst codec merge a.moments b.moments --output ab.moments
"""


@dataclass(frozen=True)
class MergeArguments:
    """Add up sums that `meinst codec fit --moments` counted apart, and fit a codec on them.

    Gives the same file, bit for bit, as one fit on all annotations, in whatever order the sums
    come. Sums of categories kept apart give a basis for each category (pca).

    Attributes:
        sums: files of sums (.moments).
        output: file for the codec; or, where its name ends in .moments, for the merged sums.
        kind: pca or dct.
        components: numbers for each mask, K.
        shrinkage: weight of the average mask in a category's basis, in masks.
        sigmoid: encode logits; else zeros and ones.
        whiten: codes of unit variance, as a detector's training wants them.
    """

    sums: tuple[Path, ...]
    output: Path
    kind: Literal["pca", "dct"] = "pca"
    components: int = 60
    shrinkage: float = 3000.0
    sigmoid: bool = True
    whiten: bool = True


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(MergeArguments, arguments, "codec merge", EXAMPLES, positional="sums")

    from meinst.cli.output import check_each_once, check_file, told_warnings
    from meinst.codecs import ClassMoments, load_moments
    from meinst.engine.codec_fit import fitted_codec
    from meinst.engine.config import CodecOptions

    check_each_once(options.sums)
    check_file(options.output, options.sums)
    moments = load_moments(options.sums[0])
    for path in options.sums[1:]:
        other = load_moments(path)
        if type(other) is not type(moments):
            raise ValueError(
                f"{path} holds {other.kind}, {options.sums[0]} holds {moments.kind}: count all "
                "with --per-class, or all without."
            )
        try:
            moments.merge(other)  # type: ignore[arg-type]  # of one type, as seen above
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if options.output.suffix == ".moments":
        moments.save(options.output)
    else:
        wanted = CodecOptions(
            kind=options.kind,
            n_components=options.components,
            mask_size=moments.mask_size,
            sigmoid=options.sigmoid,
            whiten=options.whiten,
            per_class=options.kind == "pca" and isinstance(moments, ClassMoments),
            shrinkage=options.shrinkage,
        )
        with told_warnings():
            codec = fitted_codec(wanted, moments)
        codec.save(options.output)
    print(f"{len(options.sums)} files, {moments.count:,} masks: {options.output}")
    return 0
