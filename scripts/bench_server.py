"""The server under load: clients that ask without pause, and what they wait for.

    python scripts/bench_server.py                        60 s, 8 clients, an index built for it
    python scripts/bench_server.py --index runs/a/index   an index of yours
    python scripts/bench_server.py --quick --json out.json

`sae serve` runs as a process of its own. Each client keeps one connection and asks again as soon as it has the answer (a closed loop), so
with n clients one waits for the n - 1 before it. A quarter of the time goes to feature pages, a quarter to API cards, both of random live
features and never one twice in a row, a quarter to a mixture (table, search, passages, document, map), and a quarter to feature pages at
the pace of people: every client opens a page each 250 ms. Printed are the 50th and 95th percentile, requests a second, lost requests
(anything but 200 with the whole body), and the server's resident memory after warming up and at the end.
"""

import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

N_TOKENS, N_DRAWN = 10**6, 1000
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

    def resident_mb(self) -> float:
        """Memory of the process, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.reader.join(20)
        self.process.stdout.close()


def phase(server: Server, paths: Callable[[random.Random], str], *, seconds: float, clients: int, pace: float = 0.0) -> dict[str, float]:
    """Percentiles (ms), rate and lost requests of so many clients that ask for what `paths` draws."""
    waits: list[list[float]] = [[] for _ in range(clients)]
    lost = [0] * clients
    stop = time.perf_counter() + seconds

    def client(number: int) -> None:
        draw, connection = random.Random(number), server.connection()
        time.sleep(pace * number / clients)
        while (began := time.perf_counter()) < stop:
            body = server.get(connection, paths(draw))
            waits[number].append((time.perf_counter() - began) * 1000)
            lost[number] += body is None
            time.sleep(max(0.0, pace - (time.perf_counter() - began)))
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = np.concatenate([np.array(w) for w in waits])
    p50, p95, worst = np.percentile(found, [50, 95, 100]).tolist()
    return {"n": len(found), "lost": sum(lost), "p50_ms": p50, "p95_ms": p95, "max_ms": worst, "per_second": len(found) / seconds}


def built_index(folder: Path, *, scale: float) -> Path:
    """The index of the index benchmark, with `scale` of its tokens."""
    from scripts.bench_index import benchmark_index

    return benchmark_index(folder, n_tokens=int(N_TOKENS * scale))


def measure(index: Path, *, seconds: float, clients: int) -> list[dict[str, object]]:
    """All phases; rows of name, value, unit."""
    server = Server(index)
    try:
        with closing(server.connection()) as connection:
            alive = _alive(connection)

        def page(draw: random.Random) -> str:
            return f"/s/bench/f/{draw.choice(alive)}"

        def card(draw: random.Random) -> str:
            return f"/api/v1/sources/bench/features/{draw.choice(alive)}"

        def mixture(draw: random.Random) -> str:
            latent, kind = draw.choice(alive), draw.randrange(5)
            root = "/api/v1/sources/bench"
            return (
                f"{root}/features?sort=max&order=desc&limit=50",
                f"{root}/features/{latent}/examples?group=interval",
                f"{root}/features/{latent}/neighbours",
                f"{root}/search?q=w{draw.randrange(500)}&limit=20",
                "/s/bench?sort=density&order=desc" if draw.random() < 0.5 else f"{root}/features/{latent}/tokens",
            )[kind]

        phase(server, page, seconds=max(1.0, seconds / 20), clients=clients)
        phase(server, mixture, seconds=max(1.0, seconds / 20), clients=clients)
        before, found = server.resident_mb(), {}
        for name, paths, pace in (("page", page, 0.0), ("card", card, 0.0), ("mixture", mixture, 0.0), ("page_paced", page, PACE)):
            found[name] = phase(server, paths, seconds=seconds / 4, clients=clients, pace=pace)
        after = server.resident_mb()
    finally:
        server.stop()
    return _rows(server.seconds, found, before, after)


def _alive(connection: http.client.HTTPConnection) -> list[int]:
    """Live features, drawn at random: as many as there are, up to `N_DRAWN`."""

    def asked(path: str) -> dict:
        connection.request("GET", f"/api/v1/sources/bench{path}")
        return json.loads(connection.getresponse().read())

    n_alive = asked("")["n_alive"]
    return sorted({asked(f"/random?seed={seed}")["index"] for seed in range(min(n_alive, N_DRAWN))})


def _rows(start: float, found: dict[str, dict[str, float]], before: float, after: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"name": "start", "value": round(start, 3), "unit": "s"}]
    for name, numbers in found.items():
        for key, unit in (
            ("p50_ms", "ms"),
            ("p95_ms", "ms"),
            ("max_ms", "ms"),
            ("per_second", "1/s"),
            ("n", "requests"),
            ("lost", "requests"),
        ):
            rows.append({"name": f"{name}.{key.removesuffix('_ms')}", "value": round(numbers[key], 2), "unit": unit})
    rows.append({"name": "resident.before", "value": round(before, 1), "unit": "MB"})
    rows.append({"name": "resident.after", "value": round(after, 1), "unit": "MB"})
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
    p95 = next(row["value"] for row in rows if row["name"] == "page.p95")
    print(f"lost {lost}; feature page p95 {p95} ms at {given.clients} clients, bar {BAR_MS:g} ms")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
