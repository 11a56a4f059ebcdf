"""Enabling, disabling, and everything that may happen to a pipeline in between."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.pipelines.generation import active
from tests.support.pipelines.cases import CASES, STEPS
from tests.support.pipelines.image import with_ip_adapter
from tests.support.pipelines.loop import Sway, loop_pipeline
from tests.support.pipelines.parts import scheduler, unet
from tests.support.schedulers import CASE

SKIPPING = ak.AdaptiveConfig(criterion="every(3)")
NEVER = ak.AdaptiveConfig(criterion="never")
SD = CASES["sd15"]


def attributes(pipe):
    """Everything that an object of the pipeline has of its own, by identity."""
    parts = [pipe, pipe.scheduler, *(m for m in pipe.components.values() if hasattr(m, "forward"))]
    return [{name: id(value) for name, value in vars(part).items()} for part in parts]


def last(pipe):
    return ak.summary(pipe, as_dict=True)["last"]


def fresh(pipe):
    return last(pipe)["samplings"][-1]["fresh"]


def test_enabling_leaves_one_attribute_and_disabling_none():
    pipe = SD.make()
    before = attributes(pipe)
    assert ak.enable_adaptive(pipe, SKIPPING) is pipe
    assert set(vars(pipe)) - set(before[0]) == {"progress_bar"}
    assert attributes(pipe)[1:] == before[1:]
    assert ak.disable_adaptive(pipe) is pipe
    assert attributes(pipe) == before
    plain = SD.generate(pipe)
    known = [set(part) for part in attributes(pipe)]
    ak.enable_adaptive(pipe, SKIPPING)
    SD.generate(pipe)
    ak.disable_adaptive(pipe)
    assert [set(part) for part in attributes(pipe)] == known
    assert torch.equal(SD.generate(pipe), plain)
    with pytest.raises(ValueError, match=r"pipe must be enabled .* a plain StableDiffusionPip"):
        ak.disable_adaptive(pipe)


def test_a_progress_bar_of_the_users_own_comes_back():
    pipe = SD.make()
    own = pipe.progress_bar
    pipe.progress_bar = own
    with ak.adaptive(pipe, SKIPPING):
        SD.generate(pipe)
        assert not all(fresh(pipe))
        twin = copy.deepcopy(pipe)
    assert vars(pipe)["progress_bar"] is own
    ak.disable_adaptive(twin)
    assert vars(twin)["progress_bar"].__self__ is twin


def test_adaptive_gives_back_what_was_there():
    pipe = SD.make()
    with ak.adaptive(pipe, SKIPPING) as same:
        assert same is pipe
        with ak.adaptive(pipe, NEVER):
            SD.generate(pipe)
            assert all(fresh(pipe))
        SD.generate(pipe)
        assert not all(fresh(pipe))
        with pytest.raises(ZeroDivisionError), ak.adaptive(pipe, NEVER):
            raise ZeroDivisionError
        assert ak.summary(pipe, as_dict=True)["config"]["criterion"] == "every(3)"
    assert "progress_bar" not in vars(pipe)


def test_the_recommended_rule_is_the_default():
    pipe = ak.enable_adaptive(SD.make())
    assert ak.summary(pipe, as_dict=True)["config"]["criterion"] == "defect"
    assert "enabled, not called yet" in ak.summary(pipe)


class NoSteps:
    components, scheduler = {}, scheduler()
    unet = Sway()

    def progress_bar(self):
        """A pipeline whose loop is not its own."""


def test_what_is_no_pipeline_is_refused_by_name():
    pipe = SD.make()
    with pytest.raises(TypeError, match="pipe must be a pipeline of diffusers, got Sway without"):
        ak.enable_adaptive(Sway())
    with pytest.raises(TypeError, match=r"pipe must be a pipeline object .* the class Stable"):
        ak.enable_adaptive(type(pipe))
    with pytest.raises(TypeError, match="config must be an AdaptiveConfig, got dict"):
        ak.enable_adaptive(pipe, {"criterion": "never"})
    with pytest.raises(
        ValueError, match=r"must call scheduler.step\(\) in its own loop, which NoS"
    ):
        ak.enable_adaptive(NoSteps())
    with pytest.raises(ValueError, match=r"networks must name modules of .*unet.*, got 'nework'"):
        ak.enable_adaptive(pipe, networks=["nework"])
    with pytest.raises(TypeError, match="networks must be a sequence of component names, got 'u"):
        ak.enable_adaptive(pipe, networks="unet")
    for wrong in (3, (), iter(())):
        with pytest.raises(TypeError, match="networks must be a sequence of component names, got"):
            ak.enable_adaptive(pipe, networks=wrong)
    with pytest.raises(ValueError, match=r"pipe must be enabled"):
        ak.summary(pipe)
    with pytest.raises(ValueError, match=r"pipe must be enabled"):
        ak.decisions_picture(pipe, "decisions.png")
    assert "progress_bar" not in vars(pipe)


def test_modular_pipelines_and_pipelines_of_pipelines_are_refused_by_name():
    from diffusers import KandinskyV22CombinedPipeline, ModularPipeline

    with pytest.raises(TypeError, match="got the modular pipeline ModularPipeline"):
        ak.enable_adaptive(object.__new__(ModularPipeline))
    combined = object.__new__(KandinskyV22CombinedPipeline)
    vars(combined).update(
        scheduler=scheduler(), prior_pipe=None, decoder_pipe=None, _internal_dict={}
    )
    vars(combined)["components"] = {}
    with pytest.raises(ValueError, match="enable its prior_pipe and decoder_pipe"):
        ak.enable_adaptive(combined)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("StableDiffusionPanoramaPipeline", "steps several views with one scheduler"),
        ("StableDiffusionSAGPipeline", "reads its network's attention"),
        ("StableDiffusionAttendAndExcitePipeline", "reads its network's attention"),
    ],
)
def test_pipelines_that_cannot_skip_are_refused_by_name(kind, why):
    import diffusers

    pipe = object.__new__(getattr(diffusers, kind))
    vars(pipe).update(scheduler=scheduler(), _internal_dict={})
    with pytest.raises(ValueError, match=f"pipe must not be a {kind}, which {why}"):
        ak.enable_adaptive(pipe)


def test_a_schedulers_dictionary_copied_and_put_back_stays_its_own():
    """In the middle of a call, as pipelines of several views do it."""
    pipe = loop_pipeline(CASE["euler"].make())

    def edit(pipe, row, latents):
        kept = copy.deepcopy(vars(pipe.scheduler))
        vars(pipe.scheduler).update(kept)
        return latents

    x = torch.randn(1, 2, 8, 8)
    plain = pipe(x)[-1][0]
    with ak.adaptive(pipe, NEVER):
        ours = pipe(x, edit=edit)[-1][0]
    assert (ours - plain).abs().amax() <= 1e-5 * plain.abs().amax()
    assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()


def test_an_unknown_network_is_named_by_the_user():
    pipe = loop_pipeline(CASE["ddim"].make(), name="sway")
    with pytest.raises(ValueError, match=r"networks must be named for LoopPipeline: .* sway$"):
        ak.enable_adaptive(pipe)
    ak.enable_adaptive(pipe, SKIPPING, networks=["sway"])
    pipe(torch.randn(1, 2, 8, 8))
    assert last(pipe)["networks"] == {"sway": {"made": 5, "skipped": 9}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", ["sd15", "kandinsky22"])
def test_after_an_exception_in_the_middle_all_is_clean(name, error):
    """In a loop over the bar, as Kandinsky's, nothing tells of the end while a traceback lives."""
    case = CASES[name]
    pipe = case.make()
    ak.enable_adaptive(pipe, SKIPPING)
    whole = case.generate(pipe)
    pipe.unet.register_forward_pre_hook(count := Count(at=5, error=error))
    with pytest.raises(error) as caught:
        case.generate(pipe)
    # The traceback is still held; a call of the user's own reaches the network.
    given = {"sample": torch.zeros(2, 4, 16, 16), "timestep": 3, "return_dict": False}
    given["encoder_hidden_states"] = torch.zeros(2, 4, 32)
    if name == "kandinsky22":
        given["encoder_hidden_states"] = None
        given["added_cond_kwargs"] = {"image_embeds": torch.zeros(2, 32)}
    count.at = None
    with torch.no_grad():
        direct = pipe.unet(**given)[0]
    assert torch.equal(direct, pipe.unet.__class__.forward(pipe.unet, **given)[0].detach())
    del caught
    gc.collect()
    assert active() is None and "step" not in vars(pipe.scheduler)
    assert torch.equal(case.generate(pipe), whole)


class Count:
    """A hook that raises at a call of the network; hooks see skipped calls too."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def test_an_interrupted_call_is_told_and_the_next_one_is_whole():
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    whole = SD.generate(pipe)

    def stop(pipe, i, t, kwargs):
        pipe._interrupt = i == 6
        return kwargs

    SD.generate(pipe, callback_on_step_end=stop)
    report = last(pipe)["samplings"][0]
    assert (report["done"], report["rows"]) == (7, STEPS + 1)
    assert "ended after 7 of 15 steps" in ak.summary(pipe)
    assert torch.equal(SD.generate(pipe), whole)


def test_another_scheduler_assigned_later_is_served():
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    SD.generate(pipe)
    old = pipe.scheduler
    pipe.scheduler = scheduler("EulerDiscreteScheduler")
    SD.generate(pipe)
    report = last(pipe)["samplings"][0]
    assert report["scheduler"] == "EulerDiscreteScheduler" and not all(report["fresh"])
    assert not {"step", "set_timesteps"} & (vars(old).keys() | vars(pipe.scheduler).keys())
    copied = type(old).from_config(pipe.scheduler.config)
    assert "step" not in vars(copied)


def test_pipelines_that_share_components_do_not_meddle():
    """One enabled, one plain, both enabled: each as if it were alone."""
    from diffusers import StableDiffusionPipeline

    pipe = SD.make()
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    plain = SD.generate(other)
    ak.enable_adaptive(pipe, SKIPPING)
    skipped = SD.generate(pipe)
    assert torch.equal(SD.generate(other), plain) and not torch.equal(skipped, plain)
    ak.enable_adaptive(other, NEVER)
    SD.generate(other)
    assert all(fresh(other)) and not all(fresh(pipe))
    assert torch.equal(SD.generate(pipe), skipped)
    ak.disable_adaptive(pipe)
    assert torch.equal(SD.generate(pipe), plain)


def test_from_pipe_of_an_enabled_pipeline_is_plain():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = SD.make()
    img2img = CASES["sd-img2img"]
    before = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    before.set_progress_bar_config(disable=True)
    plain = img2img.generate(before)
    ak.enable_adaptive(pipe, SKIPPING)
    after = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    after.set_progress_bar_config(disable=True)
    assert torch.equal(img2img.generate(after), plain)
    with pytest.raises(ValueError, match="pipe must be enabled"):
        ak.summary(after)
    assert not torch.equal(img2img.generate(ak.enable_adaptive(after, SKIPPING)), plain)


def test_a_deep_copy_is_enabled_too_with_a_state_of_its_own():
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    skipped = SD.generate(pipe)
    twin = copy.deepcopy(pipe)
    assert ak.summary(twin, as_dict=True)["last"] is None
    assert torch.equal(SD.generate(twin), skipped)
    assert ak.summary(pipe, as_dict=True)["generations"] == 1
    ak.disable_adaptive(twin)
    assert not all(fresh(pipe))
    assert torch.equal(SD.generate(pipe), skipped)


def test_a_pickled_pipeline_comes_back_enabled():
    case = CASE["ddim"]
    pipe = ak.enable_adaptive(SD.make(solver=case.make()), SKIPPING)
    skipped = SD.generate(pipe)
    back = pickle.loads(pickle.dumps(pipe))
    assert torch.equal(SD.generate(back), skipped)
    assert ak.summary(back, as_dict=True)["generations"] == 1


def test_a_scheduler_copied_in_the_middle_of_a_call_steps_itself():
    """As pipelines do that give every stream a scheduler of its own."""
    pipe = loop_pipeline(CASE["euler"].make())
    copies = []

    def edit(pipe, row, latents):
        if row == 3:
            twin = copy.deepcopy(pipe.scheduler)
            twin.set_timesteps(4)
            twin.scale_model_input(latents, twin.timesteps[0])
            copies.append(twin.step(latents, twin.timesteps[0], latents).prev_sample)
            plain = type(twin).from_config(twin.config)
            plain.set_timesteps(4)
            plain.scale_model_input(latents, plain.timesteps[0])
            copies.append(plain.step(latents, plain.timesteps[0], latents).prev_sample)
            table = ak.SolverTable.from_scheduler(pipe.scheduler, 5)
            assert table.num_steps == 5
        return latents

    x = torch.randn(1, 2, 8, 8)
    plain = pipe(x)[-1][0]
    with ak.adaptive(pipe, NEVER):
        ours = pipe(x, edit=edit)[-1][0]
    assert torch.equal(*copies)
    assert (ours - plain).abs().amax() <= 1e-5 * plain.abs().amax()


def test_save_and_load(tmp_path):
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    skipped = SD.generate(pipe)
    pipe.save_pretrained(tmp_path)
    back = type(pipe).from_pretrained(tmp_path, safety_checker=None)
    back.set_progress_bar_config(disable=True)
    assert "progress_bar" not in vars(back)
    assert torch.equal(SD.generate(ak.enable_adaptive(back, SKIPPING)), skipped)


def test_the_batch_size_may_change_from_call_to_call():
    pipe = ak.enable_adaptive(SD.make(), ak.AdaptiveConfig.recommended())
    one = SD.generate(pipe)
    assert len(SD.generate(pipe, num_images_per_prompt=3)) == 3
    assert last(pipe)["samplings"][0]["samples"] == 3
    assert torch.equal(SD.generate(pipe), one)


def test_steps_may_change_from_call_to_call():
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    one = SD.generate(pipe)
    SD.generate(pipe, steps=7)
    assert last(pipe)["samplings"][0]["rows"] == 8
    assert torch.equal(SD.generate(pipe), one)


def test_a_generator_per_image_gives_each_its_own_noise():
    pipe = CASES["sdxl"].make(solver=scheduler("EulerAncestralDiscreteScheduler"))

    def images():
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        out = CASES["sdxl"].generate(pipe, prompt=["a", "b"], generator=generators)
        return out, [generator.get_state() for generator in generators]

    plain, stood = images()
    with ak.adaptive(pipe, NEVER):
        never, stand = images()
    assert (plain - never).abs().amax() <= 1e-5 * plain.abs().amax()
    assert all(torch.equal(a, b) for a, b in zip(stood, stand, strict=True))


def test_a_changed_prompt_asks_for_a_refresh_at_once():
    """A callback puts other embeddings in; guidance switched off changes the rows."""
    config = ak.AdaptiveConfig(criterion="every(5)", warmup=3)

    def other(pipe, i, t, kwargs):
        if i == 4:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].flip(1)
        return kwargs

    def unguided(pipe, i, t, kwargs):
        if i == 4:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    pipe = ak.enable_adaptive(SD.make(), config)
    SD.generate(pipe)
    assert not fresh(pipe)[5]
    for callback in (other, unguided):
        SD.generate(
            pipe,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
        assert fresh(pipe)[5], callback.__name__


def test_weights_changed_between_calls_are_the_networks_own_matter():
    """LoRA loaded, fused, switched off: every call is what its network makes of it."""
    pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    donor = unet()
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    donor.add_adapter(LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(donor))
    weights = {f"unet.{name}": 0.5 * value for name, value in weights.items()}

    pipe = SD.make()
    plain = SD.generate(pipe)
    ak.enable_adaptive(pipe, NEVER)

    def near(ours, theirs):
        return (ours - theirs).abs().amax() <= 1e-4 * theirs.abs().amax()

    pipe.load_lora_weights(weights, adapter_name="mine")
    loaded = SD.generate(pipe)
    pipe.fuse_lora()
    assert near(SD.generate(pipe), loaded) and not near(loaded, plain)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert near(SD.generate(pipe), plain)
    pipe.enable_lora()
    assert near(SD.generate(pipe), loaded)
    with ak.adaptive(pipe, SKIPPING):
        SD.generate(pipe)
        assert not all(fresh(pipe))
    pipe.unload_lora_weights()
    assert near(SD.generate(pipe), plain)


def test_ip_adapter():
    pipe = with_ip_adapter(SD.make())
    embeds = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    plain = SD.generate(pipe, ip_adapter_image_embeds=[embeds])
    with ak.adaptive(pipe, NEVER):
        never = SD.generate(pipe, ip_adapter_image_embeds=[embeds])
    assert (plain - never).abs().amax() <= 1e-5 * plain.abs().amax()
    with ak.adaptive(pipe, SKIPPING):
        SD.generate(pipe, ip_adapter_image_embeds=[embeds])
        assert not all(fresh(pipe))


def test_threads_with_pipelines_of_shared_networks():
    """Two threads, two schedulers, one U-Net: each as if it were alone.

    A tokenizer each, too: transformers keep the padding of a call in the tokenizer itself, and two
    threads that share one get each other's now and then, in plain pipelines as well.
    """
    from diffusers import StableDiffusionPipeline

    pipe = SD.make()
    parts = {
        **pipe.components,
        "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config),
        "tokenizer": copy.deepcopy(pipe.tokenizer),
    }
    other = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    ak.enable_adaptive(pipe, SKIPPING)
    alone = SD.generate(pipe, seed=1), SD.generate(other, seed=2)
    ak.enable_adaptive(other, NEVER)
    results: dict[int, list] = {0: [], 1: []}

    def work(k):
        for _ in range(3):
            results[k].append(SD.generate((pipe, other)[k], seed=k + 1))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(torch.equal(result, alone[0]) for result in results[0]) and len(results[0]) == 3
    for result in results[1]:
        assert (result - alone[1]).abs().amax() <= 1e-5 * alone[1].abs().amax()
    assert "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)


def test_to_moves_an_enabled_pipeline():
    pipe = ak.enable_adaptive(SD.make(), SKIPPING)
    skipped = SD.generate(pipe)
    half = SD.generate(pipe.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and not all(fresh(pipe))
    assert torch.isfinite(half).all()
    assert (pipe.to(torch.float32) is pipe) and skipped.shape == half.shape


def test_an_enabled_pipeline_is_freed():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()), SKIPPING)
    pipe(torch.randn(1, 2, 8, 8))
    gone = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert gone() is None
