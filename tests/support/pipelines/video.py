"""Small video pipelines of diffusers."""

from typing import Any

import torch

from .parts import (
    feature_extractor,
    image_encoder,
    quiet,
    scheduler,
    text_encoder,
    tokenizer,
    unet,
    vae,
)

UNET_3D = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def of_text(kind: Any, solver: Any, **more: Any) -> Any:
    """A pipeline of the usual parts around a network."""
    return quiet(
        kind(
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            scheduler=solver or scheduler("DDIMScheduler", clip_sample=False),
            **more,
        )
    )


def i2vgen(solver: Any = None) -> Any:
    from diffusers import I2VGenXLPipeline, I2VGenXLUNet

    torch.manual_seed(0)
    return of_text(
        I2VGenXLPipeline,
        solver,
        image_encoder=image_encoder(),
        feature_extractor=feature_extractor(),
        unet=I2VGenXLUNet(**UNET_3D, num_attention_heads=None).eval(),
    )


def text_to_video(solver: Any = None) -> Any:
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(0)
    return of_text(TextToVideoSDPipeline, solver, unet=UNet3DConditionModel(**UNET_3D).eval())


def svd(solver: Any = None) -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )

    torch.manual_seed(0)
    net = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    ).eval()
    torch.manual_seed(0)
    autoencoder = AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        latent_channels=4,
    ).eval()
    solver = solver or scheduler(
        "EulerDiscreteScheduler",
        interpolation_type="linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    return quiet(
        StableVideoDiffusionPipeline(
            vae=autoencoder,
            image_encoder=image_encoder(),
            unet=net,
            scheduler=solver,
            feature_extractor=feature_extractor(),
        )
    )


def animatediff(solver: Any = None) -> Any:
    from diffusers import AnimateDiffPipeline, MotionAdapter

    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    solver = solver or scheduler("DDIMScheduler", clip_sample=False, beta_schedule="linear")
    return of_text(AnimateDiffPipeline, solver, unet=unet(), motion_adapter=adapter)
