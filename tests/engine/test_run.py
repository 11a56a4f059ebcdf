"""A run from outside: errors by name, streams, ends of every kind, what is told afterwards."""

import copy
import gc
import itertools
import json
import pickle

import pytest
import torch
from diffusers import DDIMScheduler

import adaptive_kernels as ak
from adaptive_kernels.engine import statistics
from tests.engine.parts import SHAPE, Rowwise, alone, assert_equal, engine, label, noise
from tests.support import problems
from tests.support.networks import Interrupted

TABLE, PLAIN = problems.ddim(6), ak.AdaptiveConfig(criterion="never")


def made(count=5, **options):
    return [ak.Request(seed=n, conditioning=label(n), **options) for n in range(count)]


def run(one, requests, **options):
    return list(one.run(requests, progress=False, **options))


def plain(**options):
    return engine(TABLE, config=PLAIN, **options)


CLEAN = torch.zeros(SHAPE)
BAD = [
    (3, TypeError, "a request must be a Request, got int"),
    (["seed"], TypeError, "a request must be a Request, got list"),
    ("a cat", TypeError, r"got str \(prompts are for Engine.from_pipeline\)"),
    ({"seed": True}, TypeError, "seed must be an int, got True"),
    ({"seed": 2**63}, ValueError, "seed must fit int64, got 9223372036854775808"),
    ({"seed": [1]}, TypeError, r"seed must be an int, got \[1\]"),
    ({"noise": CLEAN[0]}, ValueError, r"noise must have shape \(2, 4, 4\), got \(4, 4\)"),
    ({"noise": "x"}, TypeError, "noise must be a floating-point tensor, got str"),
    ({"noise": CLEAN.to("meta")}, ValueError, "noise must be on cpu as the engine's network is"),
    ({"noise": torch.zeros(2, *SHAPE)}, ValueError, r"noise must have shape \(2, 4, 4\)"),
    ({"latents": CLEAN}, ValueError, "strength must be given with latents, got None"),
    ({"strength": 0.5}, ValueError, "latents must be given with a strength of 0.5"),
    ({"strength": 0.5, "latents": CLEAN}, ValueError, "strength must be None for an engine with a"),
    ({"threshold": -1.0}, ValueError, "threshold must be at least 0, got -1.0"),
    ({"threshold": "x"}, TypeError, "threshold must be a number"),
    ({"threshold": torch.ones(2)}, ValueError, r"threshold must have shape \(\) or \(1,\)"),
    ({"guidance_scale": 2.0}, ValueError, "unconditional must be given with a guidance_scale of 2"),
    ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be finite"),
    ({"guidance_scale": torch.ones(2) * 3}, ValueError, "guidance_scale must be one number"),
    ({"conditioning": 3}, TypeError, "conditioning must be a mapping"),
    ({"conditioning": {}}, ValueError, "the first request's conditioning must name the same"),
    ({"conditioning": {"label": torch.ones(2)}}, ValueError, r"conditioning\['?\.?label"),
    ({"conditioning": {"label": torch.ones(1, 2)}}, ValueError, "the shape and dtype of the first"),
    ({"conditioning": {"label": torch.ones(1).half()}}, ValueError, "the first request's"),
    ({"conditioning": {"label": 3.0}}, ValueError, "where one of them is no tensor"),
    (
        {"guidance_scale": 2.0, "unconditional": {"label": torch.ones(1, 2)}},
        ValueError,
        "unconditional.*must have the shape and dtype of conditioning",
    ),
]


@pytest.mark.parametrize(("fields", "kind", "match"), BAD)
def test_a_bad_request_fails_alone_by_name(fields, kind, match):
    bad = fields
    if isinstance(fields, dict):
        bad = ak.Request(**{"id": "bad", "conditioning": label(1), **fields})
    good, one = made(), plain()
    queue = [*good[:2], bad, *good[2:]]
    out = run(one, queue, on_error="yield", ordered=True)
    assert [sample.number for sample in out] == [*range(6)]
    with pytest.raises(kind, match=match):
        raise out[2].error
    assert out[2].latents is None and out[2].request is bad and "failed" in repr(out[2])
    assert one.report()["failed"] == 1 and one.report()["samples"] == 5
    for sample in (*out[:2], *out[3:]):
        assert sample.error is None
        assert_equal(sample, alone(TABLE, sample.request, PLAIN))
    name = 2 if out[2].id == 2 else "bad"
    with pytest.raises(ak.RequestError, match=f"^request {name!r}: .*{match}") as info:
        run(one, queue)
    assert info.value.id == name and isinstance(info.value.__cause__, kind)


BAD_ENGINES = [
    ({"model": 3}, TypeError, "model must be callable, got int"),
    ({"slots": 0}, ValueError, "slots must be at least 1, got 0"),
    ({"slots": 2.0}, TypeError, "slots must be an int, got 2.0"),
    ({"slots": True}, TypeError, "slots must be an int, got True"),
    ({"shape": 4}, ValueError, "shape must be that of one sample's latents"),
    ({"shape": ()}, ValueError, "shape must be that of one sample's latents"),
    ({"shape": (4, 0)}, ValueError, "shape must be that of one sample's latents"),
    ({"shape": (4, 2.5)}, ValueError, "shape must be that of one sample's latents"),
    ({"gather": 1}, TypeError, "gather must be a bool, got 1"),
    ({"config": 0.1}, TypeError, "config must be an AdaptiveConfig, got float"),
    ({"config": ak.AdaptiveConfig(granularity="batch")}, ValueError, "granularity 'sample'"),
    ({"guidance_scale": torch.ones(3) * 2}, ValueError, "guidance_scale must be one number"),
    ({"guidance_scale": "x"}, TypeError, "guidance_scale must be a number"),
    (
        {"dtype": torch.float64},
        ValueError,
        "dtype must be torch.float32, torch.float16 or torch.bfloat16",
    ),
    ({"device": "nowhere"}, ValueError, "device must be a torch device, got 'nowhere'"),
    ({"num_inference_steps": 5}, ValueError, "a SolverTable already fixes the steps"),
    ({"scheduler": 3}, TypeError, "scheduler"),
    ({"strength_rounding": "x"}, ValueError, "strength_rounding must be 'down' or 'up', got 'x'"),
    ({"slot": 3, "scheduler": DDIMScheduler()}, TypeError, "Engine has no argument 'slot'.*slots"),
    (
        {"scheduler": DDIMScheduler(clip_sample=False), "num_inference_steps": 5, "strength": 2.0},
        *(ValueError, r"strength must be in \(0, 1\], got 2.0"),
    ),
]


@pytest.mark.parametrize(("options", "kind", "match"), BAD_ENGINES)
def test_an_engine_names_the_argument_that_is_wrong(options, kind, match):
    given = {"model": Rowwise(), "scheduler": TABLE, "config": PLAIN, "shape": SHAPE, **options}
    with pytest.raises(kind, match=match):
        ak.Engine(given.pop("model"), given.pop("scheduler"), **given)


@pytest.mark.parametrize(
    ("requests", "options", "kind", "match"),
    [
        (3, {}, TypeError, "requests must be an iterable of Request, got int"),
        (ak.Request(), {}, TypeError, "requests must be an iterable of Request, got one Request"),
        ([], {"ordered": 1}, TypeError, "ordered must be a bool, got 1"),
        ([], {"on_error": "skip"}, ValueError, "on_error must be 'raise' or 'yield', got 'skip'"),
        ([], {"progress": "no"}, TypeError, "progress must be a bool, got 'no'"),
    ],
)
def test_a_run_refuses_what_it_cannot_use_at_once(requests, options, kind, match):
    one = plain()
    with pytest.raises(kind, match=match):
        one.run(requests, **options)
    assert len(run(one, made())) == 5


def test_an_empty_queue_is_an_empty_run():
    one = plain()
    assert run(one, []) == [] and one.report()["samples"] == 0
    assert one.report()["request_seconds"] is None and one.report()["mean_nfe"] is None


@pytest.mark.parametrize("ordered", [True, False])
def test_a_network_that_raises_loses_nothing_finished_and_names_the_rest(ordered):
    # The first request takes all six calls, those behind it one: what is done waits for it.
    short = [ak.Request(id=f"short {n}", seed=n, conditioning=label(n), strength=0.01 + 1 / 6,
                        latents=CLEAN) for n in range(3)]  # fmt: skip
    queue = [ak.Request(id="long", conditioning=label(1)), *short]
    scheduler = DDIMScheduler(clip_sample=False)
    options = {"config": PLAIN, "num_inference_steps": 6, "slots": 2}
    model = Interrupted(6, ValueError("of the network"))
    one = engine(scheduler, Rowwise(model), **options)
    out = []
    with pytest.raises(ak.EngineError, match=r"ValueError: of the network; .*'long'") as info:
        for sample in one.run(queue, ordered=ordered, progress=False):
            out.append(sample.id)
    assert isinstance(info.value.__cause__, ValueError)
    assert out and "long" not in out and {*out, *info.value.unfinished} == {
        "long", *(f"short {n}" for n in range(len(out) + 1 if len(out) < 3 else 3))
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(info.value)).unfinished == info.value.unfinished
    model.at = None
    # The engine goes on with another run, and nothing is left over of this one.
    again = run(one, queue, ordered=True)
    assert [sample.id for sample in again] == [request.id for request in queue]
    fresh = run(engine(scheduler, **options), queue, ordered=True)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(again, fresh, strict=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_ctrl_c_stops_and_leaves_the_engine_usable(error):
    model = Interrupted(7, error)
    one = engine(TABLE, Rowwise(model), config=PLAIN)
    with pytest.raises(type(error)):
        run(one, made())
    model.at = None
    assert len(run(one, made())) == 5


def test_a_run_left_early_is_over_and_another_one_may_begin():
    one = plain()
    for _ in one.run(made(), progress=False):
        break
    assert len(run(one, made())) == 5
    held = one.run(made(), progress=False)
    next(held)
    with pytest.raises(RuntimeError, match="a run of this engine is under way"):
        one.run(made())
    held.close()
    assert len(run(one, made())) == 5
    # One that nobody has asked for anything yet.
    waiting = one.run(made(), progress=False)
    del waiting
    gc.collect()
    assert len(run(one, made())) == 5


def test_close_ends_the_run_and_frees_the_buffers():
    with plain() as one:
        results = one.run(made(), progress=False)
        next(results)
        assert one.report()["memory"] > 0
    assert [*results] == [] and one.report()["memory"] == 0
    with pytest.raises(RuntimeError, match="the engine is closed"):
        one.run(made())
    one.close()


def test_close_during_a_tick_ends_the_run_after_it():
    """From another thread, or from within: there the iterator itself cannot be closed."""
    holder, calls = [], []

    def model(x, timestep, label):
        calls.append(None)
        if len(calls) == 8:
            holder[0].close()
        return x * 0.5

    one = engine(TABLE, model, config=PLAIN, slots=2)
    holder.append(one)
    out = run(one, made(9))
    assert len(calls) == 8 and len(out) == 2 and one.report()["memory"] == 0
    assert not one._batch._entries
    with pytest.raises(RuntimeError, match="the engine is closed"):
        one.run(made())


def test_a_client_that_waits_for_its_answer_gets_it():
    """A queue that has the next request only once the last one is out."""
    answers = []

    def requests():
        for n in range(3):
            yield ak.Request(seed=n, conditioning=label(n))
            while len(answers) <= n:
                yield None

    one = plain()
    for sample in one.run(requests(), progress=False):
        answers.append(sample)
    assert [sample.number for sample in answers] == [0, 1, 2]
    answers.clear()
    gaps = 0
    for sample in one.run(requests(), progress=False, gaps=True):
        gaps += sample is None
        answers += [sample] * (sample is not None)
    assert gaps > 3


def test_the_first_request_of_a_run_says_what_conditions_look_like():
    """Also to one that comes when no other is there: a network may fail on it, and all with it."""
    one = plain()
    odd = ak.Request(conditioning={"label": torch.ones(1, 9)})
    out = run(one, iter([*made(1), *[None] * 9, odd, *made(1)]), on_error="yield", ordered=True)
    assert [sample.error is None for sample in out] == [True, False, True]
    assert "the first request's conditioning" in str(out[1].error)


def test_a_network_of_fixed_size_gets_all_rows_whoever_is_guided():
    model = Rowwise()
    options = {"guidance_scale": 2.0, "unconditional": label(0), "gather": False}
    one = engine(TABLE, model, config=PLAIN, slots=2, **options)
    scales = (1.0, 1.0, None, 1.0, 3.0)
    queue = [ak.Request(seed=n, conditioning=label(n), guidance_scale=s)
             for n, s in enumerate(scales)]  # fmt: skip
    out = run(one, queue)
    assert set(model.sizes) == {4}
    for sample in out:
        assert_equal(sample, alone(TABLE, sample.request, PLAIN, 2.0, label(0)))


def test_an_endless_queue_streams_and_waits_for_its_consumer():
    taken = []

    def requests():
        for n in itertools.count():
            taken.append(n)
            yield ak.Request(seed=n, conditioning=label(n))

    one = plain(slots=4)
    results = one.run(requests(), progress=False)
    for count, sample in enumerate(results, start=1):
        assert sample.error is None
        # What was taken stands in a slot or has come out.
        assert len(taken) <= count + 4 + 4
        if count == 50:
            break
    before = len(taken)
    assert one.report()["samples"] >= 50 and len(taken) == before


def test_what_is_remembered_of_an_endless_run_is_bounded(monkeypatch):
    monkeypatch.setattr(statistics, "REMEMBERED", 5)
    one = plain()
    run(one, made(20))
    record = one._batch.record
    assert len(record.spans) == len(record.occupancy) == 5 and record.done == 20


def test_conditions_of_another_run_may_be_others():
    one = engine(TABLE, Rowwise(lambda x, t, **c: x * 0.5), config=PLAIN)
    assert len(run(one, made())) == 5
    other = [ak.Request(seed=n, conditioning={"text": torch.ones(1, 7)}) for n in range(3)]
    assert len(run(one, other)) == 3


def test_the_report_counts_what_happened(tmp_path):
    one = plain(slots=2)
    with pytest.raises(ValueError, match="needs a run with a finished sample"):
        one.timeline_picture(tmp_path / "none.png")
    requests = [*made(4), ak.Request(seed="x")]
    out = run(one, requests, on_error="yield")
    report = one.report()
    json.dumps(report, allow_nan=False)
    counted = {
        **{"slots": 2, "samples": 4, "failed": 1, "ticks": 12, "mean_nfe": 6.0},
        **{
            "occupancy": 1.0,
            "slots_in_use": [2] * 12,
            "idle_rows": 0,
            "network_rows": 24,
            "wasted_rows": 0,
        },
    }
    assert {name: report[name] for name in counted} == counted
    assert 0 < report["network_seconds"] < report["tick_seconds"] < report["seconds"]
    times = [report["request_seconds"][name] for name in ("p50", "p95", "p99")]
    assert times == sorted(times) and 0 < times[-1] < report["seconds"]
    # All stood in the queue from the beginning: those that came second waited for the first.
    waits = sorted(sample.queue_seconds for sample in out if sample.error is None)
    assert waits[1] < waits[2] and report["queue_seconds"]["p99"] <= waits[-1]
    assert {(s.slot, s.first_tick, s.last_tick) for s in out if s.error is None} == {
        *((0, 0, 5), (1, 0, 5), (0, 6, 11), (1, 6, 11))
    }
    one.timeline_picture(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes()[:4] == b"\x89PNG"


def test_unconditional_of_the_engine_or_the_request():
    """A scale of the engine, of the request, or none; the halves by whoever gives them."""
    config = ak.AdaptiveConfig(0.02)
    one = engine(TABLE, config=config, guidance_scale=3.0, unconditional=label(9))
    queue = [
        ak.Request(seed=1, conditioning=label(1)),
        ak.Request(seed=1, conditioning=label(1), unconditional=label(2)),
        ak.Request(seed=1, conditioning=label(1), guidance_scale=1.0),
        ak.Request(seed=1, conditioning=label(1), guidance_scale=torch.tensor([5.0])),
    ]
    out = run(one, queue, ordered=True)
    assert len({float(sample.latents.sum()) for sample in out}) == 4
    for sample in out:
        assert_equal(sample, alone(TABLE, sample.request, config, 3.0, label(9)))


def test_objects_say_what_they_are():
    one = plain()
    assert repr(one).startswith("Engine(3 slots of [2, 4, 4], SolverTable(")
    sample = run(one, made(1))[0]
    assert repr(sample).startswith("Sample(0, latents [2, 4, 4], NFE 6 of 6, ")
    assert copy.copy(ak.RequestError("a", "why")).id == "a"
    assert torch.equal(noise(3), noise(3)) and not sample.latents.requires_grad


def test_runs_inside_inference_mode_and_outside_of_it_follow_each_other():
    one = plain()
    with torch.inference_mode():
        inside = run(one, made(), ordered=True)
    outside = run(one, made(), ordered=True)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a.latents, b.latents)


def test_no_graph_is_kept_of_a_network_that_learns():
    model = torch.nn.Linear(4, 4)
    requests = [ak.Request(seed=n) for n in range(4)]
    for sample in engine(TABLE, lambda x, t: model(x), config=PLAIN).run(requests, progress=False):
        assert sample.latents.grad_fn is None
        # The consumer's own code runs with gradients.
        assert torch.is_grad_enabled() and model(torch.ones(4)).requires_grad
