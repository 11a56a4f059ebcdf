"""diffusers' DDIM scheduler, or its arithmetic written out where diffusers cannot be imported."""

from torch import Tensor

from benchmarks.ops.gpu.cases import OFFSET, STEPS, TRAINED, alphas_cumprod, timesteps


class Ddim:
    """What diffusers.DDIMScheduler.step (0.40) does with eta = 0, tensor for tensor.

    As there, alphas_cumprod lies on the host and timesteps on the device, so that a lookup waits.
    """

    def __init__(self, device: str):
        self.alphas_cumprod = alphas_cumprod()
        self.timesteps = timesteps().to(device)

    def variance(self, timestep: Tensor, previous: Tensor) -> Tensor:
        alpha_prod_t = self.alphas_cumprod[timestep]
        alpha_prod_t_prev = self.alphas_cumprod[previous if previous >= 0 else 0]
        beta_prod_t, beta_prod_t_prev = 1 - alpha_prod_t, 1 - alpha_prod_t_prev
        return (beta_prod_t_prev / beta_prod_t) * (1 - alpha_prod_t / alpha_prod_t_prev)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict=False):
        previous = timestep - TRAINED // STEPS
        alpha_prod_t = self.alphas_cumprod[timestep]
        alpha_prod_t_prev = self.alphas_cumprod[previous if previous >= 0 else 0]
        beta_prod_t = 1 - alpha_prod_t
        predicted = (sample - beta_prod_t**0.5 * model_output) / alpha_prod_t**0.5
        deviation = 0.0 * self.variance(timestep, previous) ** 0.5
        direction = (1 - alpha_prod_t_prev - deviation**2) ** 0.5 * model_output
        return alpha_prod_t_prev**0.5 * predicted + direction, predicted


def scheduler(device: str) -> tuple[object, str]:
    """(the scheduler, what it is)."""
    try:
        import diffusers
    except ImportError:
        return Ddim(device), "diffusers is not here: its DDIMScheduler.step() written out"
    ddim = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=OFFSET,
    )
    ddim.set_timesteps(STEPS, device=device)
    return ddim, f"DDIMScheduler of diffusers {diffusers.__version__}"
