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


def i2vgen(solver: Any = None) -> Any:
    from diffusers import I2VGenXLPipeline, I2VGenXLUNet

    torch.manual_seed(0)
    net = I2VGenXLUNet(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        num_attention_heads=None,
        norm_num_groups=8,
    ).eval()
    return quiet(
        I2VGenXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            image_encoder=image_encoder(),
            feature_extractor=feature_extractor(),
            unet=net,
            scheduler=solver or scheduler("DDIMScheduler", clip_sample=False),
        )
    )


def text_to_video(solver: Any = None) -> Any:
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(0)
    net = UNet3DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    return quiet(
        TextToVideoSDPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=net,
            scheduler=solver or scheduler("DDIMScheduler", clip_sample=False),
        )
    )


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
    return quiet(
        AnimateDiffPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=unet(),
            motion_adapter=adapter,
            scheduler=solver
            or scheduler("DDIMScheduler", clip_sample=False, beta_schedule="linear"),
        )
    )
