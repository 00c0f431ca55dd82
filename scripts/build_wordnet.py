"""Make sae/corpora/wordnet_nouns.tsv.xz from the Debian package wordnet-base, WordNet 3.0 (`apt-get download` it, `dpkg-deb -x` it).

    python scripts/build_wordnet.py FOLDER/usr/share/wordnet

One line per noun synset, in the order of the ids: id (8 digits, the synset's offset in WordNet 3.0), its lemmas, the ids of its hypernyms,
and the ids it is an instance of; commas within a field, tabs between them, underscores for the spaces of a lemma. The same file gives the
same bytes.
"""

import argparse
import lzma
from pathlib import Path

TARGET = Path(__file__).parent.parent / "sae" / "corpora" / "wordnet_nouns.tsv.xz"
HEADER = "synset_id\tlemmas\thypernyms\tinstances\n"


def synset(line: str) -> tuple[str, list[str], list[str], list[str]]:
    """(id, lemmas, hypernyms, instances) of one line of data.noun; the format is that of WordNet's manual page wndb(5)."""
    fields = line.split(" | ", 1)[0].split()
    n_lemmas = int(fields[3], 16)
    lemmas = fields[4 : 4 + 2 * n_lemmas : 2]
    pointers = fields[5 + 2 * n_lemmas :]
    kinds = [(pointers[i], pointers[i + 1]) for i in range(0, 4 * int(fields[4 + 2 * n_lemmas]), 4)]
    return fields[0], lemmas, [target for kind, target in kinds if kind == "@"], [target for kind, target in kinds if kind == "@i"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that holds data.noun")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    lines = (arguments.folder / "data.noun").read_text(encoding="ascii").splitlines()
    rows = sorted(synset(line) for line in lines if not line.startswith("  "))  # the licence at the top is indented
    assert all("," not in lemma and "\t" not in lemma for _, lemmas, _, _ in rows for lemma in lemmas)
    text = HEADER + "".join(f"{name}\t{','.join(lemmas)}\t{','.join(up)}\t{','.join(of)}\n" for name, lemmas, up, of in rows)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0, "dict_size": 16 << 20}]
    data = lzma.compress(text.encode("ascii"), format=lzma.FORMAT_XZ, check=lzma.CHECK_SHA256, filters=filters)
    arguments.target.write_bytes(data)
    edges, instances = sum(len(row[2]) for row in rows), sum(len(row[3]) for row in rows)
    print(f"{arguments.target}: {len(rows):,} synsets, {edges:,} hypernyms, {instances:,} instances, {len(data):,} bytes")


if __name__ == "__main__":
    main()
