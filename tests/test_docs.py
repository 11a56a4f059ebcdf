"""README and the docs: their code runs, their links lead somewhere, their figures are measured."""

import csv
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import diffusers
import pytest
import torch

import adaptive_kernels as ak
from tests.support.pipelines.image import sdxl

PROJECT = Path(__file__).parents[1]
DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md", *DOCS]
RESULTS = PROJECT / "benchmarks" / "results"
H100 = RESULTS / "h100-f121a82"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NETWORKS = {"SD-1.5's U-Net": "SD-1.5", "SDXL's U-Net": "SDXL"}


def blocks(page, language):
    """[(first line's number, text)] of a page's code blocks in a language."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n") + 1, found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


def table(page, title):
    """The body rows, cell by cell, of the table whose heading has a column of this title."""
    lines = page.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if f"| {title} |" in line) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def run(page):
    """The names that a page's Python blocks leave, run in their order.

    No model hub is reached: a pretrained pipeline is a small one of its kind.
    """
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(small_pipeline))
        return executed(page)


def small_pipeline(kind, name):
    assert name in ("stabilityai/stable-diffusion-xl-base-1.0",)
    return sdxl(kind.__name__)


def executed(page):
    torch.compiler.reset()
    names = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        # Errors name the page and its line.
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
    return names


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name
)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """As a reader would type them, in an empty folder, and with the result the page tells."""
    monkeypatch.chdir(tmp_path)
    names = run(page)
    if page.name == "limits.md":
        half_precision_costs_next_to_nothing(names["calls"])
    results = [value for value in names.values() if isinstance(value, ak.SamplingResult)]
    assert all(int(r.nfe.max()) < len(r.refreshed) for r in results), "no call was skipped"
    pipes = [value for value in names.values() if isinstance(value, diffusers.DiffusionPipeline)]
    assert all(ak.summary(p, as_dict=True)["calls"]["skipped"] for p in pipes if enabled(p))


def enabled(pipe):
    return "progress_bar" in vars(pipe)


def half_precision_costs_next_to_nothing(calls):
    # Of ten samples; of 300 it is 0.95 to 1.13, by solver and steps (docs/half-precision.md).
    assert calls[torch.bfloat16] < 1.15 * calls[torch.float32]
    assert abs(calls[torch.float16] - calls[torch.float32]) < 0.03 * calls[torch.float32]
    assert round(calls[torch.float32]) in (17, 18)


def test_every_fence_is_known():
    """A block in another language would be run by nobody."""
    languages = {found[1] for page in PAGES for found in BLOCK.finditer(page.read_text())}
    assert languages == {"python", "sh"}
    assert all(page.read_text().count("```") % 2 == 0 for page in PAGES)


def helps(command):
    """The help of a program that a shell line calls, and the line's words; None of a stranger."""
    words = [word for word in command.split() if "=" not in word]
    words = ["python" if word == ".venv/bin/python" else word for word in words]
    if not words:
        return None
    if words[:3] == ["python", "-m", "adaptive_kernels"]:
        program = [sys.executable, "-m", "adaptive_kernels", words[3]]
    elif words[0] == "benchmarks/gpu_check.sh":
        program = [PROJECT / words[0]]
    else:
        return None
    return subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout


def test_shell_lines_name_what_is_there():
    targets = set(re.findall(r"^(\S+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    targets = {target.replace("$(VENV)", ".venv") for target in targets}
    lines = [line for page in PAGES for _, text in blocks(page, "sh") for line in text.splitlines()]
    made = []
    for line in lines:
        if line.startswith("make "):
            made.append(line.split()[1])
            assert made[-1] in targets, line
        if module := re.search(r"python -m (\S+)", line):
            assert find_spec(module[1]), line
        if (said := helps(line)) is not None:
            for option in re.findall(r"--[a-z-]+", line):
                assert option in said, line
    assert {"demo", "test"} <= set(made)


def test_links_lead_somewhere():
    """Those between pages and to pictures, from where they stand; mkdocs checks docs/ again."""
    found = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"\W+", "-", t.lower()) for t in titles], target
            found += 1
    assert found > 40


def test_readme_is_two_screens():
    lines = (PROJECT / "README.md").read_text().splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 140


def test_every_page_has_its_place_in_the_site():
    config = (PROJECT / "mkdocs.yml").read_text()
    assert all(f" {page.name}\n" in config for page in DOCS)


@pytest.mark.parametrize("page", ["README.md", "docs/cpu.md"])
def test_the_headline_figures_are_those_of_the_stored_demo(page):
    methods = json.loads((RESULTS / "demo.json").read_text())["methods"]
    column = "speed-up"
    rows = table(PROJECT / page, column)
    assert len(rows) >= 6
    for row in rows:
        stored = methods[re.match(r"`(.*?)`", row[0])[1]]
        spread = f"({stored['nfe_min']}-{stored['nfe_max']})"
        assert row[1] == f"{stored['nfe_mean']:.1f} {spread}"
        assert row[2] == f"{stored['speedup']:.2f}x"
        for cell, name in zip(row[3:], ("psnr_db", "psnr_db_worst_tenth", "ssim"), strict=False):
            value = stored[name]
            assert cell == (
                "-" if value is None else f"{value:.4f}" if name == "ssim" else f"{value:.1f}"
            )


LIMITS = {
    "DDIM": "ddim",
    "DPM-Solver++ 2M": "dpm2m",
    "UniPC": "unipc",
    "flow Euler, shift 3": "flow",
}


def test_the_distances_to_the_limit_are_those_that_were_measured():
    with (RESULTS / "limit.csv").open() as file:
        stored = {
            (r["solver"], int(r["steps"]), r["method"], float(r["budget"])): r
            for r in csv.DictReader(file)
        }

    def cell(solver, method, budget, figures, steps=50):
        row = stored[solver, steps, method, budget]
        return f"{float(row['nfe_mean']):.1f}: " + " / ".join(
            f"{float(row[k]):.1f}" for k in figures
        )

    page, limit = PROJECT / "docs" / "quality.md", ("limit_db", "limit_worst_tenth_db")
    asked = [("full", 1), ("fewer_steps", 20), ("defect", 20)]
    asked += [("recommended", calls) for calls in (12, 16, 20, 28)]
    rows = table(page, "all 50 calls")
    assert [row[0] for row in rows] == [*LIMITS]
    for row in rows:
        assert row[1:] == [cell(LIMITS[row[0]], *method, limit) for method in asked]
    gains = [
        float(stored[s, 50, "recommended", 20]["limit_db"])
        - float(stored[s, 50, "full", 1]["limit_db"])
        for s in LIMITS.values()
    ]
    assert f"{min(gains):.1f}\nto {max(gains):.1f} dB closer" in (PROJECT / "README.md").read_text()

    for row in table(page, "20 steps"):
        for steps, found in zip((20, 28, 50, 100), row[1:], strict=True):
            full = stored[LIMITS[row[0]], steps, "full", 1]["limit_db"]
            ours = stored[LIMITS[row[0]], steps, "defect, default", 0.5]
            lost = float(ours["limit_lost_db"])
            assert found == f"{float(ours['nfe_mean']):.1f}: {float(full):.1f}, {lost:.1f}"
            assert steps == 100 or lost < 0.5

    for row in table(page, "about 12 calls"):
        method = {"per sample": "defect", "per batch": "defect, batch"}[row[0]]
        for calls, found in zip((12, 16, 20, 28), row[1:], strict=True):
            figures = cell("ddim", method, calls, ("psnr_db", "worst_tenth_db"))
            assert re.sub(r" \(.*?\)", "", found) == figures


METHODS = {
    "full run's solver with fewer steps": "fewer_steps",
    "`third_order` + reuse": "third_order",
    "`third_order` + linear": "third_order+linear",
    "`released` + reuse": "released",
    "EasyCache": "easycache",
    "DeepCache": "deepcache",
    "Adaptive DPM-Solver 23": "adaptive_dpm_23",
    "SADA": "sada",
    "ZEUS": "zeus",
    "TaylorSeer on the output, order 1": "taylorseer",
    "TaylorSeer on the output, order 2": "taylorseer_2",
    "`every(k)` + reuse": "every",
    "`every(k)` + linear": "every+linear",
    "`every(k)` + linear + repair": "every+linear, repair",
    "`defect` without repair": "defect, no repair",
    "`defect`": "defect",
    "`defect`, max_skip 6": "defect, max_skip 6",
    "`defect`, threshold auto": "defect, default",
    "`plan`": "plan",
    "`recommended`, 200 steps": "recommended",
    "all 50 calls": "full",
    "fewer steps": "fewer_steps",
}


def method_of(title):
    return METHODS[
        re.sub(r"\(calls=\)| \((the paper|its authors' code|cost in calls)\)|\*", "", title)
    ]


def laboratory():
    """(solver, steps, method) -> its rows, and what a cell of a table says of each of them."""
    found = {}
    with (RESULTS / "fidelity.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault((row["solver"], int(row["steps"]), row["method"]), []).append(row)
    return found


def said(row, *figures):
    return f"{float(row['nfe_mean']):.1f}: " + " / ".join(f"{float(row[k]):.1f}" for k in figures)


def test_every_method_of_the_laboratory_is_as_it_was_measured():
    """Of the tables by method each cell is a row of the results, and a dash hides none."""
    stored, page = laboratory(), PROJECT / "docs" / "quality.md"
    psnr, limit = ("psnr_db", "worst_tenth_db"), ("limit_db", "limit_worst_tenth_db")
    cells = 0
    for title, *found, lpips in table(page, "LPIPS at 16 to 18"):
        rows = stored["ddim", 50, method_of(title)]
        spans = ((9, 11.15), (11.9, 14.05), (15.3, 18.05), (19, 20.65), (23.95, 26.05))
        for cell, (least, most) in zip(found, spans, strict=True):
            there = [said(r, *psnr) for r in rows if least <= float(r["nfe_mean"]) <= most]
            assert cell in there or (cell == "-" and not there), (title, cell)
            cells += cell != "-"
        near = [r for r in rows if said(r, *psnr) == found[2]]
        assert lpips == (f"{float(near[0]['lpips']):.4f}" if near else "-")
    for title, *found in table(page, "DDIM, 50 steps"):
        for cell, solver in zip(found, LIMITS.values(), strict=True):
            rows = stored.get((solver, 50, method_of(title)), [])
            assert cell in [said(r, *limit) for r in rows] or (cell == "-" and not rows), title
            cells += cell != "-"
    heading = ("`defect`, threshold auto", "`third_order` + reuse", "`every(k)` + linear")
    for where, *found in table(page, "`defect`, threshold auto"):
        name, steps = where.rsplit(", ", 1)
        solver = LIMITS.get(name, "euler")
        for cell, title in zip(found, (*heading, "fewer steps", "`plan`"), strict=True):
            rows = stored[solver, int(steps), method_of(title)]
            assert cell in [said(r, *psnr) for r in rows], (where, title)
            cells += 1
    assert cells > 200


def test_half_precision_costs_what_was_measured():
    with (RESULTS / "h200-029fbb5" / "precision.csv").open() as file:
        stored = {
            (r["solver"], int(r["steps"]), r["dtype"], r["rule"], float(r["setting"])): r
            for r in csv.DictReader(file)
        }
    automatic = {key[:2]: key[4] for key in stored if key[3] == "defect, default"}
    page, both = (
        PROJECT / "docs" / "half-precision.md",
        ("independent_db", "independent_worst_tenth_db"),
    )

    def cell(row, figures=("db", "worst_tenth_db"), calls=True):
        start = f"{float(row['calls']):.1f}: " if calls else ""
        return start + " / ".join(f"{float(row[k]):.1f}" for k in figures)

    rows = table(page, "bfloat16's own full run")
    assert len(rows) == 12
    for title, *found in rows:
        name, steps = title.removesuffix(" (measured)").rsplit(", ", 1)
        cell_of = (LIMITS[name.removesuffix(" (measured)")], int(steps))
        rule = "defect, noise measured" if cell_of[0] == "flow" else "defect"
        own = stored[(*cell_of, "bfloat16", "full", cell_of[1])]
        half = stored[(*cell_of, "bfloat16", rule, 0.0016)]
        assert found == [
            cell(stored[(*cell_of, "float32", "defect", 0.0016)]),
            cell(own, calls=False),
            cell(half),
            cell(half, both, calls=False),
            cell(stored[(*cell_of, "bfloat16", "defect, noise not told", 0.0016)]),
            cell(stored[(*cell_of, "float16", rule, 0.0016)]),
        ], title
    rows = table(page, "solver, steps, threshold auto")
    assert len(rows) == 9
    for title, *found in rows:
        name, steps = title.rsplit(", ", 1)
        cell_of = (LIMITS[name], int(steps))
        exact, half, other = (
            stored[(*cell_of, dtype, "defect, default", automatic[cell_of])]
            for dtype in ("float32", "bfloat16", "float16")
        )
        expected = [cell(exact), cell(half), cell(half, both, calls=False), cell(other)]
        assert found == expected, title


def loop_rows():
    rows = [
        row
        for name in ("loop.json", "loop-sdxl.json")
        for row in json.loads((H100 / name).read_text())["rows"]
    ]
    return {(row["network"], row["executor"], row["pattern"]): row for row in rows}


def test_the_gpus_samplings_are_those_that_were_measured():
    stored = loop_rows()
    rows = table(PROJECT / "docs" / "gpu.md", "share of steps / calls")
    assert len(rows) == 8
    for network, how, calls, ms, speedup, share in rows:
        executor, pattern = how.split(", ")
        row = stored[NETWORKS[network], executor, {"forced": "adaptive"}.get(pattern, pattern)]
        assert calls == str(row["ticks"]) and ms == f"{row['us'] / 1e3:.0f}"
        assert speedup == f"{row['speedup']:.2f}x" and share == f"{row['speedup_share']:.3f}"
    readme = " ".join((PROJECT / "README.md").read_text().split())
    for pattern, executor, words in (
        ("full", "graph", "{:.0f} ms for 50 calls"),
        ("adaptive", "graph", "{:.0f} ms for 26 of them"),
        ("full", "eager", "{:.0f} ms for 50."),
    ):
        assert words.format(stored["SD-1.5", executor, pattern]["us"] / 1e3) in readme
    share = stored["SD-1.5", "graph", "adaptive"]["speedup_share"]
    assert f"{share:.3f} of what skipping" in readme


def test_the_gpus_ticks_are_those_that_were_measured():
    stored = loop_rows()
    columns = (("graph", "full"), ("graph", "adaptive"), ("groups", "adaptive"))
    rows = table(PROJECT / "docs" / "gpu.md", "`groups`, forced")
    assert len(rows) == 3
    for network, *cells in rows:
        for cell, column in zip(cells, columns, strict=True):
            row = stored[(network, *column)]
            certain = row["overhead_error_us"] < 0.1 * row["overhead_us_per_tick"]
            assert cell == (f"{row['overhead_us_per_tick']:.1f}" if certain else "-")


def test_the_gpus_kernels_are_those_that_were_measured():
    stored = {}
    for row in json.loads((H100 / "bench.json").read_text())["rows"]:
        case = (row["size"], row["op"], row["criterion"])
        stored[(*case, row["implementation"], row["how"])] = row["us"]
    columns = [(name, "graph") for name in ("ours", "copy", "triton", "captured")]
    columns += [("eager", "calls")]
    rows = table(PROJECT / "docs" / "gpu.md", "Triton")
    assert len(rows) == 12
    for size, case, *cells in rows:
        for cell, column in zip(cells, columns, strict=True):
            value = stored[(size, *case.split(", "), *column)]
            assert cell == (f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}")


def test_the_calls_by_scheduler_are_those_that_were_measured():
    stored = json.loads((RESULTS / "schedulers-cpu.json").read_text())
    cells = {(row["scheduler"], row["steps"]): row for row in stored["rows"]}
    page = PROJECT / "docs" / "schedulers.md"
    rows, counts = table(page, "50 steps"), (50, 20, 10, 6)
    assert len(rows) * len(counts) == len(cells) > 80
    for name, *calls, db in rows:
        found = [cells[name.removesuffix(" *"), steps] for steps in counts]
        assert calls == [f"{row['calls']:.1f} of {row['rows']}" for row in found]
        assert db == ("-" if found[0]["psnr_db"] is None else f"{found[0]['psnr_db']:.1f}")
        assert name.endswith(" *") == found[0]["adds_noise"]
    noisy = [row for row in stored["rows"] if row["adds_noise"] and row["steps"] == 20]
    # What limits.md and the page say of solvers that add noise.
    assert len(noisy) > 5 and all(row["calls"] > 0.95 * row["rows"] for row in noisy)
    assert 45 < cells["Euler ancestral", 50]["calls"] < 46.5


def test_the_engine_is_as_fast_as_it_was_measured():
    stored = json.loads((RESULTS / "engine-cpu.json").read_text())
    page = PROJECT / "docs" / "engine.md"
    rows = table(page, "calls per sample")
    assert len(rows) == len(stored["rows"])
    for row, found in zip(rows, stored["rows"], strict=True):
        ups = found["speed_ups"]
        assert row == [
            f"{found['name']}: {found['what']}",
            f"{found['mean_nfe']:.1f}",
            str(found["network_calls"]),
            f"{found['speed_up']:.2f}x ({ups[0]:.2f}-{ups[-1]:.2f})",
            f"{found['overhead']:.1%}",
        ]
    text = " ".join(page.read_text().split())
    *first, last = (f"{value:.1f}" for value in stored["scaling"].values())
    assert f"makes {', '.join(first)} and {last} samples per second" in text
    engine = stored["rows"][4]
    assert f"T / mean NFE = {engine['steps_over_nfe']:.2f}" in text
    # What was aimed at.
    assert engine["share_of_steps_over_nfe"] >= 0.93 and engine["overhead"] <= 0.03


def test_what_a_call_costs_is_measured():
    benches = json.loads((RESULTS / "host-cpu.json").read_text())["benchmarks"]
    found = {(b["group"], b["extra_info"]["implementation"]): b for b in benches}
    networks, guidance = {"10 modules": "small", "1,802 modules": "large"}, ("none", "yes")
    rows = table(PROJECT / "docs" / "loop.md", "a call, microseconds")
    assert [row[:2] for row in rows] == [[name, how] for name in networks for how in guidance]
    for network, how, *cells in rows:
        group = f"{networks[network]}-{'guided' if how == 'yes' else 'plain'}"
        call, own = found[group, "captured"], found[group, "own"]
        times = [f"{bench['stats']['median'] * 1e6:.0f}" for bench in (call, own)]
        assert cells == [*times, str(call["extra_info"]["operator_calls"])]


def test_hooks_check_with_the_versions_of_the_tests():
    """Their own environments are installed apart from the project's."""
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text()
    project = (PROJECT / "pyproject.toml").read_text()
    pinned = set(re.findall(r"((?:ruff|clang-format)==[\d.]+)", hooks))
    assert pinned == set(re.findall(r'"((?:ruff|clang-format)==[\d.]+)"', project))
    assert len(pinned) == 2


def test_what_a_pipeline_costs_is_measured():
    benches = json.loads((RESULTS / "pipelines-cpu.json").read_text())["benchmarks"]
    medians = {
        (b["group"], b["extra_info"]["implementation"]): b["stats"]["median"] for b in benches
    }
    page = PROJECT / "docs" / "pipelines.md"
    solvers = {"DDIM": "ddim", "Euler": "euler", "DPM-Solver++": "dpm++", "UniPC": "unipc"}
    rows = table(page, "the scheduler's own step")
    assert [row[0] for row in rows] == list(solvers)
    for title, *cells in rows:
        step = f"step-{solvers[title]}"
        keys = [
            (f"{step}-every", "own"),
            (f"{step}-every", "skipped"),
            (f"{step}-defect", "skipped"),
        ]
        assert cells == [f"{medians[key] * 1e6:.0f}" for key in keys]
    ratio = medians["call-never", "never"] / medians["call-never", "plain"]
    assert f"takes {ratio:.3f} times the plain one" in page.read_text()
