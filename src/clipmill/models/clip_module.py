"""open_clip's CLIP, for texts of any length up to its context. Imports open_clip (5 s)."""

import open_clip
from open_clip.transformer import text_global_pool
from torch import Tensor
from torch.nn import functional as F


class Clip(open_clip.CLIP):  # type: ignore[misc]  # open_clip has no types
    """``encode_image`` and ``encode_text``, both to (B, D), and ``logit_scale``."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return embeddings (B, D) of token ids (B, T), T up to the context's length.

        open_clip's own needs the full context. A causal tower sees no padding behind a text, so
        both give the same; a tower that isn't causal needs the padding.
        """
        length = text.shape[1]
        dtype = self.transformer.get_cast_dtype()
        x_BTW = self.token_embedding(text).to(dtype) + self.positional_embedding[:length].to(dtype)
        mask_TT = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x_BTW = self.ln_final(self.transformer(x_BTW, attn_mask=mask_TT))
        x_BW = text_global_pool(
            x_BTW, text, self.text_pool_type, eos_token_id=getattr(self, "text_eos_id", None)
        )
        x_BD = x_BW @ self.text_projection
        return F.normalize(x_BD, dim=-1) if normalize else x_BD
