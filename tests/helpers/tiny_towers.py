"""The smallest towers that tests of models build."""

from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig

VIT = VisionConfig(image_size=32, patch_size=8, width=32, layers=3, head_width=16)
TEXT = TextConfig(context_length=12, vocab_size=600, width=16, heads=2, layers=1)
CLIP = ClipConfig(embed_dim=16, vision=VIT, text=TEXT)
COCA = CocaConfig(clip=CLIP, decoder_layers=1, num_queries=4)
