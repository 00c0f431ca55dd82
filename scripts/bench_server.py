"""The server under load: clients that ask without pause, and what they wait for.

    python scripts/bench_server.py                        60 s, 8 clients, an index built for it
    python scripts/bench_server.py --index runs/a/index   an index of yours
    python scripts/bench_server.py --quick --json out.json

`sae serve` runs as a process of its own. Each client keeps one connection and asks again as soon as it has the answer (a closed loop), so
with n clients one waits for the n - 1 before it. The parts, each a seventh of the time, after
one that warms up with pages and one that settles with the mixture:

    paced     feature pages at the pace of people: every client opens one each 250 ms
    page      feature pages without pause, none of which was asked for before
    again     feature pages without pause that were asked for in the part before, which the server has kept
    card      cards of the API (JSON), none asked for before
    mixture   tables, searches, passages, neighbours, driving tokens

Printed are the 50th and 95th percentile, the server's processor time for a request (`work`: what the percentiles are made of on a machine
that does nothing else), requests a second, lost requests (anything but 200 with a body), and the server's own memory
(anonymous, without the mapped files) before and after each part; the answers it keeps are at most 16 MB of it.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

N_TOKENS, N_DRAWN, KEPT = 10**6, 20_000, 200
PACE = 0.25
"""Seconds between the pages that a person opens."""
BAR_MS = 20.0


class Server:
    """`sae serve` as a process."""

    def __init__(self, index: Path) -> None:
        command = [sys.executable, "-m", "sae.cli", "serve", f"bench={index}", "--port", "0", "--no-token"]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"http://([0-9.]+):(\d+)/", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(said))
        self.reader = threading.Thread(target=self.process.stdout.read, daemon=True)
        self.reader.start()
        with closing(self.connection()) as connection:
            self.get(connection, "/healthz")
        self.seconds = time.perf_counter() - began

    def connection(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    @staticmethod
    def get(connection: http.client.HTTPConnection, path: str) -> bytes | None:
        """The body, None for a lost request."""
        try:
            connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        return body if answer.status == 200 and body else None

    def own_mb(self) -> float:
        """Anonymous memory of the process, in MB: without the mapped files of the index."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def processor_seconds(self) -> float:
        """Processor time that the process has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.reader.join(20)
        self.process.stdout.close()


def phase(server: Server, paths: Iterator[str], *, seconds: float, clients: int, pace: float = 0.0) -> dict[str, float]:
    """Percentiles (ms), rate and lost requests of so many clients that take their addresses from `paths`."""
    waits: list[list[float]] = [[] for _ in range(clients)]
    lost, taking = [0] * clients, threading.Lock()
    stop, worked = time.perf_counter() + seconds, server.processor_seconds()

    def client(number: int) -> None:
        time.sleep(pace * number / clients)
        with closing(server.connection()) as connection:
            while (began := time.perf_counter()) < stop:
                with taking:
                    path = next(paths)
                asked = time.perf_counter()
                body = server.get(connection, path)
                waits[number].append((time.perf_counter() - asked) * 1000)
                lost[number] += body is None
                time.sleep(max(0.0, pace - (time.perf_counter() - began)))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = np.concatenate([np.array(w) for w in waits])
    p50, p95, worst = np.percentile(found, [50, 95, 100]).tolist()
    worked = (server.processor_seconds() - worked) * 1000 / len(found)
    return {
        "n": len(found),
        "work_ms": worked,
        "lost": sum(lost),
        "p50_ms": p50,
        "p95_ms": p95,
        "max_ms": worst,
        "per_second": len(found) / seconds,
    }


def built_index(folder: Path, *, scale: float) -> Path:
    """The index of the index benchmark, with `scale` of its tokens."""
    from bench_index import benchmark_index

    return benchmark_index(folder, n_tokens=int(N_TOKENS * scale))


def measure(index: Path, *, seconds: float, clients: int) -> list[dict[str, object]]:
    """All parts; rows of name, value, unit."""
    server = Server(index)
    try:
        with closing(server.connection()) as connection:
            alive = _alive(connection)
        fresh, asked = itertools.cycle(alive), []
        memory, found = [], {}

        def pages() -> Iterator[str]:
            for latent in fresh:
                asked.append(latent)
                yield f"/s/bench/f/{latent}"

        def again() -> Iterator[str]:
            for latent in itertools.cycle(asked[-KEPT:]):
                yield f"/s/bench/f/{latent}"

        parts = {
            "warm": pages(),
            "settle": mixture(alive),
            "paced": pages(),
            "page": pages(),
            "again": again(),
            "card": (f"/api/v1/sources/bench/features/{latent}" for latent in fresh),
            "mixture": mixture(alive),
        }
        for name, paths in parts.items():
            found[name] = phase(server, paths, seconds=seconds / 7, clients=clients, pace=PACE if name == "paced" else 0.0)
            memory.append(server.own_mb())
    finally:
        server.stop()
    return _rows(server.seconds, found, memory)


def mixture(alive: list[int]) -> Iterator[str]:
    """What else a person or a program asks for."""
    draw, root = random.Random(0), "/api/v1/sources/bench"
    while True:
        latent = draw.choice(alive)
        yield f"{root}/features?sort=max&order=desc&min_density={draw.random() / 1e4:.8f}"
        yield f"{root}/features/{latent}/examples?group=interval"
        yield f"{root}/features/{latent}/neighbours?by=correlation"
        yield f"{root}/features/{latent}/tokens"
        yield f"{root}/search?q={draw.randrange(10**4)}&limit=20"


def _alive(connection: http.client.HTTPConnection) -> list[int]:
    """Live features in random order, at most `N_DRAWN`."""
    found, cursor = [], ""
    while len(found) < N_DRAWN and cursor is not None:
        connection.request("GET", f"/api/v1/sources/bench/features?alive=true&limit=200{cursor and '&cursor=' + cursor}")
        page = json.loads(connection.getresponse().read())
        found += [row["index"] for row in page["items"]]
        cursor = page["next_cursor"]
    random.Random(0).shuffle(found)
    return found


def _rows(start: float, found: dict[str, dict[str, float]], memory: list[float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"name": "start", "value": round(start, 3), "unit": "s"}]
    kinds = (
        ("p50_ms", "ms"),
        ("p95_ms", "ms"),
        ("max_ms", "ms"),
        ("work_ms", "ms"),
        ("per_second", "1/s"),
        ("n", "requests"),
        ("lost", "requests"),
    )
    for (name, numbers), megabytes in zip(found.items(), memory, strict=True):
        rows += [{"name": f"{name}.{key.removesuffix('_ms')}", "value": round(numbers[key], 2), "unit": unit} for key, unit in kinds]
        rows.append({"name": f"{name}.memory", "value": round(megabytes, 1), "unit": "MB"})
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="folder of an index (default: one is built)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="6 s, and a built index of a tenth")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seconds = 6.0 if given.quick else given.seconds
    with tempfile.TemporaryDirectory() as folder:
        index = given.index or built_index(Path(folder) / "index", scale=0.1 if given.quick else 1.0)
        rows = measure(index, seconds=seconds, clients=given.clients)
    for row in rows:
        print(f"{row['name']:<22} {row['value']:>12,} {row['unit']}")
    lost = sum(row["value"] for row in rows if str(row["name"]).endswith(".lost"))  # type: ignore[misc]
    p95 = {row["name"]: row["value"] for row in rows if str(row["name"]).endswith(".p95")}
    print(f"lost {lost}; feature page p95 at {given.clients} clients, bar {BAR_MS:g} ms:")
    print(f"{p95['paced.p95']} ms at the pace of people, {p95['page.p95']} ms without pause, {p95['again.p95']} ms when asked for before")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
