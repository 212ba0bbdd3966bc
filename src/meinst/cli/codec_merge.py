"""``meinst codec merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.codec_options import parse_with_codec_options
from meinst.codecs.options import CodecOptions

EXAMPLES = """
meinst codec merge a.moments b.moments --output all.npz
meinst codec merge a.moments b.moments --output all.npz --n-components 120 --no-whiten
meinst codec merge a.moments b.moments --output ab.moments
"""

# The mask size and the classes are those of the sums; an autoencoder's seed has no effect.
_FIXED = ("mask_size", "per_class", "seed")


@dataclass(frozen=True)
class MergeArguments:
    """Add up sums from `meinst codec fit --moments`, and fit a codec of kind pca or dct on them.

    The file is the same, bit for bit, as that of a single fit on all annotations, for any order of
    the sums. Sums of separate classes give a pca codec with a basis for each class.

    Attributes:
        sums: files of sums (.moments).
        output: file for the codec (.npz), or, if its name ends in .moments, for the merged sums.
    """

    sums: tuple[Path, ...]
    output: Path


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options, codec_options = parse_with_codec_options(
        MergeArguments, arguments, "codec merge", EXAMPLES, ("sums",), skip=_FIXED
    )

    from meinst.cli.output import check_distinct, check_file, print_warnings
    from meinst.codec_tools.fit import fit_from_moments, load_and_merge
    from meinst.codecs import ClassMoments

    check_distinct(options.sums)
    check_file(options.output, options.sums)
    moments = load_and_merge(options.sums)
    if options.output.suffix == ".moments":
        moments.save(options.output)
    else:
        per_class = codec_options["kind"] == "pca" and isinstance(moments, ClassMoments)
        chosen = CodecOptions(**codec_options, mask_size=moments.mask_size, per_class=per_class)
        with print_warnings():
            codec = fit_from_moments(moments, chosen)
        codec.save(options.output)
    print(f"merged {len(options.sums)} files with {moments.count:,} masks: {options.output}")
    return 0
