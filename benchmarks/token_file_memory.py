"""Peak memory of building a token file from 10 MB and from 1 GB of text: it must be the same.

Each size runs in a process of its own: text that is generated on the fly into a file is read, cut, tokenized with a
byte-level BPE of 8,192 tokens and written. Ends with one JSON line.

    python benchmarks/token_file_memory.py [--sizes 10 1000] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEGABYTE = 1_000_000


def write_text(path: Path, size: int) -> None:
    """About `size` bytes of words with the frequencies of a natural language, the same every time."""
    generator = random.Random(0)
    syllables = [c + v for c in ("b", "d", "f", "k", "l", "m", "n", "r", "s", "t", "th", "sh") for v in "aeiouäy"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(50_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    written = 0
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        while written < size:
            chosen = generator.choices(words, weights, k=20_000)
            chosen[::97] = [f"{word}.\n\n" for word in chosen[::97]]
            chosen[::31] = [str(generator.randint(0, 9999)) for _ in chosen[::31]]
            text = " ".join(chosen) + "\n"
            handle.write(text)
            written += len(text.encode())


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the memory of the parent at its fork
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def build(text: Path, tokenizer: Path, folder: Path) -> None:
    """What is measured: one line of JSON with what was made and the peak."""
    from quatrain.data.documents import read_chunks
    from quatrain.data.token_file import build as build_tokens
    from quatrain.tokenizers.tokenizer import Tokenizer

    start = time.perf_counter()
    file = build_tokens(read_chunks(text), Tokenizer.load(tokenizer), folder)
    seconds = time.perf_counter() - start
    size = text.stat().st_size
    print(json.dumps({"bytes": size, "tokens": len(file), "seconds": round(seconds, 2), "peak_bytes": peak_bytes()}))


def measure(folder: Path, megabytes: int) -> dict[str, float]:
    text = folder / f"text-{megabytes}.txt"
    write_text(text, megabytes * MEGABYTE)
    command = [sys.executable, __file__, "--build", str(text), str(folder / "tokenizer"), str(folder / "tokens")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    text.unlink()
    print(
        f"{found['bytes'] / 1e6:8,.0f} MB of text, {found['tokens'] / 1e6:8.1f} M tokens: "
        f"peak {found['peak_bytes'] / 1e6:6.1f} MB, {found['bytes'] / 1e6 / found['seconds']:.1f} MB/s",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1000], help="megabytes of text")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--build", nargs=3, metavar=("TEXT", "TOKENIZER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(*map(Path, arguments.build))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_text(folder / "sample.txt", 2 * MEGABYTE)
        train = (
            "import sys; from quatrain.tokenizers.tokenizer import Tokenizer; "
            "from quatrain.data.documents import read_chunks; "
            "Tokenizer.train((p.text for p in read_chunks(sys.argv[1])), vocab_size=8192).save(sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", train, str(folder / "sample.txt"), str(folder / "tokenizer")], check=True)
        found = {size: measure(folder, size) for size in arguments.sizes}
    peaks = [each["peak_bytes"] for each in found.values()]
    print(json.dumps({"benchmark": "token_file_memory", "runs": list(found.values()), "ratio": peaks[-1] / peaks[0]}))


if __name__ == "__main__":
    main()
