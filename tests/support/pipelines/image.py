"""Small image pipelines of diffusers, each with what its call needs."""

from typing import Any

import torch

from .parts import (
    SIZE,
    XL,
    quiet,
    scheduler,
    text_encoder,
    tokenizer,
    unet,
    vae,
)


def sdxl(kind: str = "StableDiffusionXLPipeline", solver: Any = None, **more: Any) -> Any:
    """A tiny SDXL pipeline, text encoders and all."""
    import diffusers

    return quiet(
        getattr(diffusers, kind)(
            **{
                "vae": vae(),
                "text_encoder": text_encoder(),
                "text_encoder_2": text_encoder(projection=True),
                "tokenizer": tokenizer(),
                "tokenizer_2": tokenizer(),
                "unet": unet(**XL),
                "scheduler": solver or scheduler(),
                "add_watermarker": False,
                **more,
            }
        )
    )


def sd(kind: str = "StableDiffusionPipeline", solver: Any = None, **more: Any) -> Any:
    """A tiny Stable Diffusion 1.5, or what shares its parts."""
    import diffusers

    return quiet(
        getattr(diffusers, kind)(
            **{
                "vae": vae(),
                "text_encoder": text_encoder(),
                "tokenizer": tokenizer(),
                "unet": unet(),
                "scheduler": solver or scheduler("PNDMScheduler", skip_prk_steps=True),
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
                **more,
            }
        )
    )


def sd2(**more: Any) -> Any:
    solver = more.pop("solver", None) or scheduler("DDIMScheduler", prediction_type="v_prediction")
    net = unet(use_linear_projection=True, attention_head_dim=(2, 4))
    return sd(solver=solver, unet=net, **more)


def t5() -> Any:
    """A tiny T5 encoder of 32 features."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=190, **sizes)).eval()


def sd3(solver: Any = None, **more: Any) -> Any:
    """A tiny Stable Diffusion 3, three text encoders and all."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=SIZE,
    ).eval()
    return quiet(
        StableDiffusion3Pipeline(
            **{
                "transformer": transformer,
                "scheduler": solver or scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
                "vae": vae(shift_factor=0.06, scaling_factor=1.5),
                "text_encoder": text_encoder(projection=True),
                "text_encoder_2": text_encoder(projection=True),
                "text_encoder_3": t5(),
                "tokenizer": tokenizer(),
                "tokenizer_2": tokenizer(),
                "tokenizer_3": tokenizer(),
                **more,
            }
        )
    )


def flux(solver: Any = None, **more: Any) -> Any:
    """A tiny Flux, which packs its latents and takes its guidance as a condition."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()
    solver = solver or scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    return quiet(
        FluxPipeline(
            **{
                "transformer": transformer,
                "scheduler": solver,
                "vae": vae(shift_factor=0.06, scaling_factor=1.5),
                "text_encoder": text_encoder(),
                "text_encoder_2": t5(),
                "tokenizer": tokenizer(),
                "tokenizer_2": tokenizer(),
                **more,
            }
        )
    )


def ldm(solver: Any = None) -> Any:
    from diffusers import LDMTextToImagePipeline
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    config = LDMBertConfig(
        vocab_size=190,
        max_position_embeddings=77,
        encoder_layers=1,
        encoder_ffn_dim=37,
        encoder_attention_heads=4,
        head_dim=8,
        d_model=32,
        pad_token_id=189,
    )
    torch.manual_seed(0)
    bert = LDMBertModel(config).eval()
    solver = solver or scheduler("DDIMScheduler", clip_sample=False)
    return quiet(
        LDMTextToImagePipeline(
            vqvae=vae(),
            bert=bert,
            tokenizer=tokenizer(),
            unet=unet(),
            scheduler=solver,
        )
    )


def sd_adapter(solver: Any = None) -> Any:
    from diffusers import T2IAdapter

    torch.manual_seed(0)
    adapter = T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2
    ).eval()
    net = unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return sd("StableDiffusionAdapterPipeline", solver, adapter=adapter, unet=net)


def kandinsky22(solver: Any = None) -> Any:
    from diffusers import KandinskyV22Pipeline, VQModel

    torch.manual_seed(0)
    movq = VQModel(
        block_out_channels=[16, 32],
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=12,
        layers_per_block=1,
    ).eval()
    net = unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        time_embedding_type="positional",
    )
    solver = solver or scheduler("DDIMScheduler", clip_sample=False)
    return quiet(KandinskyV22Pipeline(unet=net, scheduler=solver, movq=movq))


def pixart(solver: Any = None) -> Any:
    from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=SIZE,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    ).eval()
    solver = solver or scheduler("DPMSolverMultistepScheduler")
    return quiet(
        PixArtAlphaPipeline(
            tokenizer=None, text_encoder=None, vae=vae(), transformer=transformer, scheduler=solver
        )
    )


def cascade_prior() -> Any:
    from diffusers import DDPMWuerstchenScheduler, StableCascadePriorPipeline
    from diffusers.models import StableCascadeUNet

    torch.manual_seed(0)
    prior = StableCascadeUNet(
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=32,
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
        switch_level=(False,),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        )
        * 2,
    ).eval()
    return quiet(
        StableCascadePriorPipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder(projection=True),
            prior=prior,
            scheduler=DDPMWuerstchenScheduler(),
            feature_extractor=None,
            image_encoder=None,
        )
    )


def with_ip_adapter(pipe: Any) -> Any:
    """Loads random IP-Adapter weights for image embeddings of 32 features."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    layers, key = {}, 1
    for name in pipe.unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("k", "v"):
            layers[f"{key}.to_{part}_ip.weight"] = random(width, 32)
        key += 2
    projection = {
        "proj.weight": random(4 * 32, 32),
        "proj.bias": random(4 * 32),
        "norm.weight": random(32),
        "norm.bias": random(32),
    }
    pipe.load_ip_adapter(
        {"image_proj": projection, "ip_adapter": layers},
        subfolder="",
        weight_name="",
        image_encoder_folder=None,
    )
    return pipe
