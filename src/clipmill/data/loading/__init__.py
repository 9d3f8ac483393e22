"""Batches of image-caption pairs: a batch is a function of the global step.

``view`` selects samples and captions, ``sampler`` maps a global step to samples, ``dataloader``
reads, decodes and collates them. No state is saved: a resumed run asks for its next step.
"""
