"""Mutants: faults that are put into the kernels and their passes one at a time, to see which test finds each.

usage: python -m tests.mutants [WORD ...]      (`make mutants`; words choose among the names)

Works in build/mutants, on a copy of the sources. All faults of C++ sources are compiled into one engine, each behind
its number in TRIMTAB_MUTANT (mutant schemata, Untch, Offutt and Harrold 1993); a fault of Python is written into the
copy for as long as its tests run. The exit status is 1 where a mutant survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
ROOMS = ("kernels", "spaces", "evaluators", "agents", "search", "configs")
COPIED = (*ROOMS, "src", "tests", "CMakeLists.txt", "pyproject.toml")

#: So many seconds without a failure are one: a mutant may loop for ever.
PATIENCE = 1200

HEADER = """#pragma once
#include <cstdlib>
namespace {
const int kMutant = std::getenv("TRIMTAB_MUTANT") != nullptr ? std::atoi(std::getenv("TRIMTAB_MUTANT")) : -1;
}
"""


@dataclass(frozen=True)
class Mutant:
    """A fault: `after` in the place of `before`, which occurs once in the file. In C++ both are expressions."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]  # files of tests/, those that should find it

    @property
    def native(self) -> bool:
        return self.path.startswith("kernels/native/")


LAYERS = ("kernels/test_integers", "kernels/test_bf16", "kernels/test_narrow", "kernels/test_operators")

MUTANTS = (
    Mutant(
        "the tail of a row is written as a whole vector",
        "kernels/native/elementwise.h",
        "least<size_t>(S::kLanes, width - i)",
        "static_cast<size_t>(S::kLanes)",
        ("kernels/test_operators",),
    ),
    Mutant(
        "integers of few bits saturate at 255",
        "kernels/native/epilogue.h",
        "static_cast<float>(o.top - o.zero)",
        "static_cast<float>(255 - o.zero)",
        ("kernels/test_operators", "kernels/test_integers"),
    ),
    Mutant(
        "no saturation from below in depthwise layers, at avx2 only",
        "kernels/native/isa_avx2.h",
        "_mm256_max_epi16(_mm256_adds_epi16(words, zero), low)",
        "_mm256_adds_epi16(words, zero)",
        ("kernels/test_integers", "kernels/test_depthwise"),
    ),
    Mutant(
        "sums of depthwise layers in 16 bits may be one weight too large, at avx2 only",
        "kernels/native/conv.cpp",
        "32767 / in.top",
        "32767 / in.top + 1",
        ("kernels/test_depthwise",),
    ),
    Mutant(
        "sums of depthwise layers in 16 bits are widened at the end of a row only, at avx2 only",
        "kernels/native/depthwise.h",
        "k % kShortColumns == kShortColumns - 1 || k == KW - 1",
        "k == KW - 1",
        ("kernels/test_depthwise",),
    ),
    Mutant(
        "the first row of the padding below the image is what lies behind the image",
        "kernels/native/depthwise.h",
        "at < g.ih",
        "at <= g.ih",
        ("kernels/test_integers", "kernels/test_depthwise"),
    ),
    Mutant(
        "tiles are padded with 0 in place of the zero point",
        "kernels/native/tiles.h",
        "static_cast<A>(in.zero)",
        "static_cast<A>(0)",
        ("kernels/test_integers",),
    ),
    Mutant(
        "positions of tiles run through the border without its width",
        "kernels/native/tiles.h",
        "through ? static_cast<int>(row / column) : apart",
        "through ? g.ow : apart",
        ("kernels/test_integers",),
    ),
    Mutant(
        "the rest of a row of tiles is stored as if it were pixels",
        "kernels/native/tiles.h",
        "least(run, positions.width - place.x)",
        "run",
        ("kernels/test_integers",),
    ),
    Mutant(
        "the last sixteen positions are not gathered where stored inputs end",
        "kernels/native/tiles.h",
        "rounded_up(count, kTileRows)",
        "count - 1",
        ("kernels/test_integers",),
    ),
    Mutant(
        "gathered pieces lie one element further apart than their weights",
        "kernels/native/conv.cpp",
        "(piece - segment) * g.segment_length",
        "(piece - segment) * (g.segment_length + 1)",
        ("kernels/test_integers",),
    ),
    Mutant(
        "vectors of channels take each other's scales",
        "kernels/native/epilogue.h",
        "to.channel + j * S::kLanes",
        "to.channel + (NV - 1 - j) * S::kLanes",
        ("kernels/test_integers",),
    ),
    Mutant(
        "the last block of channels is missing, at levels of 16 lanes only",
        "kernels/native/gemm.h",
        "p < mine.last",
        "p < mine.last - (S::kLanes == 16 && panels > 1)",
        LAYERS,
    ),
    Mutant(
        "sums in 16 bits are twice as long as fits",
        "kernels/native/conv.cpp",
        "2 * in.top * largest",
        "in.top * largest",
        ("kernels/test_integers",),
    ),
    Mutant(
        "Winograd's sums are not asked whether they fit 32 bits",
        "kernels/native/conv.cpp",
        "largest_sum(s, in, o) >= limit",
        "false",
        ("kernels/test_winograd",),
    ),
    Mutant(
        "Winograd's last column is stored beyond an odd edge",
        "kernels/native/winograd.h",
        "left + kSide <= g.ow",
        "left + kSide <= g.ow + 1",
        ("kernels/test_integers", "kernels/test_winograd"),
    ),
    Mutant(
        "rows below the image are left as they were under tiles of 4x4 outputs",
        "kernels/native/blocks.h",
        "rounded_up(y1 - y0, greatest(g.tile_side, 1))",
        "(y1 - y0)",
        ("kernels/test_winograd",),
    ),
    Mutant(
        "tiles of 4x4 outputs lose the last of their six points",
        "kernels/native/winograd.h",
        "4 * (twice - difference + m[5])",
        "4 * (twice - difference)",
        ("kernels/test_integers", "kernels/test_winograd"),
    ),
    Mutant(
        "the last block of a pruned layer is left out for single vectors of channels",
        "kernels/native/sparse.h",
        "n < count",
        "n < count - (NV == 1)",
        ("kernels/test_sparse",),
    ),
    Mutant(
        "a band forgets the row that it shares with the next one",
        "kernels/native/chain.cpp",
        "rows.first < held.last && rows.first != held.first",
        "rows.first + 1 < held.last && rows.first != held.first",
        ("graph/test_bands",),
    ),
    Mutant(
        "tokens that only fill up a vector take part in attention",
        "kernels/native/attention.h",
        "-__builtin_inff()",
        "0.0f",
        ("kernels/test_operators",),
    ),
    Mutant(
        "halves are rounded up to bf16, not to even",
        "kernels/native/blocks.h",
        "(bits >> 16 & 1)",
        "1",
        ("kernels/test_bf16",),
    ),
    Mutant(
        "sums of looked-up values are spilled too late",
        "kernels/native/lookup.h",
        "unspilled + count > codes.spill",
        "unspilled + count > 2 * codes.spill",
        ("kernels/test_narrow",),
    ),
    Mutant(
        "threads leave out the element between their shares",
        "kernels/native/program.cpp",
        "count * (t.thread + 1) / t.threads",
        "count * (t.thread + 1) / t.threads - (t.thread + 1 < t.threads && count > 1)",
        ("kernels/test_operators",),
    ),
    Mutant(
        "channels behind a range of pixels are written too",
        "kernels/native/channels.h",
        "end - to >= kPicked",
        "end > to",
        ("kernels/test_operators", "kernels/test_memory"),
    ),
    Mutant(
        "channels of zeros are read by weights that are not",
        "src/trimtab/graph/operators/layers.py",
        "weight=padded(node.weight, out, inputs),",
        "weight=padded(node.weight, out, inputs, fill=1),",
        ("graph/test_padding", "kernels/test_widths"),
    ),
    Mutant(
        "tensors of an operator that cannot have more channels are padded",
        "src/trimtab/graph/padding.py",
        "fixed.update((*node.inputs, node.name))",
        "fixed.add(node.name)",
        ("graph/test_padding",),
    ),
    Mutant(
        "a bound below what eight bits hold is left to packing",
        "kernels/native/program.cpp",
        "s.high >= 255 && largest_scale",
        "largest_scale",
        ("kernels/test_integers",),
    ),
    Mutant(
        "the half panel's weights lie where those of one more whole panel would",
        "kernels/native/conv.cpp",
        "half ? vectors : panel * widest",
        "panel * widest",
        ("kernels/test_integers", "kernels/test_operators"),
    ),
    Mutant(
        "of three numbers the first is stored for the third, at avx2 only",
        "kernels/native/isa_avx2.h",
        "_mm_movehl_ps(part, part)",
        "part",
        ("kernels/test_operators",),
    ),
    Mutant(
        "of three integers the second is stored for the third, at avx2 only",
        "kernels/native/isa_avx2.h",
        "bytes >>= 16",
        "bytes >>= 8",
        ("kernels/test_integers", "kernels/test_operators"),
    ),
    Mutant(
        "the last row of an image that is upsampled mixes with the next image",
        "kernels/native/resample.h",
        "row / g.oh * g.ih",
        "row / g.ih * g.ih",
        ("kernels/test_operators",),
    ),
    Mutant(
        "rows above a crop are written",
        "kernels/native/resample.h",
        "greatest(0, -y)",
        "0",
        ("kernels/test_operators",),
    ),
    Mutant(
        "the last pixels of an image count as much as a whole block in its group's mean",
        "kernels/native/normalise.h",
        "least(kMomentPixels, g.pixels - block * kMomentPixels)",
        "kMomentPixels",
        ("kernels/test_operators",),
    ),
    Mutant(
        "four steps are summed in 16 bits where two fit",
        "kernels/native/gemm.h",
        "g.depth < 4",
        "g.depth < 2",
        ("kernels/test_integers",),
    ),
    Mutant(
        "of two steps that are left of a group one is taken",
        "kernels/native/gemm.h",
        "k + 2 <= g.steps",
        "k + 2 < g.steps",
        ("kernels/test_integers",),
    ),
    Mutant(
        "a lane has the words of the first of those beside it",
        "kernels/native/entropy.cpp",
        "words[lane + together]",
        "words[lane]",
        ("kernels/test_entropy",),
    ),
    Mutant(
        "an activation joins a layer whose output is stored by itself",
        "src/trimtab/graph/passes.py",
        " and node.name not in checked.quant",
        "",
        ("graph/test_passes", "kernels/test_session"),
    ),
    Mutant(
        "a second residual takes the place of the first",
        "src/trimtab/graph/passes.py",
        " and len(found[name].node.inputs) == 1",
        "",
        ("graph/test_passes", "kernels/test_session"),
    ),
    Mutant(
        "a second activation takes the place of the first",
        "src/trimtab/graph/passes.py",
        ' and host.node.attrs.get("activation") == "none"',
        "",
        ("graph/test_passes", "kernels/test_session"),
    ),
    Mutant(
        "what moves values takes one integer storage for another",
        "src/trimtab/graph/passes.py",
        "if graph.quant.get(source) != stored:",
        "if (graph.quant.get(source) is None) != (stored is None):",
        ("graph/test_passes", "kernels/test_operators"),
    ),
    Mutant(
        "widened weights take each other's scales",
        "src/trimtab/graph/passes.py",
        "scale.reshape(-1,",
        "scale[::-1].reshape(-1,",
        ("graph/test_passes", "kernels/test_operators"),
    ),
    Mutant(
        "features follow pixel by pixel, not channel by channel",
        "src/trimtab/graph/operators/moving.py",
        "np.repeat(inputs[0], channels // len(inputs[0]))",
        "np.tile(inputs[0], channels // len(inputs[0]))",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "pixels that become one channel are not pruned together",
        "src/trimtab/graph/operators/moving.py",
        "yield from ((first, other) for other in others)",
        "yield from ()",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "a channel map counts the channels that are left from behind",
        "src/trimtab/graph/operators/moving.py",
        "{int(channel): i for",
        "{int(channel): len(source) - 1 - i for",
        ("spaces/test_prune", "spaces/test_candidate"),
    ),
    Mutant(
        "the groups of a convolution keep different inputs",
        "src/trimtab/graph/operators/layers.py",
        "for channels in (inputs[0], output):",
        "for channels in (output,):",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "a grouped convolution multiplies as much as a dense one",
        "src/trimtab/graph/operators/layers.py",
        ' // int(attrs["groups"])',
        "",
        ("evaluators/test_cost", "evaluators/test_plan"),
    ),
    Mutant(
        "the heads of the values keep different features",
        "src/trimtab/graph/operators/tokens.py",
        "for channels in (query, value):",
        "for channels in (query,):",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "channels go from under a norm over several",
        "src/trimtab/graph/operators/pooling.py",
        'return bool(node.attrs["groups"] != len(node.weights["weight"]))',
        "return False",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "a channel of a sigmoid that no product reads is pruned as if it were zero",
        "src/trimtab/graph/operators/elementwise.py",
        'return constant and not all(reader.kind == "mul" for reader in readers)',
        "return False",
        ("spaces/test_groups", "spaces/test_prune", "spaces/test_space"),
    ),
    Mutant(
        "what bilinear upsampling mixes is taken for integers that are handed on",
        "src/trimtab/graph/operators/pooling.py",
        'attrs.get("mode", "nearest") == "nearest"',
        "True",
        ("kernels/test_operators", "evaluators/test_lowering"),
    ),
    Mutant(
        "a step writes where it still reads",
        "kernels/memory.py",
        "life.first <= o.last",
        "life.first < o.last",
        ("kernels/test_memory", "kernels/test_integers"),
    ),
    Mutant(
        "the output is not kept to the end",
        "kernels/memory.py",
        "    last[graph.output] = len(steps)\n",
        "",
        ("kernels/test_memory",),
    ),
    Mutant(
        "nothing is left behind a tensor for kernels that read past it",
        "kernels/memory.py",
        "_SLACK = 256",
        "_SLACK = 0",
        ("kernels/test_memory",),
    ),
    Mutant(
        "a batch has the memory of one image",
        "kernels/memory.py",
        "prod(shape) * batch *",
        "prod(shape) *",
        ("kernels/test_memory", "kernels/test_integers"),
    ),
    Mutant(
        "the network's output disappears in a chain",
        "src/trimtab/graph/bands.py",
        "    uses[output] += 1\n",
        "",
        ("graph/test_bands",),
    ),
    Mutant(
        "a layer joins the one that gives its residual",
        "src/trimtab/graph/bands.py",
        "link.reads[0] == before.tensor",
        "before.tensor in link.reads",
        ("graph/test_bands",),
    ),
    Mutant(
        "a chain begins at tensors that are one byte too small",
        "src/trimtab/graph/bands.py",
        "before.size >= CHAINED_BYTES",
        "before.size >= CHAINED_BYTES - 1",
        ("graph/test_bands",),
    ),
    Mutant(
        "only the first million of weights is asked for its values",
        "kernels/packing.py",
        "range(0, len(flat), _CHUNK)",
        "range(0, min(len(flat), _CHUNK), _CHUNK)",
        ("kernels/test_packing", "kernels/test_artefact"),
    ),
    Mutant(
        "one bit too many may be missing from bf16 numbers",
        "kernels/packing.py",
        "& 0xFFFF\n        return",
        "& 0x7FFF\n        return",
        ("kernels/test_packing", "kernels/test_artefact"),
    ),
    Mutant(
        "unsigned integers are coded as signed ones",
        "kernels/packing.py",
        "0x80 if array.dtype == np.int8 else 0",
        "0x80",
        ("kernels/test_packing",),
    ),
    Mutant(
        "a table of twice the size that its values need",
        "kernels/packing.py",
        "int(len(values) - 1).bit_length()",
        "int(len(values)).bit_length()",
        ("kernels/test_packing", "kernels/test_artefact"),
    ),
)


def prepare() -> Path:
    """Copy the sources, build the engine with its mutants, and return the interpreter that runs them."""
    COPY.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, COPY / name)
            continue
        if name != "kernels":  # what is compiled there stays, where it has not changed
            shutil.rmtree(COPY / name, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, COPY / name, True, ignored, refresh, dirs_exist_ok=True)
    (COPY / "mutant.h").write_text(HEADER)
    build()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", COPY / "venv"], check=True)
    packages = next((COPY / "venv").glob("lib*/python*/site-packages"))
    seen = [str(COPY / "src"), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages / "packages.pth").write_text("\n".join(seen))
    return COPY / "venv" / "bin" / "python"


def refresh(source: str, target: str) -> None:
    """Copy a file, with all mutants that it has where it is one of C++, if that is not what is there."""
    text = Path(source).read_bytes()
    for number, mutant in enumerate(MUTANTS):
        if mutant.native and Path(source) == ROOT / mutant.path:
            both = f"(kMutant == {number} ? ({mutant.after}) : ({mutant.before}))"
            text = changed(text.decode(), mutant, both).encode()
    if not Path(target).exists() or Path(target).read_bytes() != text:
        Path(target).write_bytes(text)


def changed(text: str, mutant: Mutant, after: str) -> str:
    if text.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.path} holds {mutant.before!r} {text.count(mutant.before)} times, not once")
    return text.replace(mutant.before, after)


def build() -> None:
    import nanobind

    folder = COPY / "build"
    options = {
        "CMAKE_CXX_FLAGS": f"-w -include {COPY / 'mutant.h'}",
        "CMAKE_CXX_FLAGS_RELEASE": "-O1",  # quick to compile
        "Python_EXECUTABLE": sys.executable,
        "nanobind_DIR": nanobind.cmake_dir(),
    }
    cmake = [sys.executable, "-m", "cmake"]
    settings = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run([*cmake, "-S", COPY, "-B", folder, *settings], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*cmake, "--build", folder, "--parallel", str(os.cpu_count())], check=True, stdout=subprocess.DEVNULL
    )
    shutil.copy(next((folder / "kernels").glob("_native*")), COPY / "kernels")


def killer(python: Path, tests: tuple[str, ...], number: int = -1) -> str | None:
    """Run tests, with the mutant of this number if there is one in C++, and return the first that fails."""
    files = [f"tests/{name}.py" for name in tests]
    options = ["-x", "-v", "--tb=no", "--hypothesis-seed=0", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "TRIMTAB_MUTANT": str(number), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            [python, "-m", "pytest", *options, *files],
            cwd=COPY, env=environment, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as ended:
        output = ended.stdout.decode() if isinstance(ended.stdout, bytes) else ended.stdout or ""
        return f"{last_test(output)} (did not end)"
    if ran.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", ran.stdout, re.MULTILINE)
    return failed[1] if failed else f"{last_test(ran.stdout)} (crashed)"


def last_test(output: str) -> str:
    started = re.findall(r"^(tests/\S+::.*?)(?: [A-Z]+ +\[.*)?$", output, re.MULTILINE)
    return started[-1].rstrip() if started else "?"


def chosen(words: list[str]) -> list[tuple[int, Mutant]]:
    return [(i, mutant) for i, mutant in enumerate(MUTANTS) if not words or any(word in mutant.name for word in words)]


def killed_in_python(python: Path, mutant: Mutant) -> str | None:
    path = COPY / mutant.path
    text = path.read_text()
    path.write_text(changed(text, mutant, mutant.after))
    try:
        return killer(python, mutant.tests)
    finally:
        path.write_text(text)


def results(python: Path, mutants: list[tuple[int, Mutant]]) -> Iterator[tuple[Mutant, str | None]]:
    """Each mutant with the test that kills it. Those of one engine run side by side."""
    native = [(number, mutant) for number, mutant in mutants if mutant.native]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(
            [mutant for _, mutant in native],
            pool.map(lambda one: killer(python, one[1].tests, one[0]), native),
            strict=True,
        )
    for _, mutant in mutants:
        if not mutant.native:
            yield mutant, killed_in_python(python, mutant)


def main(words: list[str]) -> int:
    mutants = chosen(words)
    python = prepare()
    failing = killer(python, tuple(dict.fromkeys(test for _, mutant in mutants for test in mutant.tests)))
    if failing is not None:
        print(f"without a mutant {failing} fails: nothing to be learned before it passes")
        return 1
    survivors = 0
    print("| mutant | in | killed by |\n| --- | --- | --- |")
    for mutant, found in results(python, mutants):
        survivors += found is None
        result = "**nothing**" if found is None else found.removeprefix("tests/")
        print(f"| {mutant.name} | {mutant.path} | {result} |", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
